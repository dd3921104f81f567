"""Choosing η for a target, because a value of η means nothing by itself and does not carry over to another table.

Targets: a share of tokens that stay themselves, or ε at a distance. For whoever is about to choose a model,
`measure_figures` says what η means in its vocabulary, and how fast it goes. The success of an attack as target is in
`rapt.audit.calibration`. How a target is searched, and what the reported error is, stands in `calibration_search`.

Everything here is public: the table, the mechanism, and the weighting unless it says that it is private.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from rapt.arguments import check_arguments
from rapt.drawing import Figure, Line, draw_picture
from rapt.errors import MechanismError, UsageError
from rapt.local.calibration_search import (
    MakeMechanism,
    UnchangedCurve,
    check_share,
    compute_share_error,
    compute_share_interval,
    find_crossing,
    find_crossings,
    round_down,
)
from rapt.local.distances import TableDistances, measure_distances
from rapt.local.guarantee import DELTA
from rapt.local.mechanisms import find_promise, find_space, make_mechanism
from rapt.local.mechanisms.interface import Mechanism
from rapt.local.privacy_loss import PrivacyLoss, choose_loss_step, compose
from rapt.local.text_page import write_scientific
from rapt.local.vocabulary import Vocabulary
from rapt.local.weighting import Weighting, weigh_running_text
from rapt.wire.model_files import is_short

DRAWS: Final = 4096
# Named distances, by the attribute of `TableDistances`.
NAMED_DISTANCES: Final = {
    "near-neighbour": "nearest_5",
    "median-neighbour": "nearest_50",
    "far-neighbour": "nearest_95",
    "median": "median",
    "largest": "largest_bound",
}
# Attacks whose success is a target, in words.
NAMED_ATTACKS: Final[Mapping[str, str]] = {
    "bayes-success": "the context-free Bayes attack",
    "attack-success": "the strongest attack that trains no network",
}
# Points of the curve on either side of the chosen η: from half of it to its double.
CURVE_STEPS: Final = 4

# Share of η to which a target is met where nothing is simulated.
_EXACT: Final = 1e-5

Target = Literal["unchanged", "epsilon", "bayes-success", "attack-success"]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Measurements of one η.

    Attributes:
        eta: The η of this point.
        unchanged, low, high: Share of tokens that stay themselves, with its 95 % interval.
        epsilon_neighbour, epsilon_median: Pure ε, nats, at the median distance to the nearest neighbour and of two
            tokens; None where no statement is known for the mechanism.
        delta_epsilon_neighbour, delta_epsilon_median: The same at δ = 10^-5.
        success, success_low, success_high: Success of the attack with its 95 % interval, where it was measured.
    """

    eta: float
    unchanged: float
    low: float
    high: float
    epsilon_neighbour: float | None
    epsilon_median: float | None
    delta_epsilon_neighbour: float | None
    delta_epsilon_median: float | None
    success: float | None = None
    success_low: float | None = None
    success_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """An η for a target, and what lies around it.

    Attributes:
        target: Kind of target that was asked for.
        wanted: Value of the target.
        at: Inputs between which a target ε holds, in words.
        distance: Distance of these inputs.
        delta: δ of a target ε; None for the pure bound.
        model, vocabulary_hash: Model and vocabulary whose table η belongs to.
        mechanism: Name of the mechanism.
        eta: The answer, rounded down to four digits.
        eta_low, eta_high: 95 % interval of it by the error of the simulation; None where there is none, or no end.
        reached, reached_low, reached_high: The target's value at `eta`: ε itself, or measured with draws of its own.
        draws: Draws of each simulation.
        weighting: Tokens over which shares are taken, in words.
        depends_on_private_data: Whether the weighting was counted in private text, so that η says something about it.
        curve: Around `eta`, rising.
    """

    target: Target
    wanted: float
    at: str | None = field(default=None, repr=False)
    distance: float | None = field(default=None, repr=False)
    delta: float | None = field(default=None, repr=False)
    model: str = field(repr=False)
    vocabulary_hash: str = field(repr=False)
    mechanism: str
    eta: float
    eta_low: float | None = field(repr=False)
    eta_high: float | None = field(repr=False)
    reached: float
    reached_low: float = field(repr=False)
    reached_high: float = field(repr=False)
    draws: int = field(repr=False)
    weighting: str = field(repr=False)
    depends_on_private_data: bool = field(repr=False)
    curve: tuple[CurvePoint, ...] = field(repr=False)


