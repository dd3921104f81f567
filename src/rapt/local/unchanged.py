"""How often a token stays itself: N_w = P[M(w) = w] of Feyisetan et al. 2020, exactly or by simulation.

This is what a reader of privatized text sees first. It is a property of a mechanism, not a guarantee.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import UsageError
from rapt.local.mechanisms.interface import Mechanism, closed_channel
from rapt.local.vocabulary import Vocabulary

# Two-sided 95 % of the normal law.
_Z: Final = 1.959964
# Tokens of a closed channel that are computed at once: 15 MB at 30,000 outputs.
CHANNEL_ROWS: Final = 64


@dataclass(frozen=True, kw_only=True)
class UnchangedShare:
    """Share of draws that gave back the token, over eligible tokens with equal weight.

    Attributes:
        types: Tokens tried, evenly spaced over the eligible ids.
        draws: Draws of each; 0 where the probabilities of the tokens tried are exact.
        share: Mean over all.
        low, high: 95 % interval of the mean over the vocabulary.
        quantile_5, median, quantile_95: Over the tokens tried; simulated, each is known to about 1/√draws only.
    """

    types: int
    draws: int
    share: float
    low: float
    high: float
    quantile_5: float
    median: float
    quantile_95: float


def measure_unchanged(
    mechanism: Mechanism, vocabulary: Vocabulary, *, rng: np.random.Generator, types: int = 256, draws: int = 16
) -> UnchangedShare:
    """N_w on a sample of tokens; without draws, for a mechanism that can write its channel down.

    Args:
        mechanism: M.
        vocabulary: Whose eligible tokens are tried.
        rng: Source of the noise; nothing private depends on it.
        types: Tokens to try, at most.
        draws: Draws of each.

    Raises:
        UsageError: Fewer than two tokens or no draws.
    """
    if types < 2 or draws < 1 or len(vocabulary.eligible) < 2:
        raise UsageError(f"a share needs at least 2 tokens and 1 draw, got types={types} draws={draws}")
    places = evenly_spaced(len(vocabulary.eligible), most=types)
    tried, channel = vocabulary.eligible[places], closed_channel(mechanism)
    if channel is None:
        released = mechanism.privatize(np.repeat(tried, draws), rng=rng).reshape(len(tried), draws)
        kept = (released == tried[:, None]).mean(axis=1)
    else:
        rows = np.array_split(np.arange(len(tried)), math.ceil(len(tried) / CHANNEL_ROWS))
        kept = np.concatenate([np.exp(channel(tried[row])[np.arange(len(row)), places[row]]) for row in rows])
        draws = 0
    share = float(kept.mean())
    # Tokens differ, so the interval is over tokens; at 0 and 1, where none differ, it is Wilson's over the draws.
    n = len(tried) if 0 < share < 1 else len(tried) * max(draws, 1)
    spread = float(kept.std(ddof=1)) / math.sqrt(n)
    edge = _Z * _Z / (n + _Z * _Z)
    return UnchangedShare(
        types=len(tried),
        draws=draws,
        share=share,
        low=max(0.0, share - _Z * spread) if share < 1 else 1 - edge,
        high=min(1.0, share + _Z * spread) if share > 0 else edge,
        quantile_5=float(np.quantile(kept, 0.05)),
        median=float(np.median(kept)),
        quantile_95=float(np.quantile(kept, 0.95)),
    )


def evenly_spaced(count: int, *, most: int) -> NDArray[np.int64]:
    """Up to `most` of the places 0 to `count` - 1, the first and the last among them where there are two, (n,)."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
