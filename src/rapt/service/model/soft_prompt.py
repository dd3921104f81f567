"""The soft prompt: P trainable vectors at the place of word embeddings (Lester et al. 2021; RAPT, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rapt.service.model.backbone import Backbone


class SoftPrompt(nn.Module):
    """P vectors of the backbone's width, all that is trained of its input. `vectors` is (P, h), float32."""

    def __init__(self, vectors: Tensor) -> None:
        """Take (P, h) initial vectors, which are copied."""
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone().float())

    def forward(self, rows: int) -> Tensor:
        """The same prompt for each of `rows` rows, one after the other, (rows * P, h)."""
        return self.vectors.repeat(rows, 1)


def prompt_from_vocabulary(backbone: Backbone, *, length: int, generator: torch.Generator) -> SoftPrompt:
    """A prompt that starts at the embeddings of `length` random eligible tokens.

    Lester et al. (2021, Sec. 3.2) found this better than random vectors: it starts where the backbone has been.
    """
    eligible = torch.from_numpy(backbone.bundle.eligible.copy())
    chosen = eligible[torch.randperm(len(eligible), generator=generator)[:length]]
    return SoftPrompt(backbone.word_embeddings[chosen.to(backbone.device)])
