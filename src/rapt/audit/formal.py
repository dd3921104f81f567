"""The formal side of a setting, beside what attacks reach: loss curves, the exact largest slope, the η that is spent.

- A *loss curve* is ε over δ, from the exact privacy-loss distribution where the mechanism has one (`privacy_loss`),
  never understated; for the others the pure bound composed, which is all that is known.
- The *largest slope* of a closed channel is sup (log P(y|x) - log P(y|x')) / d(x, x') over all outputs: over all pairs
  of tokens in a small table, over near pairs of common words in a large one, where it is a lower bound of the whole.
- The *program* that runs here is drawn from: the η that it spends is bounded from below, and its outputs are compared
  with the stated channel (`program_audit`). It is about the program and not about a file, whose noise is drawn already.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.program_audit import Fit, audit_program
from rapt.audit.spent_eta import choose_near_pairs, draw_independently
from rapt.errors import MechanismError
from rapt.local.distances import measure_distances
from rapt.local.mechanisms import Mechanism, find_promise, find_space, remake_mechanism
from rapt.local.mechanisms.interface import find_closed_channel
from rapt.local.privacy_loss import compose
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting

# Below 10⁻⁷ the allowance for mass that was cut off makes ε of a text needlessly large (docs/guarantee.md).
DELTAS: Final = tuple(10.0**-power for power in range(7, 0, -1))
TEXT_TOKENS: Final = 20
# Draws of each token of a pair; on MiniLM's table about a second for all.
RUNS: Final = 2_000
# Tokens beside those of the pairs whose outputs are compared with the stated channel, and draws of each.
_FIT_TOKENS: Final = 4
_FIT_RUNS: Final = 300
# A table of so few tokens is looked at whole: all pairs, all outputs.
SMALL_TABLE: Final = 600
# Stated with the largest slope: what rounding of the two log probabilities can add.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """ε over δ for two inputs.

    Attributes:
        name: Kind of inputs, in words.
        points: (δ, ε), δ rising.
        pure: ε at δ = 0.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    pure: float


@dataclass(frozen=True, kw_only=True)
class LargestSlope:
    """The largest slope found in a closed channel.

    Attributes:
        value: 1/distance; None where an output of one token cannot follow from the other, so that no number is enough.
        pairs: Pairs of tokens that were looked at, each in both directions.
        whole: Whether those are all pairs of the table.
    """

    value: float | None
    pairs: int
    whole: bool


@dataclass(frozen=True, kw_only=True)
class SpentBound:
    """A bound that the outputs of the program show.

    Attributes:
        lower: Lower bound on the η spent, 1/distance, at least 0.
        largest: Largest bound that so many runs could have shown, 1/distance.
        pairs: Pairs of tokens.
        runs: Draws of each token.
        fit: Comparison with the stated channel; None where the mechanism has no second implementation.
        defects: Evidence against the statement, as ends of a sentence about the program.
        alpha: Probability, at most, that a sound program is accused.
    """

    lower: float
    largest: float
    pairs: int
    runs: int
    fit: Fit | None
    defects: tuple[str, ...]
    alpha: float


@dataclass(frozen=True, kw_only=True)
class FormalSide:
    """Knowledge about a setting without any attack.

    Attributes:
        eta: Stated η.
        curves: None for a mechanism without a proved guarantee.
        pure_only: Whether the curves know no more than the pure bound.
        slope: None where the channel has no closed form.
        spent: None where no pair is bounded.
    """

    eta: float
    curves: tuple[LossCurve, ...]
    pure_only: bool
    slope: LargestSlope | None
    spent: SpentBound | None


