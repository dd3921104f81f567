"""The largest slope of an exponential mechanism, exactly: over all pairs of inputs and all outputs of a vocabulary.

2 * beta bounds the slope for every table (`Scores`). On a given one it is smaller, because the worst case of the scores
and the worst case of the normalizers do not meet, so a larger beta has the same guarantee.

For inputs x, x' and D = d(x, x'), the slope is sup_y [s(x, y) - s(x', y) + log Z(x') - log Z(x)] / D. The prior
cancels in the scores, so sup_y [s(x, y) - s(x', y)] = beta * sup_y [min(d(x', y), r) - min(d(x, y), r)].

- x is eligible: the supremum is beta * min(D, r), reached at y = x, where d(x, y) = 0 and d(x', y) = D. Nothing is
  more, by the triangle inequality. So all that is needed is Z of each input and one pass over pairs.
- x is not eligible: the same is an upper bound, and so is beta * (max_y d(x', y) - min_y d(x, y)). Where the lower of
  the two exceeds the largest slope found so far, the supremum is taken over all y. That is rare: a special token is far
  from every output.

Everything is in float64: slopes are right to about 1e-9 of their size, which `ROUNDING` covers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.scores import Scores

# Relative allowance for rounding: a slope is stated so much larger than it was computed.
ROUNDING: Final = 1e-7
_ROWS: Final = 256

Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """The largest slope, and a pair of inputs that has it.

    Attributes:
        value: sup of (log P(y|x) - log P(y|x')) / d(x, x'), 1/distance, rounded up.
        token: x.
        other: x'.
    """

    value: float
    token: int
    other: int


def largest_slopes(family: Sequence[Scores], *, on_progress: Progress | None = None) -> list[Slope]:
    """The largest slope of each of several mechanisms.

    Args:
        family: With one metric, one set of outputs and one prior, and different beta: distances are computed once.
        on_progress: Called with the share done.
    """
    search = _Search(family)
    inputs, eligible = np.arange(len(family[0].metric.embeddings)), family[0].eligible
    others = np.setdiff1d(inputs, eligible)
    steps = [
        *((search.normalize, part) for part in _parts(inputs, _ROWS)),
        *((search.from_eligible, part) for part in _parts(eligible, _ROWS)),
        *((search.from_others, part) for part in _parts(others, _ROWS)),
    ]
    for done, (step, part) in enumerate(steps, 1):
        step(part)
        if on_progress is not None:
            on_progress(done / len(steps))
    return search.best


class _Search:
    """Normalizers first, then the pairs that begin with an eligible token, then the others: each needs those before."""

    def __init__(self, family: Sequence[Scores]) -> None:
        self.family, self.metric = family, family[0].metric
        self.inputs = np.arange(len(self.metric.embeddings))
        self.log_normalizer = np.empty((len(family), len(self.inputs)))
        self.nearest = np.full(len(self.inputs), np.inf)  # least and largest distance of each input to an output
        self.farthest = np.zeros(len(self.inputs))
        self.best = [Slope(value=scores.beta, token=0, other=0) for scores in family]

    def normalize(self, tokens: NDArray[np.int64]) -> None:
        """The log of Z of some inputs."""
        normalizer = np.zeros((len(self.family), len(tokens)))
        for columns, distances in self.metric.tiles(tokens, self.family[0].eligible):
            self.nearest[tokens] = np.minimum(self.nearest[tokens], distances.min(axis=1))
            self.farthest[tokens] = np.maximum(self.farthest[tokens], distances.max(axis=1))
            for i, scores in enumerate(self.family):
                weights = scores.from_distances(distances.copy(), columns)
                normalizer[i] += np.exp(weights, out=weights).sum(axis=1)
        self.log_normalizer[:, tokens] = np.log(normalizer)

    def from_eligible(self, tokens: NDArray[np.int64]) -> None:
        """Pairs whose first token can be an output."""
        for places, distances in self.metric.tiles(tokens, self.inputs):
            columns, inverse = self.inputs[places], _inverse(distances)
            for i in range(len(self.family)):
                bound = self._bound(i, tokens, columns, distances, inverse)
                row, column = np.unravel_index(bound.argmax(), bound.shape)
                self._offer(i, float(bound[row, column]), tokens[row], columns[column])

    def from_others(self, tokens: NDArray[np.int64]) -> None:
        """Pairs whose first token cannot be an output: bounded, and where that is not enough, computed."""
        for part, distances in self.metric.tiles(tokens, self.inputs):
            columns, inverse = self.inputs[part], _inverse(distances)
            for i, scores in enumerate(self.family):
                farthest = np.minimum(self.farthest[columns], scores.effective_reach)
                room = farthest - np.minimum(self.nearest[tokens], scores.effective_reach)[:, None]
                bound = self._bound(i, tokens, columns, np.minimum(distances, room), inverse)
                rows, places = np.nonzero(bound > self.best[i].value)
                order = np.argsort(-bound[rows, places], kind="stable")
                for some in _parts(order, _ROWS):
                    left, right = rows[some], places[some]
                    if bound[left[0], right[0]] <= self.best[i].value:
                        break
                    self._compute(i, tokens[left], columns[right], distances[left, right])

    def _bound(
        self,
        i: int,
        tokens: NDArray[np.int64],
        columns: NDArray[np.int64],
        gain: NDArray[np.float64],
        inverse: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """[beta * min(gain, r) + log Z(x') - log Z(x)] / D of all pairs; 0 where D is 0."""
        scores, log_normalizer = self.family[i], self.log_normalizer[i]
        found: NDArray[np.float64] = log_normalizer[columns] - log_normalizer[tokens, None]
        found += scores.beta * np.minimum(gain, scores.effective_reach)
        found *= inverse
        return found

    def _compute(
        self, i: int, tokens: NDArray[np.int64], others: NDArray[np.int64], distances: NDArray[np.float64]
    ) -> None:
        scores, log_normalizer = self.family[i], self.log_normalizer[i]
        gain = np.minimum(self.metric.between(others, scores.eligible), scores.effective_reach)
        gain -= np.minimum(self.metric.between(tokens, scores.eligible), scores.effective_reach)
        slopes = (scores.beta * gain.max(axis=1) + log_normalizer[others] - log_normalizer[tokens]) / distances
        place = int(slopes.argmax())
        self._offer(i, float(slopes[place]), tokens[place], others[place])

    def _offer(self, i: int, value: float, token: np.int64, other: np.int64) -> None:
        if value * (1 + ROUNDING) > self.best[i].value:
            self.best[i] = Slope(value=value * (1 + ROUNDING), token=int(token), other=int(other))


def _inverse(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / D, and 0 where D is 0."""
    same = distances == 0
    inverse: NDArray[np.float64] = 1 / np.where(same, 1.0, distances)
    inverse[same] = 0.0
    return inverse


def _parts(values: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
