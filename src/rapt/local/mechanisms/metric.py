"""The public metric that a guarantee is stated in: Euclidean in the table, optionally with a step between tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Columns of a product at once: with 128 rows, a tile of distances is 1 MB and stays in the second-level cache.
_TILE: Final = 1024
# A product of float64 loses half its digits where two rows nearly meet. Below this share of the rows' lengths a
# distance is taken from the difference of the rows instead; above it the product is off by at most `PRODUCT_ERROR` of
# the lengths: (d + 3) 2^-53 (a + b)^2 in the square, over 2 * 1e-3 (a + b), is 2.3e-10 (a + b) at d = 4,096.
_NEAR: Final = 1e-3
PRODUCT_ERROR: Final = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicMetric:
    """d(x, y) = ||E(x) - E(y)|| + penalty * 1[tags[x] != tags[y]], between any two rows of a public table.

    The sum of two metrics, Euclidean on rows and discrete on tags, hence a metric, up to tokens of equal rows and tags.

    Attributes:
        embeddings: E, (V, d), float32.
        tags: Class of each row, (V,), whole numbers; None for one class.
        penalty: Distance between classes, >= 0.
    """

    embeddings: NDArray[np.float32]
    tags: NDArray[np.int64] | None = None
    penalty: float = 0.0

    @cached_property
    def _squares(self) -> NDArray[np.float64]:
        squares: NDArray[np.float64] = np.einsum("ij,ij->i", self.embeddings, self.embeddings, dtype=np.float64)
        return squares

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """The length of each row, (V,)."""
        return np.sqrt(self._squares)

    def between(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """All distances between two lists of ids, (len(left), len(right)); off by `PRODUCT_ERROR` lengths at most."""
        found = np.empty((len(left), len(right)))
        for columns, distances in self.tiles(left, right):
            found[:, columns] = distances
        return found

    def tiles(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield the distances of `between`, as many columns at a time as fit the cache; a tile may be overwritten."""
        # One product gives (-2 E(x), 1, ||E(x)||²) · (E(y), ||E(y)||², 1) = ||E(x) - E(y)||².
        rows = np.empty((len(left), self.embeddings.shape[1] + 2))
        rows[:, :-2] = self.embeddings[left]
        rows[:, :-2] *= -2
        rows[:, -2], rows[:, -1] = 1, self._squares[left]
        tile = np.empty((min(_TILE, len(right)), rows.shape[1]))
        for start in range(0, len(right), _TILE):
            ids = right[start : start + _TILE]
            columns = tile[: len(ids)]
            columns[:, :-2], columns[:, -2], columns[:, -1] = self.embeddings[ids], self._squares[ids], 1
            found = rows @ columns.T
            limit = _NEAR * (self.lengths[left] + self.lengths[ids].max())
            near, place = np.nonzero(found < (limit * limit)[:, None])
            found[near, place] = 0  # it may be a little below, which has no root
            np.sqrt(found, out=found)
            found[near, place] = self._straight(left[near], ids[place])
            if self.tags is not None:
                found += self.penalty * (self.tags[left, None] != self.tags[ids])
            yield slice(start, start + len(ids)), found

    def pairs(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """The distance of each pair, (n,), to the last digits: exactly 0 for equal rows of one class."""
        found = self._straight(left, right)
        if self.tags is not None:
            found += self.penalty * (self.tags[left] != self.tags[right])
        return found

    def _straight(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        found = np.empty(len(left))
        for start in range(0, len(left), _TILE):
            part = slice(start, start + _TILE)
            difference = np.subtract(self.embeddings[left[part]], self.embeddings[right[part]], dtype=np.float64)
            found[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        return found
