"""A lower bound on the η that an implementation really spends, from its outputs alone.

A proof is about a mechanism on paper. Here two inputs are privatized many times, and a set S of outputs is looked for
that comes up far more often for one of them. If P(M(x) ∈ S) = p and P(M(x') ∈ S) = p', then η d(x, x') >= log(p / p'),
whatever the code was meant to do. With exact intervals of Clopper and Pearson for p and p' the difference of the logs
of their ends, over d, is a lower bound on η.

*Guarantee.* If the implementation spends at most η on all pairs given, the probability that the report says otherwise
is at most alpha: one half of the runs chooses the set of each pair and direction, the other half tests it, and the
two ends of the intervals of all pairs and directions share alpha (Bonferroni).

The same outputs bound from below the total variation of the two laws: the share of S that one input has more than the
other. The guarantee bounds it from above by δ(0), at ε = 0. Text that is sent in clear has a variation of 1.

*Not covered.* The converse: a bound below η proves nothing. It is as good as the pairs, the number of runs and the
kind of set, and so many runs cannot show more than `SpentEta.largest`, about log(runs) / d, whatever the program does.
`program_audit` therefore compares the outputs with the stated channel as well. Sets here are those of the outputs whose
estimated ratio is largest, which is the best kind (Neyman and Pearson) but for chance.

Source: Ding et al., "Detecting Violations of Differential Privacy", CCS 2018; Arcolezi and Gambs, "Revealing the True
Cost of Locally Differentially Private Protocols" (LDP-Auditor), 2023; Clopper and Pearson, Biometrika 26, 1934.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.errors import AuditError
from rapt.local.mechanisms import find_promise
from rapt.local.mechanisms.interface import Mechanism
from rapt.local.mechanisms.near_tokens import find_nearest_tokens
from rapt.local.vocabulary import Vocabulary
from rapt.local.weighting import weigh_common_words

# Sets tried for each pair and direction; they are nested, and no two hold nearly the same share of the outputs.
_SETS: Final = 64
# Common words, of which the ones nearest to another token are told apart where no pair is named.
_WORDS: Final = 200
_NEAREST_PAIRS: Final = 4
# A bound on a pair this close would divide by nearly nothing.
_LEAST_DISTANCE: Final = 1e-9

# Token ids of n independent runs of k tokens each, (n, k), and a generator, to outputs, (n, k).
Draw = Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class InputPair:
    """Two texts of k tokens, and how far the guarantee puts them apart.

    Attributes:
        left, right: Token ids, k each. With k = 1 a token; with more, what tokens of one run tell together.
        distance: Sum of the distances of the tokens, in the metric of the guarantee.
        variation: Largest total variation of the outputs that the guarantee allows, δ(0); 1 allows any.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    distance: float
    variation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SpentEta:
    """Evidence of one pair of inputs, in the direction that shows more.

    Attributes:
        pair: The inputs, in the order in which the first makes the set likelier.
        lower: η is at least this, 1/distance; it may be below 0.
        largest: The largest bound that so many runs could have shown, 1/distance.
        variation: The total variation of the outputs is at least this.
        outputs: Size of the set.
        hits, other_hits: How often each input's output was in the set, out of `runs`.
        runs: Runs of each input, in the half that tests.
    """

    pair: InputPair
    lower: float
    largest: float
    variation: float
    outputs: int
    hits: int
    other_hits: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class SpentEtaReport:
    """The bounds of all pairs, with a joint error rate.

    Attributes:
        found: One a pair, the largest bound first.
        alpha: Probability, at most, that any of them is above the true η.
    """

    found: tuple[SpentEta, ...]
    alpha: float

    @property
    def lower(self) -> float:
        """η is at least this."""
        return self.found[0].lower

    @property
    def largest(self) -> float:
        """The largest bound that the runs could have shown on any of the pairs."""
        return max(spent.largest for spent in self.found)

    @property
    def told_apart(self) -> bool:
        """Whether the outputs of a pair are further apart than the guarantee allows."""
        return any(spent.variation > spent.pair.variation for spent in self.found)


