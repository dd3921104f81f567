"""The task head: mean of the text positions, then one linear layer (RAPT, Eq. 8-9, for classification).

Paper says: the task is predicted from the activations of the n text positions through the model's own head. We use
their mean and a trained linear layer, because a sentence encoder has no language-model head and was trained by mean
pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TaskHead(nn.Module):
    """Logits of C classes from last-layer states."""

    def __init__(self, *, hidden_size: int, classes: int, generator: torch.Generator) -> None:
        """Start at small random weights and no bias."""
        super().__init__()
        self.linear = nn.Linear(hidden_size, classes)
        with torch.no_grad():
            self.linear.weight.normal_(std=hidden_size**-0.5, generator=generator)
            self.linear.bias.zero_()

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (B, C) of pooled states (B, h)."""
        logits: Tensor = self.linear(pooled)
        return logits


def pool_text(states: Tensor, text_mask: Tensor) -> Tensor:
    """Mean state of the text positions, (B, T, h) and (B, T) -> (B, h): prompt and plain tokens are left out."""
    weights = text_mask / text_mask.sum(dim=1, keepdim=True)
    return torch.einsum("bth,bt->bh", states, weights)
