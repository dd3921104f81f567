"""Linear probing: nothing is added to the backbone, and the task head alone is trained (Alain & Bengio 2016).

What a prompt, a prefix or LoRA gains over it is what they are worth. It costs the least: a step has no backward pass
through the backbone.
"""

from __future__ import annotations

import torch
from torch import nn

from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import NOTHING, Tuned
from rapt.service.tuning.tuning_config import TuningConfig


class LinearProbing(nn.Module):
    """No parameters."""

    def forward(self) -> Tuned:
        """Nothing."""
        return NOTHING


def make_linear_probing(
    backbone: Backbone, config: TuningConfig, labels: tuple[str, ...], generator: torch.Generator
) -> LinearProbing:
    """The same for every backbone and run."""
    return LinearProbing()
