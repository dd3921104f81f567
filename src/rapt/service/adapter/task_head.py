"""The task head: mean of the text positions, then one linear layer (RAPT, Eq. 8-9, for classification).

The means of the two texts of a pair are compared before that layer: whether they agree stands in their common mean only
as far as the backbone has compared them already.

Paper says: the task is predicted from the activations of the n text positions through the model's own head. We use
their mean and a trained linear layer, because a sentence encoder has no language-model head and was trained by mean
pooling.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

# What a pair is compared by, in vectors of the size of a state.
COMPARISON_VECTORS: Final = 3


class TaskHead(nn.Module):
    """Logits of C classes from last-layer states."""

    def __init__(self, *, hidden_size: int, classes: int, generator: torch.Generator, compares: bool = False) -> None:
        """Start at small random weights and no bias.

        Args:
            hidden_size: h, of a state.
            classes: Number C of classes.
            generator: Generator of the initial weights.
            compares: Whether it reads `compare_texts` in place of `pool_text`.
        """
        super().__init__()
        self.compares = compares
        self.linear = nn.Linear(COMPARISON_VECTORS * hidden_size if compares else hidden_size, classes)
        with torch.no_grad():
            self.linear.weight.normal_(std=hidden_size**-0.5, generator=generator)
            self.linear.bias.zero_()

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (B, C) of pooled states (B, h), or of comparisons (B, 3h)."""
        logits: Tensor = self.linear(pooled)
        return logits


def pool_text(states: Tensor, text_mask: Tensor) -> Tensor:
    """Mean state of the text positions, (B, T, h) and (B, T) -> (B, h): prompt and plain tokens are left out."""
    weights = text_mask / text_mask.sum(dim=1, keepdim=True)
    return torch.einsum("bth,bt->bh", states, weights)


def compare_texts(states: Tensor, text_mask: Tensor, second: Tensor) -> Tensor:
    """Return what is common to the two texts of each pair and what is not, (B, T, h) -> (B, 3h).

    With the mean states u and v of the first and the second text, scaled to length 1, and m of both together:
    [m; |m| |u - v|; |m| sqrt(h) u * v]. Difference and product are those of Conneau et al. 2017, Sec. 3.1; they are
    scaled to about the size of m, so one learning rate suits all three.

    Args:
        states: Last-layer states, (B, T, h).
        text_mask: 1.0 at the tokens of both texts, (B, T).
        second: 1.0 at those of the second, (B, T); elsewhere it is not looked at.
    """
    both = pool_text(states, text_mask)
    first_text = nn.functional.normalize(pool_text(states, text_mask * (1 - second)), dim=1)
    second_text = nn.functional.normalize(pool_text(states, text_mask * second), dim=1)
    size = both.norm(dim=1, keepdim=True)
    apart = size * (first_text - second_text).abs()
    alike = size * both.shape[1] ** 0.5 * first_text * second_text
    return torch.cat([both, apart, alike], dim=1)
