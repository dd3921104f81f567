"""The last word on which of a few candidates is the nearest: float64, ties to the lowest id."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Pairs whose difference is held in float64 at once: 12 MB at d = 384.
PAIRS: Final = 4096


def nearest_of(
    vectors: NDArray[np.float64],
    table: NDArray[np.float32],
    positions: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each vector, the nearest of its candidate rows in float64, ties to the lowest.

    Args:
        vectors: (n, d).
        table: (V, d).
        positions: Of a vector, (m,); every vector occurs.
        rows: Of the table, (m,): a candidate of that vector.

    Returns:
        Rows of the table, (n,).
    """
    found = np.empty(len(vectors), dtype=np.int64)
    found[positions] = rows
    contested = np.bincount(positions, minlength=len(vectors))[positions] > 1
    if contested.any():
        positions, rows = positions[contested], rows[contested]
        order = np.lexsort((rows, positions))
        positions, rows = positions[order], rows[order]
        first = np.diff(positions, prepend=-1) != 0
        lead = _lead(vectors, table, positions, rows, over=rows[first][np.cumsum(first) - 1])
        order = np.lexsort((rows, -lead, positions))
        found[positions[first]] = rows[order[first]]
    return found


def _lead(
    vectors: NDArray[np.float64],
    table: NDArray[np.float32],
    positions: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    over: NDArray[np.int64],
) -> NDArray[np.float64]:
    """By how much each row is nearer to its vector than the row `over`: (||v - over||² - ||v - row||²) / 2.

    As a product, so that its rounding error shrinks with the difference of the two, near the table and far from it. It
    is exactly 0 for equal rows, and no BLAS product: equal rows get equal bits, and ties go to the lowest id.
    """
    lead = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS):
        part = slice(start, start + PAIRS)
        token, other = table[rows[part]].astype(np.float64), table[over[part]].astype(np.float64)
        lead[part] = ((token - other) * (vectors[positions[part]] - (token + other) / 2)).sum(axis=1)
    return lead
