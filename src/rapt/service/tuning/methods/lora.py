"""LoRA: a trainable low-rank change of the model's linear layers (Hu et al. 2021).

The numbers are those of PEFT's LoRA, and so is the file; what differs is that nothing is put into the model. The change
is a value that a call carries, so tenants share a batch and a job trains while requests are answered. No dropout: it
would need a generator of its own to be repeatable, and soft changes this small do not overfit by it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from rapt.errors import TuningError
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import LoraPair, Tuned
from rapt.service.tuning.tuning_config import TuningConfig

# Query and value projections by the names that architectures give them; GPT-2 has one layer for query, key and value.
QUERY_AND_VALUE: Final = ("query", "value", "q", "v", "q_proj", "v_proj", "c_attn")


class Lora(nn.Module):
    """A pair (a, b) for each changed layer: a at torch's usual uniform values, b at 0, so it starts as the backbone."""

    def __init__(
        self, sizes: dict[str, tuple[int, int]], *, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        """Take (in, out) of each layer to be changed."""
        super().__init__()
        self._names = tuple(sizes)
        self._scale = alpha / rank
        self.a = nn.ParameterList(
            torch.empty(rank, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            for inputs, _ in sizes.values()
        )
        self.b = nn.ParameterList(torch.zeros(outputs, rank) for _, outputs in sizes.values())

    def forward(self) -> Tuned:
        """The pairs as they are."""
        pairs = zip(self._names, self.a, self.b, strict=True)
        return Tuned(lora={name: LoraPair(a=a, b=self._scale * b) for name, a, b in pairs})


def make_lora(backbone: Backbone, config: TuningConfig, labels: tuple[str, ...], generator: torch.Generator) -> Lora:
    """The pairs at their initial values; `labels` play no part.

    Raises:
        TuningError: No linear layer has a target's name.
    """
    wanted = config.lora_targets or QUERY_AND_VALUE
    sizes = {name: size for name, size in backbone.sites.linear.items() if name.rsplit(".", 1)[-1] in wanted}
    if not sizes:
        known = sorted({name.rsplit(".", 1)[-1] for name in backbone.sites.linear})
        raise TuningError(f"lora_targets must name linear layers of the backbone, got none of {', '.join(known)}")
    return Lora(sizes, rank=config.lora_rank, alpha=config.lora_alpha, generator=generator)