@check_arguments
def calibrate_unchanged(
    make: MakeMechanism,
    vocabulary: Vocabulary,
    *,
    share: float,
    weighting: Weighting,
    rng: np.random.Generator,
    draws: int = DRAWS,
    curve_steps: int = CURVE_STEPS,
    on_progress: Callable[[int], None] | None = None,
) -> Calibration:
    """The η at which this share of tokens stays unchanged.

    Args:
        make: The mechanism at an η.
        vocabulary: Vocabulary of the mechanism.
        share: Target, between 0 and 1.
        weighting: Tokens over which the share is taken.
        rng: Source of the draws; nothing private depends on it.
        draws: Draws of each simulation; four times as many halve the error.
        curve_steps: Points of the curve on either side of the answer.
        on_progress: Called with the number of η tried so far.

    Raises:
        UsageError: The target is no share, no η reaches it, or there are too few draws.
    """
    check_share(share, name="unchanged")
    name = make(guess_eta(vocabulary, measure_distances(vocabulary))).setting.name
    distances = measure_distances(find_space(name, vocabulary))
    curve = UnchangedCurve(make, weighting, draws=draws, rng=rng, on_progress=on_progress)
    start = guess_eta(vocabulary, distances)
    eta, low, high = find_crossings(curve, target=share, start=start, margin=compute_share_error(share, draws))
    points = measure_curve(
        make,
        vocabulary,
        eta=eta,
        weighting=weighting,
        rng=rng,
        draws=draws,
        steps=curve_steps,
        distances=distances,
    )
    reached = points[curve_steps]
    return Calibration(
        target="unchanged",
        wanted=share,
        model=vocabulary.model,
        vocabulary_hash=vocabulary.hash,
        mechanism=make(eta).setting.name,
        eta=eta,
        eta_low=low,
        eta_high=high,
        reached=reached.unchanged,
        reached_low=reached.low,
        reached_high=reached.high,
        draws=draws,
        weighting=weighting.source,
        depends_on_private_data=weighting.private,
        curve=points,
    )


@check_arguments
def calibrate_epsilon(
    make: MakeMechanism,
    vocabulary: Vocabulary,
    *,
    epsilon: float,
    at: str,
    apart: Sequence[float],
    delta: float | None = None,
    weighting: Weighting,
    rng: np.random.Generator,
    draws: int = DRAWS,
    curve_steps: int = CURVE_STEPS,
) -> Calibration:
    """The largest η of four digits at which ε is at most this at a distance.

    Args:
        make: The mechanism at an η.
        vocabulary: Vocabulary of the mechanism.
        epsilon: Target, nats, above 0.
        at: Inputs between which ε holds, in words.
        apart: Distance of their tokens, place by place: one for two tokens.
        delta: δ at which ε is meant; None for the pure bound.
        weighting: Tokens over which the curve's shares are taken.
        rng: Source of the draws; nothing private depends on it.
        draws: Draws of each simulation.
        curve_steps: Points of the curve on either side of the answer.

    Raises:
        UsageError: The target or the distance is not a finite number above 0.
        MechanismError: No statement is known for the mechanism, or δ is not in [0, 1].
    """
    if not (0 < epsilon < math.inf) or not all(0 <= part < math.inf for part in apart) or not sum(apart) > 0:
        raise UsageError(
            f"a target epsilon and its distance must be finite and above 0, got epsilon={epsilon!r} "
            f"distance={math.fsum(apart)!r}; choose other inputs"
        )

    def stated(eta: float) -> float:
        loss = compute_stated_loss(make(eta), vocabulary, apart=apart)
        if loss is None:
            raise MechanismError(
                f"there is no privacy statement for mechanism={make(eta).setting.name!r}, so no epsilon to aim at; "
                "aim at a share of unchanged tokens"
            )
        return loss.bound if delta is None else loss.epsilon(delta)

    # The pure bound is linear in η, so that is where it ends; an ε at a δ is smaller and ends farther out.
    start, factor = (1 - _EXACT) * epsilon / math.fsum(apart), 1 + 3 * _EXACT if delta is None else 1.1
    eta = round_down(find_crossing(stated, target=epsilon, start=start, factor=factor, tolerance=_EXACT))
    reached = stated(eta)
    return Calibration(
        target="epsilon",
        wanted=epsilon,
        at=at,
        distance=math.fsum(apart),
        delta=delta,
        model=vocabulary.model,
        vocabulary_hash=vocabulary.hash,
        mechanism=make(eta).setting.name,
        eta=eta,
        eta_low=None,
        eta_high=None,
        reached=reached,
        reached_low=reached,
        reached_high=reached,
        draws=draws,
        weighting=weighting.source,
        depends_on_private_data=False,
        curve=measure_curve(make, vocabulary, eta=eta, weighting=weighting, rng=rng, draws=draws, steps=curve_steps),
    )


