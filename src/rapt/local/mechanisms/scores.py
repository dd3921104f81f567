"""The scores of an exponential mechanism: log weights of outputs, from a public metric and a public output prior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.interface import check_token_ids
from rapt.local.mechanisms.metric import PublicMetric

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
