"""The steps of a run over public text: its batches, the noise on each, and the rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from rapt.local.mechanisms import Mechanism

_RISE: Final = 0.05  # share of the steps that the rate takes to its peak
_SORTED_TOGETHER: Final = 16  # batches: texts of one length share a batch, in an order that stays random enough

Tokens = Sequence[Sequence[int]]


def privatize(mechanism: Mechanism, texts: Tokens, *, rng: np.random.Generator) -> list[list[int]]:
    """The texts privatized, token for token, in one call."""
    flat = np.array([token for text in texts for token in text], dtype=np.int64)
    ends = np.cumsum([len(text) for text in texts])
    return [ids.tolist() for ids in np.split(mechanism.privatize(flat, rng=rng), ends[:-1])]


def batches(texts: Tokens, *, size: int, steps: int, rng: np.random.Generator) -> Iterator[list[Sequence[int]]]:
    """So many batches, pass after pass over the texts, of two texts or more: the variance of one text is no measure."""
    done = 0
    while True:
        order = rng.permutation(len(texts))
        found = []
        for start in range(0, len(order), size * _SORTED_TOGETHER):
            near = sorted(order[start : start + size * _SORTED_TOGETHER], key=lambda place: len(texts[place]))
            found += [near[at : at + size] for at in range(0, len(near), size)]
        for place in rng.permutation(len(found)):
            if done == steps:
                return
            if len(found[place]) > 1:
                yield [texts[index] for index in found[place]]
                done += 1


def rate(step: int, steps: int) -> float:
    """The rate of a step, counted from 1, as a share of its peak: a linear rise, then a linear fall."""
    rise = max(1, math.ceil(_RISE * steps))
    return min(step / rise, max(0.0, (steps - step + 1) / max(1, steps - rise + 1)))
