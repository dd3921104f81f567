"""The nearest eligible token, exactly: the hot loop of every mechanism that adds noise to an embedding.

Exact means decided in float64, ties to the lowest id. An approximate index would change the distribution of outputs,
and with it the channel that the guarantee and the audit speak about (Carpentier et al., arXiv 2411.11521).

Two steps. A *screen* names, for each vector, a few tokens that must contain the nearest one; where it names more than
one, a *re-check* compares them in float64. The screen is a float32 matrix product, because argmin ||v - w||² is
argmax v·w - ||w||²/2, and a sum of n products is off by at most γ_n Σ|aᵢbᵢ| in any order, with γ_n = n·u / (1 - n·u)
and u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, 2002, Sec. 3.1). That bound is deterministic: no
token that could be the nearest is lost.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError

# Vectors a batch, tokens a tile. A batch reads the table once; the 4 MB of a tile's scores are searched while they are
# in the processor's cache, and the memory in use does not depend on the size of the vocabulary.
BATCH: Final = 1024
TILE: Final = 1024
# Pairs whose difference is held in float64 at once by the re-check: 12 MB at d = 384.
PAIRS: Final = 4096


class NearestToken:
    """Searches one table; holds one float32 copy of its eligible rows and no state between calls."""

    def __init__(self, embeddings: NDArray[np.float32], eligible: NDArray[np.int64]) -> None:
        """Prepare the search.

        Args:
            embeddings: The table E, (V, d), float32.
            eligible: Sorted ids that may be found, int64.

        Raises:
            VocabularyError: Nothing is eligible, or the ids are not sorted rows of the table.
        """
        if len(eligible) == 0 or eligible[0] < 0 or eligible[-1] >= len(embeddings) or (np.diff(eligible) <= 0).any():
            raise VocabularyError(
                f"eligible ids must be sorted rows of the table, got {len(eligible)} ids for {len(embeddings)} rows"
            )
        self._eligible = eligible
        self._screen = _Float32Screen(embeddings, eligible)

    def search(self, vectors: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.int64]:
        """The id of the eligible token nearest to each vector by Euclidean distance, ties to the lowest id.

        Args:
            vectors: (n, d), float32 or float64, finite. Not changed.

        Returns:
            Token ids, (n,), int64.

        Raises:
            VocabularyError: The vectors are not finite, or not as wide as the table.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self._screen.dimension:
            raise VocabularyError(f"vectors must be of shape (n, {self._screen.dimension}), got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise VocabularyError(f"vectors must be finite, got a value that is not among {len(vectors)} vectors")
        found = np.empty(len(vectors), dtype=np.int64)
        for start in range(0, len(vectors), BATCH):
            batch = vectors[start : start + BATCH].astype(np.float64, copy=False)
            rows, columns = self._screen.candidates(batch)
            found[start : start + BATCH] = self._eligible[_nearest_of(batch, self._screen.rows, rows, columns)]
        return found


class _Float32Screen:
    """Which tokens can be nearest, by a float32 matrix product with a rounding bound."""

    def __init__(self, embeddings: NDArray[np.float32], eligible: NDArray[np.int64]) -> None:
        count, dim = len(eligible), embeddings.shape[1]
        self._table = np.empty((count, dim + 1), dtype=np.float32)
        half_square = np.empty(count)
        for start in range(0, count, TILE):  # so that the table is never held a third time
            part = slice(start, start + TILE)
            self._table[part, :-1] = embeddings[eligible[part]]
            half_square[part] = np.square(self.rows[part], dtype=np.float64).sum(axis=1) / 2
        if half_square.max() > 2.0**100:
            raise VocabularyError("the rows of a table must be shorter than 2**50, got a longer one; scale the table")
        # The last column subtracts ||w||²/2 inside the product: one pass over the scores less.
        self._table[:, -1] = -half_square
        self._longest = float(np.sqrt(2 * half_square.max()))

    @property
    def dimension(self) -> int:
        """Width d of a vector."""
        return int(self._table.shape[1]) - 1

    @property
    def rows(self) -> NDArray[np.float32]:
        """Embeddings of the eligible tokens, (n, d), a view."""
        return self._table[:, :-1]

    def candidates(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (position of a vector, row of the table) that hold the nearest row of every vector."""
        queries, error = self._queries(vectors)
        each, starts = np.arange(len(vectors)), range(0, len(self._table), TILE)
        shape = (len(vectors), len(starts))
        place, top = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32)
        second = np.full(shape, -np.inf, dtype=np.float32)
        best = np.full(len(vectors), -np.inf)
        buffer = np.empty(len(vectors) * TILE, dtype=np.float32)
        for i, start in enumerate(starts):
            scores = self._scores(queries, start, buffer)
            place[:, i] = scores.argmax(axis=1)
            top[:, i] = scores[each, place[:, i]]
            np.maximum(best, top[:, i], out=best)
            # A second score matters only where the first is near the best so far: in few tiles for each vector.
            close = np.flatnonzero(top[:, i] >= best - 2 * error)
            others = scores[close]
            others[each[: len(close)], place[close, i]] = -np.inf
            second[close, i] = others.max(axis=1)
        # The nearest row scores at least the best true score minus the error, and the best score seen is at most the
        # best true one plus the error.
        floor = best - 2 * error
        crowded = second >= floor[:, None]
        vector, tile = np.nonzero((top >= floor[:, None]) & ~crowded)
        rows, columns = [vector], [tile * TILE + place[vector, tile]]
        for i in np.flatnonzero(crowded.any(axis=0)).tolist():
            again = np.flatnonzero(crowded[:, i])
            vector, column = np.nonzero(self._scores(queries[again], starts[i], buffer) >= floor[again, None])
            rows.append(again[vector])
            columns.append(starts[i] + column)
        return np.concatenate(rows), np.concatenate(columns)

    def _queries(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The vectors as rows of the product, and how far a float32 score of each can be from the true one."""
        with np.errstate(over="ignore"):
            length = np.linalg.norm(vectors, axis=1)
        # Too long for float32: scored as zero, excluding nothing.
        far = length > 2.0**100 / max(self._longest, 1.0)
        queries = np.ones((len(vectors), self._table.shape[1]), dtype=np.float32)
        with np.errstate(under="ignore"):
            queries[:, :-1] = np.where(far[:, None], 0.0, vectors) if far.any() else vectors
        # n = d + 1 products, one unit roundoff u for v -> float32 and one for ||w||²/2 -> float32, n more if partial
        # sums underflow to zero. The hundredth on top covers the second order and the float64 of this line.
        n, unit = self._table.shape[1], 2.0**-24
        size = length * self._longest + self._longest**2 / 2
        error = 1.01 * ((n + 2) * unit / (1 - n * unit) * size + n * 2.0**-126 * max(self._longest, 1.0))
        return queries, np.where(far, np.inf, error)

    def _scores(self, queries: NDArray[np.float32], start: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        tile = self._table[start : start + TILE]
        scores = out[: len(queries) * len(tile)].reshape(len(queries), len(tile))
        return np.matmul(queries, tile.T, out=scores)


def _nearest_of(
    vectors: NDArray[np.float64],
    table: NDArray[np.float32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each vector, the nearest of its candidate columns in float64, ties to the lowest."""
    found = np.empty(len(vectors), dtype=np.int64)
    found[rows] = columns
    contested = np.bincount(rows, minlength=len(vectors))[rows] > 1
    if contested.any():
        rows, columns = rows[contested], columns[contested]
        order = np.lexsort((columns, rows))
        rows, columns = rows[order], columns[order]
        first = np.diff(rows, prepend=-1) != 0
        lead = _lead(vectors, table, rows, columns, over=columns[first][np.cumsum(first) - 1])
        order = np.lexsort((columns, -lead, rows))
        found[rows[first]] = columns[order[first]]
    return found


def _lead(
    vectors: NDArray[np.float64],
    table: NDArray[np.float32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    *,
    over: NDArray[np.int64],
) -> NDArray[np.float64]:
    """By how much each column is nearer to its vector than the column `over`: (||v - over||² - ||v - column||²) / 2.

    As a product, so that its rounding error shrinks with the difference of the two, near the table and far from it. It
    is exactly 0 for equal rows, and no BLAS product: equal rows get equal bits, and ties go to the lowest id.
    """
    lead = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS):
        part = slice(start, start + PAIRS)
        token, other = table[columns[part]].astype(np.float64), table[over[part]].astype(np.float64)
        lead[part] = ((token - other) * (vectors[rows[part]] - (token + other) / 2)).sum(axis=1)
    return lead