def measure_curve(
    make: MakeMechanism,
    vocabulary: Vocabulary,
    *,
    eta: float,
    weighting: Weighting,
    rng: np.random.Generator,
    draws: int,
    steps: int = CURVE_STEPS,
    distances: TableDistances | None = None,
) -> tuple[CurvePoint, ...]:
    """Points from half of `eta` to its double, `eta` in the middle, with draws of their own."""
    space = find_space(make(eta).setting.name, vocabulary)
    found = measure_distances(space) if distances is None else distances
    share_at = UnchangedCurve(make, weighting, draws=draws, rng=rng)
    points = []
    for step in range(-steps, steps + 1):
        here = eta * 2.0 ** (step / max(1, steps))
        low, high = compute_share_interval(share_at(here), draws)
        near = compute_stated_loss(make(here), vocabulary, apart=[found.nearest_50])
        middle = compute_stated_loss(make(here), vocabulary, apart=[found.median])
        points.append(
            CurvePoint(
                eta=here,
                unchanged=share_at(here),
                low=low,
                high=high,
                epsilon_neighbour=None if near is None else near.bound,
                epsilon_median=None if middle is None else middle.bound,
                delta_epsilon_neighbour=None if near is None else near.epsilon(DELTA),
                delta_epsilon_median=None if middle is None else middle.epsilon(DELTA),
            )
        )
    return tuple(points)


def compute_stated_loss(mechanism: Mechanism, vocabulary: Vocabulary, *, apart: Sequence[float]) -> PrivacyLoss | None:
    """The privacy loss of tokens at these distances, as the privacy statement has it; None for an unknown mechanism."""
    promise = find_promise(mechanism.setting.name)
    if promise is None:
        return None
    step = None if len(apart) == 1 else choose_loss_step(mechanism.setting.eta * max(apart))
    losses = [
        promise.loss(mechanism.setting, distance=part, dimension=vocabulary.dimension, step=step) for part in apart
    ]
    return compose([(loss, 1) for loss in losses])


def guess_eta(vocabulary: Vocabulary, distances: TableDistances) -> float:
    """An η of the right size: noise along a line, √d/η, of a quarter of the distance to the nearest neighbour."""
    return 4 * math.sqrt(vocabulary.dimension) / (distances.nearest_50 or 1.0)


def add_success(points: Sequence[CurvePoint], found: Callable[[float], tuple[float, float, float]]) -> list[CurvePoint]:
    """The points with the success of an attack at each: value, low, high."""
    filled = []
    for point in points:
        value, low, high = found(point.eta)
        filled.append(replace(point, success=value, success_low=low, success_high=high))
    return filled


def draw_calibration(found: Calibration) -> str:
    """The picture, as the text of an SVG file; the chosen η is marked."""
    across = "η, 1/distance in the embedding table (logarithmic)"
    level = None if found.target == "epsilon" else 100 * found.wanted
    figures = [
        Figure(
            title="Shares",
            across=across,
            up="share of tokens, %",
            lines=_make_share_lines(found),
            level=level,
            top=100.0,
            mark=found.eta,
        )
    ]
    if epsilons := _make_epsilon_lines(found.curve):
        figures.append(Figure(title="ε", across=across, up="ε, nats", lines=epsilons, mark=found.eta))
    return draw_picture(
        figures,
        title=f"What η does on {found.model}, mechanism {found.mechanism}",
        subtitle=f"shares over {found.weighting}",
        description=_describe_search(found),
    )