def audit_spent_eta(
    draw: Draw, pairs: Sequence[InputPair], *, runs: int, rng: np.random.Generator, alpha: float = 1e-6
) -> SpentEtaReport:
    """Lower bounds on the η spent, over chosen pairs.

    Args:
        draw: The implementation; runs must be independent of each other, the tokens of one run need not be.
        pairs: Inputs to tell apart. Choose them before looking at outputs.
        runs: Runs of each input of each pair; half choose, half test.
        rng: Generator of the draws.
        alpha: Error rate, as in `SpentEtaReport`.

    Raises:
        AuditError: No pair, a pair that the guarantee says nothing about, or too few runs.
    """
    if not pairs or runs < 4 or not 0 < alpha < 1:
        raise AuditError(
            f"an audit of the spent η needs a pair, 4 runs and 0 < alpha < 1, got pairs={len(pairs)} runs={runs}"
        )
    found = []
    for position, pair in enumerate(pairs):
        if not _LEAST_DISTANCE < pair.distance < math.inf or len(pair.left) != len(pair.right) or not pair.left:
            raise AuditError(
                f"pair {position} must be two texts of equally many tokens at a distance above 0 that is finite, "
                f"got distance={pair.distance}; the guarantee bounds no other"
            )
        left, right = (
            draw(np.tile(np.array(tokens, dtype=np.int64), (runs, 1)), rng) for tokens in (pair.left, pair.right)
        )
        found.append(_compute_bound(pair, left, right, level=alpha / (6 * len(pairs))))
    return SpentEtaReport(found=tuple(sorted(found, key=lambda spent: -spent.lower)), alpha=alpha)


