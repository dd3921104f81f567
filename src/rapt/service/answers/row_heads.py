"""The task heads of a batch at once: every row has its own linear head, of its own number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

# Numbers in one slice of gathered heads, 64 MiB: rows of a thousand classes are computed a few at a time.
_SLICE: Final = 16 * 1024 * 1024


def class_probabilities(pooled: Tensor, heads: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[float, ...]]:
    """softmax(W_i g_i + b_i) of each row i, as many numbers as the row has classes.

    Args:
        pooled: States g, (B, h).
        heads: W (C_i, h) and b (C_i,) of each row; rows of one adapter give the same objects.
    """
    different = {id(weight): (weight, bias) for weight, bias in heads}
    weights = torch.cat([weight for weight, _ in different.values()])  # (S, h)
    biases = torch.cat([bias for _, bias in different.values()])
    first, at = {}, 0
    for key, (_, bias) in different.items():
        first[key] = at
        at += len(bias)
    starts = torch.tensor([first[id(weight)] for weight, _ in heads], device=pooled.device)
    counts = torch.tensor([len(bias) for _, bias in heads], device=pooled.device)
    columns = torch.arange(int(counts.max()), device=pooled.device)
    beyond = columns >= counts[:, None]  # (B, C)
    index = starts[:, None] + torch.where(beyond, 0, columns)
    rows = max(1, _SLICE // (index.shape[1] * pooled.shape[1]))
    logits = torch.cat(
        [
            (weights[index[start : start + rows]] @ pooled[start : start + rows, :, None])[:, :, 0]
            for start in range(0, len(pooled), rows)
        ]
    )
    logits = (logits + biases[index]).masked_fill(beyond, -torch.inf)
    found = torch.softmax(logits, dim=1).tolist()
    return [tuple(row[:count]) for row, count in zip(found, counts.tolist(), strict=True)]