def _make_share_lines(found: Calibration) -> tuple[Line, ...]:
    curve = found.curve
    lines = [
        Line(
            name="unchanged, with 95 % interval",
            style="first",
            points=tuple((point.eta, 100 * point.unchanged) for point in curve),
            ends=tuple((100 * point.low, 100 * point.high) for point in curve),
        )
    ]
    if all(point.success is not None for point in curve):
        lines.append(
            Line(
                name=f"found by {NAMED_ATTACKS[found.target]}",
                style="second",
                points=tuple((point.eta, 100 * (point.success or 0.0)) for point in curve),
                ends=tuple((100 * (point.success_low or 0.0), 100 * (point.success_high or 0.0)) for point in curve),
            )
        )
    return tuple(lines)


def _make_epsilon_lines(curve: Sequence[CurvePoint]) -> tuple[Line, ...]:
    delta = write_scientific(1e-5)
    columns = [
        ("nearest neighbour, pure", "first dashed", [point.epsilon_neighbour for point in curve]),
        (f"at δ = {delta}", "first", [point.delta_epsilon_neighbour for point in curve]),
        ("two tokens, pure", "second dashed", [point.epsilon_median for point in curve]),
        (f"at δ = {delta}", "second", [point.delta_epsilon_median for point in curve]),
    ]
    return tuple(
        Line(
            name=name,
            style=style,
            points=tuple((point.eta, value) for point, value in zip(curve, values, strict=True) if value is not None),
        )
        for name, style, values in columns
        if None not in values
    )


def _describe_search(found: Calibration) -> str:
    first, last = found.curve[0], found.curve[-1]
    return (
        f"From η = {first.eta:.4g} to {last.eta:.4g} the share of unchanged tokens rises from "
        f"{100 * first.unchanged:.1f} to {100 * last.unchanged:.1f} percent. Chosen: η = {found.eta:g}."
    )


_DRAWS_OF_FIGURES: Final = 2048


@dataclass(frozen=True, kw_only=True)
class VocabularyFigures:
    """What can be said of a vocabulary without anybody's text.

    Attributes:
        tokens: V, rows of the table.
        eligible: Tokens that may be an output.
        dimension: e, numbers of a row.
        table_bytes: Bytes of the table as a bundle holds it.
        half_eta: η of the Laplace mechanism at which half of running public text stays; None where no η reaches that.
        tokens_a_second: Tokens that this machine privatizes in a second there.
    """

    tokens: int
    eligible: int
    dimension: int
    table_bytes: int
    half_eta: float | None
    tokens_a_second: float | None


def measure_figures(
    vocabulary: Vocabulary, *, rng: np.random.Generator, on_progress: Callable[[int], None] | None = None
) -> VocabularyFigures:
    """Measure the figures, in seconds for a table of usual size.

    Args:
        vocabulary: Vocabulary to measure.
        rng: Source of the draws; nothing private depends on it.
        on_progress: Called with the number of η tried so far.
    """

    def make(eta: float) -> Mechanism:
        return make_mechanism("laplace", vocabulary=vocabulary, eta=eta)

    eta, speed = None, None
    weighting = weigh_running_text(vocabulary)
    curve = UnchangedCurve(make, weighting, draws=_DRAWS_OF_FIGURES, rng=rng, on_progress=on_progress)
    try:
        eta = find_crossing(curve, target=0.5, start=guess_eta(vocabulary, measure_distances(vocabulary)), factor=2.0)
    except UsageError:  # tokens that are one point of the table stay or go by chance at any η
        pass
    else:
        mechanism, tokens = make(eta), weighting.sample(_DRAWS_OF_FIGURES)
        begin = time.perf_counter()
        mechanism.privatize(tokens, rng=rng)
        speed = _DRAWS_OF_FIGURES / (time.perf_counter() - begin)
    return VocabularyFigures(
        tokens=vocabulary.size,
        eligible=len(vocabulary.eligible),
        dimension=vocabulary.dimension,
        table_bytes=(2 if is_short(vocabulary.embeddings) else 4) * vocabulary.embeddings.size,
        half_eta=eta,
        tokens_a_second=speed,
    )
