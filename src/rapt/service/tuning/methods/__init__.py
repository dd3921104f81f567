"""What is trained on a frozen backbone: one module a method, one closed dict of them.

A method is a module whose call, without arguments, gives the `Tuned` that stands in for it: the parts that are put into
a forward pass, differentiable in its parameters. What an adapter keeps is that value alone, so whatever a method needs
only while it trains is gone from the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import nn

from rapt.service.adapter.methods import LINEAR_PROBING, LORA, P_TUNING, PREFIX_TUNING, PROMPT_TUNING
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import Tuned
from rapt.service.tuning.methods.linear_probing import make_linear_probing
from rapt.service.tuning.methods.lora import make_lora
from rapt.service.tuning.methods.p_tuning import make_p_tuning
from rapt.service.tuning.methods.prefix_tuning import make_prefix_tuning
from rapt.service.tuning.methods.prompt_tuning import make_prompt_tuning
from rapt.service.tuning.tuning_config import TuningConfig

MakeMethod = Callable[[Backbone, TuningConfig, tuple[str, ...], torch.Generator], nn.Module]

METHODS: Final[Mapping[str, MakeMethod]] = {
    PROMPT_TUNING: make_prompt_tuning,
    P_TUNING: make_p_tuning,
    PREFIX_TUNING: make_prefix_tuning,
    LORA: make_lora,
    LINEAR_PROBING: make_linear_probing,
}


def make_method(
    backbone: Backbone, *, config: TuningConfig, labels: tuple[str, ...], generator: torch.Generator
) -> nn.Module:
    """The method of a run, at its initial values.

    Args:
        backbone: Frozen.
        config: Names the method and its options.
        labels: Names of the classes, for initialization `labels`; empty where there are none.
        generator: Of all that is random in it.

    Raises:
        TuningError: The options do not fit the backbone.
    """
    return METHODS[config.method](backbone, config, labels, generator)


def tuned_parts(method: nn.Module) -> Tuned:
    """What a method puts into a forward pass, differentiable in its parameters."""
    tuned: Tuned = method()
    return tuned
