"""The nearest eligible token, exactly: the hot loop of every mechanism that adds noise to an embedding.

Exact means decided in float64, ties to the lowest id. An approximate index would change the distribution
of outputs and with it the channel that the guarantee and the audit speak about (Carpentier et al., arXiv 2411.11521).

Two steps. A *screen* names, for each vector, a few tokens that must contain the nearest one; a *re-check* computes
their distances in float64. The screen is a float32 matrix product: argmin ||v - w||² = argmax (v·w - ||w||²/2), and any
order of summing n products is off by at most γ_n Σ|aᵢbᵢ| with γ_n = n·u / (1 - n·u), u = 2⁻²⁴ (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, Sec. 3.1). The bound is deterministic: no token that could be nearest is lost.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError

# Vectors a batch, tokens a tile: the scores of a tile, 4 MB, stay in the second-level cache while they are searched,
# and the memory in use does not depend on the size of the vocabulary.
BATCH: Final = 512
TILE: Final = 2048
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
        self._screen = _Float32Screen(embeddings[eligible])

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
            batch = vectors[start : start + BATCH].astype(np.float64)
            column, undecided = self._screen.best(batch)
            if undecided.size:
                rows, columns = self._screen.candidates(batch, undecided)
                column[undecided] = _nearest_of(batch, self._screen.rows, rows, columns)
            found[start : start + BATCH] = self._eligible[column]
        return found


class _Float32Screen:
    """Which tokens can be nearest, by a float32 matrix product with a rounding bound."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        half_square = np.einsum("ij,ij->i", rows, rows, dtype=np.float64) / 2
        if half_square.max() > 2.0**100:
            raise VocabularyError("the rows of a table must be shorter than 2**50, got a longer one; scale the table")
        # The last column subtracts ||w||²/2 inside the product: one pass over the scores less.
        self._table = np.concatenate([rows, -half_square[:, None].astype(np.float32)], axis=1)
        self._longest = float(np.sqrt(2 * half_square.max()))

    @property
    def dimension(self) -> int:
        """Width d of a vector."""
        return int(self._table.shape[1]) - 1

    @property
    def rows(self) -> NDArray[np.float32]:
        """Embeddings of the eligible tokens, (n, d), a view."""
        return self._table[:, :-1]

    def best(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row of the best score for each vector, and the positions of the vectors for which it proves nothing."""
        queries, error = self._queries(vectors)
        each = np.arange(len(vectors))
        top = np.full(len(vectors), -np.inf, dtype=np.float32)
        second = top.copy()
        column = np.zeros(len(vectors), dtype=np.int64)
        scores = np.empty(len(vectors) * TILE, dtype=np.float32)
        for start in range(0, len(self._table), TILE):
            tile = self._scores(queries, start, scores)
            place = tile.argmax(axis=1)
            value = tile[each, place]
            tile[each, place] = -np.inf
            np.maximum(second, tile.max(axis=1), out=second)
            np.maximum(second, np.minimum(top, value), out=second)
            column = np.where(value > top, start + place, column)
            np.maximum(top, value, out=top)
        decided = second < top.astype(np.float64) - 2 * error
        return column, np.flatnonzero(~decided)

    def candidates(
        self, vectors: NDArray[np.float64], undecided: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (position of the vector, row of the table) that hold the nearest row of each undecided vector."""
        queries, error = self._queries(vectors[undecided])
        scores = np.empty(len(undecided) * TILE, dtype=np.float32)
        starts = range(0, len(self._table), TILE)
        top = np.max([self._scores(queries, start, scores).max(axis=1) for start in starts], axis=0)
        floor = top.astype(np.float64) - 2 * error
        rows, columns = [], []
        for start in starts:
            row, place = np.nonzero(self._scores(queries, start, scores) >= floor[:, None])
            rows.append(undecided[row])
            columns.append(start + place)
        return np.concatenate(rows), np.concatenate(columns)

    def _queries(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The vectors as rows of the product, and how far a float32 score of each can be from the true one."""
        # Too long for float32: scored as zero, excluding nothing.
        far = np.abs(vectors).max(axis=1, initial=0.0) > 2.0**100 / max(self._longest, 1.0)
        near = np.where(far[:, None], 0.0, vectors)
        queries = np.ones((len(vectors), self._table.shape[1]), dtype=np.float32)
        with np.errstate(under="ignore"):
            queries[:, :-1] = near
        # n = d + 1 products, one unit roundoff u for v -> float32 and one for ||w||²/2 -> float32, n more if partial
        # sums underflow to zero. The hundredth on top covers the second order and the float64 of this line.
        n, unit = self._table.shape[1], 2.0**-24
        size = np.linalg.norm(near, axis=1) * self._longest + self._longest**2 / 2
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
    """For each vector among `rows`, in order, the nearest of its `columns` in float64, ties to the lowest."""
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = np.diff(rows) != 0
    lowest = columns[first][np.cumsum(first) - 1]
    lead = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS):
        part = slice(start, start + PAIRS)
        token, other = table[columns[part]].astype(np.float64), table[lowest[part]].astype(np.float64)
        # By how much a token beats the lowest candidate: (||v - other||² - ||v - token||²) / 2, as a product whose
        # rounding error shrinks with the difference of the two, near the table and far from it. It is exactly 0 for
        # equal rows. Not a BLAS product: equal rows must get equal bits, so that ties go to the lowest id.
        lead[part] = ((token - other) * (vectors[rows[part]] - (token + other) / 2)).sum(axis=1)
    order = np.lexsort((columns, -lead, rows))
    return columns[order[first]]
