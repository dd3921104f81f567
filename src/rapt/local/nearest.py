"""The nearest eligible token, exactly: the hot loop of every mechanism that adds noise to an embedding.

Exact means decided in float64, ties to the lowest id. An approximate index would change the distribution of outputs,
and with it the channel that the guarantee and the audit speak about (Carpentier et al., arXiv 2411.11521).

Two steps. A *screen* names, for each vector, a few tokens that must contain the nearest one, by a bound on its rounding
that holds always, not almost always; where it names more than one, a *re-check* compares them in float64. There are two
screens: an int8 product by a kernel that is compiled when the package is installed, where there is a compiler, and a
float32 product by numpy. They give the same answers.

*float32.* argmin ||v - w||² is argmax v·w - ||w||²/2, and a sum of n products is off by at most γ_n Σ|aᵢbᵢ| in any
order, with γ_n = n·u / (1 - n·u) and u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, 2002, Sec. 3.1).
That bound is deterministic: no token that could be the nearest is lost.

*int8.* Four times the speed of a float32 product, with AMX ten times, and as exact. The bounds and why they hold are in
native/nearest.c.
What the kernel gives up on (a vector longer than 2⁶⁰, or hundreds of rows that its eight bits cannot tell apart) goes
to the float32 screen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError
from rapt.local.nearest_kernel import Kernel, PackedTable, load_kernel

# Pairs whose difference is held in float64 at once: 12 MB at d = 384.
PAIRS: Final = 4096


def choose_nearest(
    vectors: NDArray[np.float64],
    table: NDArray[np.float32],
    positions: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each vector, the nearest of its candidate rows in float64, ties to the lowest.

    Args:
        vectors: Vectors that are searched for, (n, d).
        table: Table that is searched, (V, d).
        positions: Positions of vectors, (m,); every vector occurs.
        rows: Rows of the table, (m,), each a candidate of the vector beside it.

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


# Tokens a tile: the 4 MB of a tile's scores are searched while they are in the processor's cache, and the memory in use
# does not depend on the size of the vocabulary.
TILE: Final = 1024
# Vectors of a crowded tile that are re-checked at once: at most 64 times a tile's tokens in candidates.
_GROUP: Final = 64


class Float32Screen:
    """Searches the eligible rows of one table by a float32 product, tile by tile."""

    def __init__(self, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], *, copied: bool) -> None:
        """Prepare a table for the search.

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
        positions, places = self._find_candidates(vectors)
        return self._eligible[self._find_nearest(vectors, positions, places)]

    def _find_candidates(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (position of a vector, place among the eligible) that hold the nearest of every vector."""
        queries, error = self._make_queries(vectors)
        each, starts = np.arange(len(vectors)), range(0, len(self._eligible), TILE)
        shape = (len(vectors), len(starts))
        place, top = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32)
        second = np.full(shape, -np.inf, dtype=np.float32)
        best = np.full(len(vectors), -np.inf)
        buffer = np.empty(len(vectors) * TILE, dtype=np.float32)
        for i, start in enumerate(starts):
            scores = self._compute_scores(queries, start, buffer)
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
                vector, column = np.nonzero(
                    self._compute_scores(queries[group], starts[i], buffer) >= floor[group, None]
                )
                positions.append(group)
                places.append(self._find_nearest(vectors[group], vector, starts[i] + column))
        return np.concatenate(positions), np.concatenate(places)

    def _find_nearest(
        self, vectors: NDArray[np.float64], positions: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        if self._table is not None:
            return choose_nearest(vectors, self._table[:, :-1], positions, places)
        assert self._embeddings is not None
        rows = choose_nearest(vectors, self._embeddings, positions, self._eligible[places])
        return np.searchsorted(self._eligible, rows)

    def _make_queries(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
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

    def _compute_scores(
        self, queries: NDArray[np.float32], start: int, out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
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


class Int8Screen:
    """Searches the eligible rows of one table: holds a byte a number of them, and the table as it is."""

    def __init__(
        self, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], *, kernel: Kernel, packed: PackedTable
    ) -> None:
        """The search over what `fitting` packed."""
        self._embeddings, self._eligible = embeddings, eligible
        self._kernel, self._packed = kernel, packed

    @classmethod
    def fitting(
        cls, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], *, kernel: Kernel | None
    ) -> Self | None:
        """The screen, or None where there is no kernel or the numbers of this table are not for it.

        Args:
            embeddings: The table, (V, d), float32. Held, not copied.
            eligible: Sorted ids that may be found, int64, at least one.
            kernel: Kernel that computes.
        """
        dim = embeddings.shape[1]
        # The sums of products of two bytes are 32-bit integers, good for 2^16 of them.
        if kernel is None or not 0 < dim < 2**16 or not embeddings.flags.c_contiguous:
            return None
        packed = kernel.pack(embeddings, eligible)
        # The bounds of the kernel are about numbers that neither underflow nor overflow in float32.
        longest = float(np.sqrt(2 * packed.half.max()))
        return cls(embeddings, eligible, kernel=kernel, packed=packed) if 2.0**-40 < longest < 2.0**40 else None

    def search(self, vectors: NDArray[np.float64]) -> NDArray[np.int64]:
        """The id of the nearest eligible row to each vector, ties to the lowest id; (n, d) to (n,)."""
        vectors = np.ascontiguousarray(vectors)
        positions, places, left = self._kernel.candidates(vectors, self._packed, self._embeddings, self._eligible)
        ids = self._eligible[places]
        if len(left):
            positions = np.concatenate([positions, left])
            ids = np.concatenate([ids, self._float32.search(vectors[left])])
        return choose_nearest(vectors, self._embeddings, positions, ids)

    @cached_property
    def _float32(self) -> Float32Screen:
        return Float32Screen(self._embeddings, self._eligible, copied=False)


# Vectors a batch: each reads the table once.
BATCH: Final = 1024


class NearestToken:
    """Searches one table; holds no state between calls."""

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        eligible: NDArray[np.int64],
        *,
        use_kernel: bool = True,
        use_tiles: bool = True,
    ) -> None:
        """Prepare the search among the rows of a table.

        Args:
            embeddings: The table E, (V, d), float32. Held where the int8 screen is used, so it must not change.
            eligible: Sorted ids that may be found, int64.
            use_kernel: Whether to take the int8 screen where its kernel was built and runs on this processor.
            use_tiles: Whether the kernel multiplies by AMX where processor and system have it; answers are the same.

        Raises:
            VocabularyError: Nothing is eligible, or the ids are not sorted rows of the table.
        """
        if len(eligible) == 0 or eligible[0] < 0 or eligible[-1] >= len(embeddings) or (np.diff(eligible) <= 0).any():
            raise VocabularyError(
                f"eligible ids must be sorted rows of the table, got {len(eligible)} ids for {len(embeddings)} rows"
            )
        distinct = drop_equal_rows(embeddings, eligible)
        self._dimension = embeddings.shape[1]
        self._screen: Int8Screen | Float32Screen
        kernel = load_kernel() if use_kernel else None
        if kernel is not None and not use_tiles:
            kernel = replace(kernel, tiles=None)
        int8 = Int8Screen.fitting(embeddings, distinct, kernel=kernel)
        self._screen = Float32Screen(embeddings, distinct, copied=True) if int8 is None else int8

    @property
    def screen(self) -> str:
        """Name of the screen in use: "int8" or "float32"."""
        return "int8" if isinstance(self._screen, Int8Screen) else "float32"

    def search(self, vectors: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.int64]:
        """The id of the eligible token nearest to each vector by Euclidean distance, ties to the lowest id.

        Args:
            vectors: (n, d), float32 or float64, finite. Not changed.

        Returns:
            Token ids, (n,), int64.

        Raises:
            VocabularyError: The vectors are not finite, or not as wide as the table.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self._dimension:
            raise VocabularyError(f"vectors must be of shape (n, {self._dimension}), got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise VocabularyError(f"vectors must be finite, got a value that is not among {len(vectors)} vectors")
        found = np.empty(len(vectors), dtype=np.int64)
        for start in range(0, len(vectors), BATCH):
            batch = vectors[start : start + BATCH].astype(np.float64, copy=False)
            found[start : start + BATCH] = self._screen.search(batch)
        return found


def drop_equal_rows(embeddings: NDArray[np.float32], eligible: NDArray[np.int64]) -> NDArray[np.int64]:
    """The eligible ids without those whose row equals that of a lower one, bit for bit: they are never the answer.

    Equal rows are candidates all or none. A table with thousands of them would fill the lists of a screen with ties.
    """
    marks = np.empty(len(eligible), dtype=np.uint64)
    # Sums of the bits of a row times odd numbers: equal for equal rows, and for hardly any others.
    factors = np.random.default_rng(0).integers(2**63, size=embeddings.shape[1], dtype=np.uint64) * 2 + 1
    for start in range(0, len(eligible), TILE):
        rows = np.ascontiguousarray(embeddings[eligible[start : start + TILE]])
        marks[start : start + TILE] = rows.view(np.uint32) @ factors
    _, first, place = np.unique(marks, return_index=True, return_inverse=True)
    twin = first[place]
    suspects = np.flatnonzero(twin != np.arange(len(eligible)))
    keep = np.ones(len(eligible), dtype=np.bool_)
    for start in range(0, len(suspects), TILE):
        part = suspects[start : start + TILE]
        same = embeddings[eligible[part]].view(np.uint32) == embeddings[eligible[twin[part]]].view(np.uint32)
        keep[part] = ~same.all(axis=1)
    return eligible[keep]
