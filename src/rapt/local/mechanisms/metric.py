"""The public metric that a guarantee is stated in, and the scores of an exponential mechanism, which follow from it.

The metric is Euclidean in the table, optionally with a step between tags. The scores are log weights of outputs, from
the metric and a public output prior.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.interface import check_token_ids

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
            found[near, place] = self._measure_straight(left[near], ids[place])
            if self.tags is not None:
                found += self.penalty * (self.tags[left, None] != self.tags[ids])
            yield slice(start, start + len(ids)), found

    def pairs(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """The distance of each pair, (n,), to the last digits: exactly 0 for equal rows of one class."""
        found = self._measure_straight(left, right)
        if self.tags is not None:
            found += self.penalty * (self.tags[left] != self.tags[right])
        return found

    def _measure_straight(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        found = np.empty(len(left))
        for start in range(0, len(left), _TILE):
            part = slice(start, start + _TILE)
            difference = np.subtract(self.embeddings[left[part]], self.embeddings[right[part]], dtype=np.float64)
            found[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        return found


# Nats by which distance can lower a score. What lies farther than LARGEST_DROP / beta is treated as if it lay there, so
# that no weight is too small to be drawn exactly. Effect on the guarantee: none, because min(., c) does not stretch
# distances; on the channel: outputs of weight below e^-30 = 1e-13 of the heaviest one are up to that likely.
LARGEST_DROP: Final = 30.0
# Rows in float64 at once: 60 MB at V = 30,000.
_ROWS: Final = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """s(x, y) = log q(y) - beta * min(d(x, y), reach), for any row x of the table and every eligible y.

    An exponential mechanism with these scores puts out y with probability exp(s(x, y)) / Z(x), Z(x) = Σ_y exp(s(x, y)).

    Guarantee: log P(y|x) - log P(y|x') <= 2 * beta * d(x, x') for every x, x' and y.

    Proof.
        1. d is a metric, so |d(x, y) - d(x', y)| <= d(x, x'); and |min(a, c) - min(b, c)| <= |a - b|.
        2. So s(x, y) - s(x', y) <= beta * d(x, x') for every y: log q(y) is in both and cancels.
        3. By 2 with x and x' swapped, exp(s(x', y)) <= exp(beta * d(x, x')) * exp(s(x, y)) for every y. Summed over y:
           Z(x') <= exp(beta * d(x, x')) * Z(x).
        4. log P(y|x) - log P(y|x') = s(x, y) - s(x', y) + log Z(x') - log Z(x) <= 2 * beta * d(x, x'). ∎
        Nothing uses that x can be an output, nor what q is, as long as it is public and above 0.

    Source: McSherry and Talwar, "Mechanism Design via Differential Privacy", FOCS 2007, with a score of sensitivity
    d(x, x') (Chatzikokolakis et al., PETS 2013).

    Attributes:
        metric: Metric d.
        eligible: Sorted ids y, (C,).
        beta: Slope of the scores, 1/distance, above 0.
        log_prior: log of q(y) over its largest value, (C,), so <= 0; None for a uniform q.
        reach: Distance from which on all outputs are alike; at most LARGEST_DROP / beta whatever is given.
    """

    metric: PublicMetric
    eligible: NDArray[np.int64]
    beta: float
    log_prior: NDArray[np.float64] | None = None
    reach: float = np.inf

    @cached_property
    def effective_reach(self) -> float:
        """`reach`, or the distance of the largest drop where that is shorter."""
        return min(self.reach, LARGEST_DROP / self.beta)

    def rows(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """s(x, y) for each x and every eligible y, (n, C); at most 0."""
        found = np.empty((len(token_ids), len(self.eligible)))
        for columns, scores in self.tiles(token_ids):
            found[:, columns] = scores
        return found

    def tiles(self, token_ids: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield the scores of `rows`, some outputs at a time; a tile may be overwritten."""
        for columns, distances in self.metric.tiles(token_ids, self.eligible):
            yield columns, self.from_distances(distances, columns)

    def pairs(self, token_ids: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.float64]:
        """s(x, y) for pairs of x and the place of y among the eligible ids, (n,), to the last digits."""
        return self.from_distances(self.metric.pairs(token_ids, self.eligible[places]), places)

    def from_distances(self, distances: NDArray[np.float64], places: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        """The scores of outputs at these distances and places, in the memory of the distances."""
        np.minimum(distances, self.effective_reach, out=distances)
        distances *= -self.beta
        if self.log_prior is not None:
            distances += self.log_prior[places]
        return distances

    def log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each x and every eligible y, (n, C), in nats.

        Raises:
            VocabularyError: An id has no row in the table.
        """
        check_token_ids(token_ids, size=len(self.metric.embeddings))
        found = np.empty((len(token_ids), len(self.eligible)))
        for start in range(0, len(token_ids), _ROWS):
            part = slice(start, start + _ROWS)
            rows = self.rows(token_ids[part])
            # The largest score is at least -LARGEST_DROP - log(smallest q): the sum neither overflows nor vanishes.
            found[part] = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return found
