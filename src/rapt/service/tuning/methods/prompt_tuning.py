"""Prompt tuning: P trainable vectors at the place of word embeddings (Lester et al. 2021; RAPT, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import Tuned
from rapt.service.tuning.methods.initialization import initial_vectors
from rapt.service.tuning.tuning_config import TuningConfig


class PromptTuning(nn.Module):
    """P vectors of the backbone's width, all that is trained of its input. `vectors` is (P, h), float32."""

    def __init__(self, vectors: Tensor) -> None:
        """Take (P, h) initial vectors, which are copied."""
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone().float())

    def forward(self) -> Tuned:
        """The prompt as it is."""
        return Tuned(prompt=self.vectors)


def make_prompt_tuning(
    backbone: Backbone, config: TuningConfig, labels: tuple[str, ...], generator: torch.Generator
) -> PromptTuning:
    """The prompt at its initial vectors."""
    return PromptTuning(initial_vectors(backbone, config, labels, generator))
