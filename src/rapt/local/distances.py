"""How far apart the tokens of a table lie: the distances at which a guarantee is worth stating.

η has the unit 1/distance, so a value of it says nothing without these. They are taken between eligible tokens, on a
fixed sample of rows (evenly spaced ids, the same in every run), each compared exactly with the whole table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.local.vocabulary import Vocabulary

# 1,024 rows against 30,000 tokens of width 384 take half a second on one core.
SAMPLED_ROWS: Final = 1024
SAMPLED_PARTNERS: Final = 1024
# Rows farthest from the centre, compared with all others: most outliers of a table are among them.
_FAR_ROWS: Final = 256
_ROWS_AT_ONCE: Final = 256


@dataclass(frozen=True, kw_only=True)
class TableDistances:
    """Euclidean distances between eligible tokens, in float64.

    Attributes:
        rows: Tokens that were compared with every other one.
        tokens: Eligible tokens in all; with `rows` equal to it, nothing was sampled but the pairs.
        pairs: Pairs behind `median`.
        nearest_5, nearest_50, nearest_95: Quantiles over `rows` of the distance to the nearest other token.
        median: Median distance of two different tokens.
        largest_seen: Largest distance found; some pair may be farther apart.
        largest_bound: No two tokens are farther apart than this.
    """

    rows: int
    tokens: int
    pairs: int
    nearest_5: float
    nearest_50: float
    nearest_95: float
    median: float
    largest_seen: float
    largest_bound: float


def measure_distances(vocabulary: Vocabulary) -> TableDistances:
    """The distances of a vocabulary's table; all zero when it has a single eligible token."""
    table = vocabulary.embeddings[vocabulary.eligible]
    rows, partners = space_evenly(len(table), most=SAMPLED_ROWS), space_evenly(len(table), most=SAMPLED_PARTNERS)
    nearest = _nearest_distances(table, rows)
    pairs = _pair_distances(table, rows, partners)
    seen, bound = _largest(table)
    five, half, ninety_five = (float(value) for value in np.quantile(nearest, [0.05, 0.5, 0.95]))
    return TableDistances(
        rows=len(rows),
        tokens=len(table),
        pairs=len(pairs),
        nearest_5=five,
        nearest_50=half,
        nearest_95=ninety_five,
        median=float(np.median(pairs)) if len(pairs) else 0.0,
        largest_seen=max(seen, float(pairs.max(initial=0.0))),
        largest_bound=bound,
    )


def space_evenly(count: int, *, most: int) -> NDArray[np.int64]:
    """Up to `most` of the places 0 to `count` - 1, the first and the last among them where there are two, (n,)."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def _nearest_distances(table: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance from each of `rows` to the nearest other row of the table, (n,)."""
    if len(table) < 2:
        return np.zeros(len(rows))
    half_square = np.einsum("ij,ij->i", table, table) / 2
    found = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        chunk = rows[start : start + _ROWS_AT_ONCE]
        # argmin ||x - w||² = argmax (x·w - ||w||²/2), a matrix product; the distance itself is then taken in float64.
        scores = table[chunk] @ table.T - half_square
        scores[np.arange(len(chunk)), chunk] = -np.inf
        neighbours = table[scores.argmax(axis=1)].astype(np.float64)
        found[start : start + len(chunk)] = np.linalg.norm(table[chunk] - neighbours, axis=1)
    return found


def _largest(table: NDArray[np.float32]) -> tuple[float, float]:
    """A distance that occurs, and one that none exceeds.

    Rows far from the centre are compared with all rows. Any two of the others lie in a ball around the centre, so
    their distance is at most its diameter.
    """
    if len(table) < 2:
        return 0.0, 0.0
    center = table.mean(axis=0, dtype=np.float64).astype(np.float32)
    shifted = table - center
    squares = np.einsum("ij,ij->i", shifted, shifted, dtype=np.float64)
    order = np.argsort(-squares, kind="stable")
    far, others = order[:_FAR_ROWS], order[_FAR_ROWS:]
    largest = 0.0
    for start in range(0, len(far), _ROWS_AT_ONCE):
        chunk = far[start : start + _ROWS_AT_ONCE]
        products = shifted[chunk] @ shifted.T
        largest = max(largest, float((squares[chunk, None] + squares[None, :] - 2 * products).max()))
    seen = float(np.sqrt(max(largest, 0.0)))
    diameter = 2 * float(np.sqrt(squares[others].max(initial=0.0)))
    # The thousandth on top covers float32: a product of d = 4,096 terms is off by 2.5e-4 of its size at the very worst.
    return seen, max(seen, diameter) * 1.001


def _pair_distances(
    table: NDArray[np.float32], rows: NDArray[np.int64], partners: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Distances of all pairs of a row and a different partner, flat."""
    left, right = table[rows].astype(np.float64), table[partners].astype(np.float64)
    squares = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1)[None, :] - 2 * left @ right.T
    distances: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))[rows[:, None] != partners[None, :]]
    return distances