def measure_formal_side(
    vocabulary: Vocabulary, setting: MechanismSetting, *, seed: int, runs: int = RUNS
) -> FormalSide:
    """Everything above for one setting.

    Args:
        vocabulary: Vocabulary whose embedding table defines the distances that η refers to.
        setting: Mechanism setting of the manifest.
        seed: Seed of the draws behind the η spent.
        runs: Draws of each token of a pair.
    """
    try:
        mechanism = remake_mechanism(setting, vocabulary=vocabulary, allow_unproved=True)
    except MechanismError:  # made from a public file that is not here
        mechanism = None
    promise = find_promise(setting.name)
    return FormalSide(
        eta=setting.eta,
        curves=compute_loss_curves(vocabulary, setting),
        pure_only=promise is not None and promise.pure_only,
        slope=None if mechanism is None else find_largest_slope(mechanism, vocabulary),
        spent=None if mechanism is None else _bound_spent(mechanism, vocabulary, seed=seed, runs=runs),
    )


def compute_loss_curves(vocabulary: Vocabulary, setting: MechanismSetting) -> tuple[LossCurve, ...]:
    """The curves of a token, and of a text, at distances that every statement speaks of; none without a proof."""
    promise = find_promise(setting.name)
    if promise is None:
        return ()
    distances = measure_distances(find_space(setting.name, vocabulary))
    curves = []
    for name, distance, tokens in (
        ("a token, its nearest neighbour", distances.nearest_50, 1),
        ("two tokens at the median distance", distances.median, 1),
        (f"{TEXT_TOKENS} tokens, each its nearest neighbour", distances.nearest_50, TEXT_TOKENS),
    ):
        if distance <= 0:
            continue
        one = promise.loss(setting, distance=distance, dimension=vocabulary.dimension, step=None)
        loss = compose([(one, tokens)])
        points = tuple((delta, loss.epsilon(delta)) for delta in DELTAS)
        curves.append(LossCurve(name=name, points=points, pure=loss.bound))
    return tuple(curves)


def find_largest_slope(mechanism: Mechanism, vocabulary: Vocabulary) -> LargestSlope | None:
    """The largest slope of a mechanism with a closed channel, over all outputs; None without one."""
    channel = find_closed_channel(mechanism)
    if channel is None:
        return None
    whole = vocabulary.size <= SMALL_TABLE
    if whole:
        left, right = np.triu_indices(vocabulary.size, k=1)
    else:
        left, right = np.array(choose_near_pairs(mechanism, vocabulary), dtype=np.int64).reshape(-1, 2).T
    distances = mechanism.distances(left, right)
    bounded = np.isfinite(distances) & (distances > 0)
    left, right, distances = left[bounded], right[bounded], distances[bounded]
    if not len(left):
        return None
    largest = 0.0
    for start in range(0, len(left), SMALL_TABLE):
        part = slice(start, start + SMALL_TABLE)
        gap = _find_largest_gap(channel(left[part]), channel(right[part]))
        largest = max(largest, float((gap / distances[part]).max()))
    value = largest * (1 + _ROUNDING) if isfinite(largest) else None
    return LargestSlope(value=value, pairs=len(left), whole=whole)


def _find_largest_gap(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Max over outputs of |log P(y|x) - log P(y|x')|, (pairs,); an output that neither can give does not count."""
    possible = np.isfinite(first) | np.isfinite(second)
    gap = np.abs(np.subtract(first, second, out=np.zeros_like(first), where=possible))
    largest: NDArray[np.float64] = gap.max(axis=1)
    return largest


def _bound_spent(mechanism: Mechanism, vocabulary: Vocabulary, *, seed: int, runs: int) -> SpentBound | None:
    pairs = choose_near_pairs(mechanism, vocabulary)
    if not pairs:
        return None
    found = audit_program(
        draw_independently(mechanism),
        mechanism=mechanism,
        vocabulary=vocabulary,
        pairs=pairs,
        runs=runs,
        rng=np.random.default_rng([seed, 29]),
        fit_tokens=_FIT_TOKENS,
        fit_runs=_FIT_RUNS,
    )
    return SpentBound(
        lower=max(0.0, found.spent.lower),
        largest=found.spent.largest,
        pairs=len(pairs),
        runs=runs,
        fit=found.fit,
        defects=found.defects,
        alpha=found.alpha,
    )
