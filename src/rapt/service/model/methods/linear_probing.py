"""Linear probing: nothing is added to the backbone, and the task head alone is trained (Alain & Bengio 2016).

A backbone that expects noise was distilled on texts as they stand. Whatever a tenant puts before them moves its states
away from what it learned, for a few thousand noisy examples to make up for; the head takes them as they are.
"""

from __future__ import annotations

import torch
from torch import nn

from rapt.service.model.backbone import Backbone
from rapt.service.model.steering import NOTHING, Tuned
from rapt.service.model.tuning_config import TuningConfig


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
