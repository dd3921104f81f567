"""Shares with 95 % intervals that respect that the tokens of one record belong together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of n tokens and its 95 % interval.

    Attributes:
        value: Between 0 and 1.
        low, high: Bounds of the interval.
        n: Number of tokens counted.
        clusters: Records they come from.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int


def compute_clustered_share(hits: NDArray[np.bool_], lengths: NDArray[np.int64]) -> Share | None:
    """The share of hits among all tokens; None when there are no tokens.

    Tokens of a record are not independent (a topic, an author), so n tokens hold less information than n. The variance
    is that of a ratio of sums over records (Cochran, Sampling Techniques, 1977, Sec. 6.3); the number of independent
    tokens that would have the same variance goes into Wilson's interval, with the quantile of Student's law for as many
    degrees of freedom as there are records less one (Dean and Pagano, Am. J. Epidemiol. 2015). Unlike a bootstrap it
    draws nothing and does not collapse at 0 and at 1, where the records are counted as the trials.

    Args:
        hits: (n,), tokens of the records one after another.
        lengths: Tokens of each record, (records,), sum n; records without tokens do not count.
    """
    lengths = lengths[lengths > 0]
    n, clusters = int(lengths.sum()), len(lengths)
    if n == 0:
        return None
    per_record = np.add.reduceat(hits.astype(np.float64), np.cumsum(lengths) - lengths)
    value = float(per_record.sum() / n)
    effective = float(clusters)
    if clusters > 1 and 0 < value < 1:
        residual = per_record - value * lengths
        variance = clusters / (clusters - 1) * float((residual**2).sum()) / n**2
        # Negative correlation within records could promise more than n independent tokens; it is not believed.
        effective = min(float(n), value * (1 - value) / variance) if variance > 0 else float(n)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, max(clusters - 1, 1)))
    low, high = wilson(value, trials=effective, quantile=quantile)
    return Share(value=value, low=low, high=high, n=n, clusters=clusters)


def compute_independent_share(hits: NDArray[np.bool_]) -> Share:
    """The share of hits among independent trials, with Wilson's interval."""
    value = float(hits.mean())
    low, high = wilson(value, trials=len(hits), quantile=float(stats.norm.ppf((1 + LEVEL) / 2)))
    return Share(value=value, low=low, high=high, n=len(hits), clusters=len(hits))


def wilson(value: float, *, trials: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share (J. Am. Stat. Assoc. 22, 1927); `trials` need not be whole."""
    square = quantile**2
    middle = (value + square / (2 * trials)) / (1 + square / trials)
    half = quantile / (1 + square / trials) * math.sqrt(value * (1 - value) / trials + square / (4 * trials**2))
    # The interval holds the value by construction; rounding must not undo that.
    return min(max(0.0, middle - half), value), max(min(1.0, middle + half), value)