def draw_independently(mechanism: Mechanism) -> Draw:
    """The draws of a mechanism of ours, all tokens in one call, as a privatizer makes them."""

    def draw(token_ids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        return mechanism.privatize(token_ids.ravel(), rng=rng).reshape(token_ids.shape)

    return draw


def pair_tokens(
    mechanism: Mechanism, pairs: Sequence[tuple[int, int]], *, vocabulary: Vocabulary | None = None
) -> tuple[InputPair, ...]:
    """Single tokens at their distance in the metric of the mechanism's guarantee; with a table, with their δ(0)."""
    left, right = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    distances = mechanism.distances(left, right)
    return tuple(
        InputPair(
            left=(x,),
            right=(other,),
            distance=float(distance),
            variation=1.0 if vocabulary is None else _bound_largest_variation(mechanism, float(distance), vocabulary),
        )
        for (x, other), distance in zip(pairs, distances, strict=True)
    )


def _bound_largest_variation(mechanism: Mechanism, distance: float, vocabulary: Vocabulary) -> float:
    """δ(0) of two tokens at this distance; 1 where the mechanism has no proved loss."""
    promise = find_promise(mechanism.setting.name)
    if promise is None or not math.isfinite(distance):
        return 1.0
    loss = promise.loss(mechanism.setting, distance=distance, dimension=vocabulary.dimension, step=None)
    variation: float = loss.delta(0.0)
    return variation


def choose_near_pairs(mechanism: Mechanism, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """Some common words and their nearest neighbours that the guarantee bounds: near pairs show most."""
    words = weigh_common_words(vocabulary, count=_WORDS).token_ids
    near, _ = find_nearest_tokens(
        vocabulary.embeddings[words].astype(np.float64),
        embeddings=vocabulary.embeddings,
        eligible=vocabulary.eligible,
        count=2,
    )
    others = np.where(near[:, 0] == words, near[:, -1], near[:, 0])
    distances = mechanism.distances(words, others)
    bounded = np.flatnonzero(np.isfinite(distances) & (distances > 0))
    order = bounded[np.argsort(distances[bounded], kind="stable")][:_NEAREST_PAIRS]
    return [(int(words[i]), int(others[i])) for i in order]


def clopper_pearson(hits: int, runs: int, *, level: float) -> tuple[float, float]:
    """A lower and an upper bound of a probability, each wrong at most `level` of the time."""
    low = float(stats.beta.ppf(level, hits, runs - hits + 1)) if hits else 0.0
    high = float(stats.beta.isf(level, hits + 1, runs - hits)) if hits < runs else 1.0
    return low, high


@dataclass(frozen=True, eq=False)
class _Counts:
    """How often each output came up for one input, in the half of the runs that chooses and in the half that tests."""

    choose: NDArray[np.int64]
    test: NDArray[np.int64]


def _compute_bound(pair: InputPair, left: NDArray[np.int64], right: NDArray[np.int64], *, level: float) -> SpentEta:
    """The better of the two directions; each of the six ends of intervals is wrong at most `level` of the time."""
    runs, half = len(left), len(left) // 2
    codes = _number_runs(np.concatenate([left, right]))
    size = int(codes.max()) + 1
    first, second = (
        _Counts(np.bincount(part[:half], minlength=size), np.bincount(part[half:], minlength=size))
        for part in (codes[:runs], codes[runs:])
    )
    swapped = replace(pair, left=pair.right, right=pair.left)
    variation = _bound_variation(first, second, level=level)
    directions = (
        _bound_one_direction(pair, first, second, variation=variation, level=level),
        _bound_one_direction(swapped, second, first, variation=variation, level=level),
    )
    return max(directions, key=lambda spent: spent.lower)


def _bound_variation(counts: _Counts, others: _Counts, *, level: float) -> float:
    """The total variation is at least this: the set is the outputs that came up more often for the first input."""
    chosen = counts.choose > others.choose
    runs = int(counts.test.sum())
    low, _ = clopper_pearson(int(counts.test[chosen].sum()), runs, level=level)
    _, high = clopper_pearson(int(others.test[chosen].sum()), runs, level=level)
    return max(0.0, low - high)


def _number_runs(outputs: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number from 0 for each run, equal where all of its tokens are, (n, k) -> (n,)."""
    base, tokens = int(outputs.max()) + 1, outputs.shape[1]
    if base**tokens < 2**62:  # one number for all tokens: rows are sorted far more slowly than numbers
        outputs = (outputs @ (base ** np.arange(tokens, dtype=np.int64)))[:, None]
    codes: NDArray[np.int64] = np.unique(outputs, axis=None if outputs.shape[1] == 1 else 0, return_inverse=True)[1]
    return codes.ravel()


def _bound_one_direction(
    pair: InputPair, counts: _Counts, others: _Counts, *, variation: float, level: float
) -> SpentEta:
    chosen = _choose_set(counts.choose, others.choose, level=level)
    hits, other_hits, runs = int(counts.test[chosen].sum()), int(others.test[chosen].sum()), int(counts.test.sum())
    low, _ = clopper_pearson(hits, runs, level=level)
    _, high = clopper_pearson(other_hits, runs, level=level)
    # Every output of one input in the set, and none of the other's.
    most, _ = clopper_pearson(runs, runs, level=level)
    _, least = clopper_pearson(0, runs, level=level)
    return SpentEta(
        pair=pair,
        lower=math.log(low / high) / pair.distance if low > 0 else -math.inf,
        largest=math.log(most / least) / pair.distance,
        variation=variation,
        outputs=len(chosen),
        hits=hits,
        other_hits=other_hits,
        runs=runs,
    )


def _choose_set(counts: NDArray[np.int64], others: NDArray[np.int64], *, level: float) -> NDArray[np.int64]:
    """The outputs of largest ratio, as many as give the largest bound on these runs; which is why others test it."""
    order = np.argsort(-(counts + 0.5) / (others + 0.5), kind="stable")
    hits, other_hits = np.cumsum(counts[order]), np.cumsum(others[order])
    marks = np.linspace(0, hits[-1], _SETS + 1)[1:]
    sizes = np.unique(np.minimum(np.searchsorted(hits, marks), len(order) - 1))
    runs = int(counts.sum())
    best, best_bound = int(sizes[0]), -math.inf
    for size in sizes.tolist():
        low, _ = clopper_pearson(int(hits[size]), runs, level=level)
        _, high = clopper_pearson(int(other_hits[size]), runs, level=level)
        bound = math.log(low / high) if low > 0 else -math.inf
        if bound > best_bound:
            best, best_bound = size, bound
    return order[: best + 1]
