"""The nearest row by a float32 matrix product with a rounding bound: the screen that needs nothing but numpy.

argmin ||v - w||² is argmax v·w - ||w||²/2, and a sum of n products is off by at most γ_n Σ|aᵢbᵢ| in any order, with
γ_n = n·u / (1 - n·u) and u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, 2002, Sec. 3.1). That bound
is deterministic: no token that could be the nearest is lost.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError
from rapt.local.nearest_recheck import nearest_of

# Tokens a tile: the 4 MB of a tile's scores are searched while they are in the processor's cache, and the memory in use
# does not depend on the size of the vocabulary.
TILE: Final = 1024
# Vectors of a crowded tile that are re-checked at once: at most 64 times a tile's tokens in candidates.
_GROUP: Final = 64


class Float32Screen:
    """Searches the eligible rows of one table by a float32 product, tile by tile."""

    def __init__(self, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], *, copied: bool) -> None:
        """Prepare the search.

        Args:
            embeddings: The table, (V, d), float32.
            eligible: Sorted ids that may be found, int64, at least one.
            copied: Whether to hold a copy of the eligible rows in the layout of the product, which is faster, or to
                make it of each tile again, which needs no memory.

        Raises:
            VocabularyError: A row is too long for float32.
        """
        self._eligible = eligible
        self._half_square = np.empty(len(eligible))
        for start in range(0, len(eligible), TILE):
            rows = embeddings[eligible[start : start + TILE]]
            self._half_square[start : start + TILE] = np.square(rows, dtype=np.float64).sum(axis=1) / 2
        if self._half_square.max() > 2.0**100:
            raise VocabularyError("the rows of a table must be shorter than 2**50, got a longer one; scale the table")
        self._longest = float(np.sqrt(2 * self._half_square.max()))
        self._embeddings: NDArray[np.float32] | None = embeddings
        self._table: NDArray[np.float32] | None = None
        if copied:
            table = np.empty((len(eligible), embeddings.shape[1] + 1), dtype=np.float32)
            for start in range(0, len(eligible), TILE):
                self._fill(table[start : start + TILE], start, embeddings)
            self._table, self._embeddings = table, None

    def search(self, vectors: NDArray[np.float64]) -> NDArray[np.int64]:
        """The id of the nearest eligible row to each vector, ties to the lowest id; (n, d) to (n,)."""
        positions, places = self._candidates(vectors)
        return self._eligible[self._nearest_of(vectors, positions, places)]

    def _candidates(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (position of a vector, place among the eligible) that hold the nearest of every vector."""
        queries, error = self._queries(vectors)
        each, starts = np.arange(len(vectors)), range(0, len(self._eligible), TILE)
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
        positions, places = [vector], [tile * TILE + place[vector, tile]]
        for i in np.flatnonzero(crowded.any(axis=0)).tolist():
            again = np.flatnonzero(crowded[:, i])
            for start in range(0, len(again), _GROUP):  # of a table of equal rows, every pair is a candidate
                group = again[start : start + _GROUP]
                vector, column = np.nonzero(self._scores(queries[group], starts[i], buffer) >= floor[group, None])
                positions.append(group)
                places.append(self._nearest_of(vectors[group], vector, starts[i] + column))
        return np.concatenate(positions), np.concatenate(places)

    def _nearest_of(
        self, vectors: NDArray[np.float64], positions: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        if self._table is not None:
            return nearest_of(vectors, self._table[:, :-1], positions, places)
        assert self._embeddings is not None
        rows = nearest_of(vectors, self._embeddings, positions, self._eligible[places])
        return np.searchsorted(self._eligible, rows)

    def _queries(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The vectors as rows of the product, and how far a float32 score of each can be from the true one."""
        with np.errstate(over="ignore"):
            length = np.linalg.norm(vectors, axis=1)
        # Too long for float32: scored as zero, excluding nothing.
        far = length > 2.0**100 / max(self._longest, 1.0)
        queries = np.ones((len(vectors), vectors.shape[1] + 1), dtype=np.float32)
        with np.errstate(under="ignore"):
            queries[:, :-1] = np.where(far[:, None], 0.0, vectors) if far.any() else vectors
        # n = d + 1 products, one unit roundoff u for v -> float32 and one for ||w||²/2 -> float32, n more if partial
        # sums underflow to zero. The hundredth on top covers the second order and the float64 of this line.
        n, unit = queries.shape[1], 2.0**-24
        size = length * self._longest + self._longest**2 / 2
        error = 1.01 * ((n + 2) * unit / (1 - n * unit) * size + n * 2.0**-126 * max(self._longest, 1.0))
        return queries, np.where(far, np.inf, error)

    def _scores(self, queries: NDArray[np.float32], start: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._table is not None:
            tile = self._table[start : start + TILE]
        else:
            assert self._embeddings is not None
            tile = np.empty((min(TILE, len(self._eligible) - start), queries.shape[1]), dtype=np.float32)
            self._fill(tile, start, self._embeddings)
        scores = out[: len(queries) * len(tile)].reshape(len(queries), len(tile))
        return np.matmul(queries, tile.T, out=scores)

    def _fill(self, tile: NDArray[np.float32], start: int, embeddings: NDArray[np.float32]) -> None:
        tile[:, :-1] = embeddings[self._eligible[start : start + len(tile)]]
        # The last column subtracts ||w||²/2 inside the product: one pass over the scores less.
        tile[:, -1] = -self._half_square[start : start + len(tile)]
