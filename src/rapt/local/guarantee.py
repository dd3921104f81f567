"""What a setting promises, in numbers and words: the privacy statement.

A value of η means nothing without its table, and a pure bound η·d is a very loose one in hundreds of dimensions, so a
statement gives, beside each other: ε = η·d at distances that occur in the table, and (ε, δ) and the best possible
guess from the exact privacy-loss distribution (`privacy_loss`), for one token and for a text. It ends with what the
mechanism leaves open. The numbers bound every attack on the tokens, whatever else the attacker knows; how far a given
attack gets is measured by the audit.

An unknown mechanism, or an unknown parameter of a known one, is refused: no promise is better than a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from rapt.errors import MechanismError, UsageError
from rapt.local.deniability import PlausibleDeniability, UnchangedShare
from rapt.local.distances import TableDistances, table_distances
from rapt.local.mechanisms import MECHANISMS
from rapt.local.mechanisms.interface import GuaranteeStatus
from rapt.local.privacy_loss import PrivacyLoss, compose, laplace_loss, loss_step, pure_loss
from rapt.local.statement import AS_GOOD_AS_TEXT, UNIT, Bound, Noise, PrivacyStatement, not_protected, reading
from rapt.local.text_page import nats_up
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import LabelPrivacy, MechanismSetting, PlainTokens, Randomness, Targets, check_eta

__all__ = ["PROMISES", "PrivacyStatement", "Promise", "privacy_statement"]

DELTA: Final = 1e-5
TEXT_LENGTHS: Final = (10, 20)


class TokenLoss(Protocol):
    """The privacy loss of one token against another at a distance; `step` as in `laplace_loss`."""

    def __call__(
        self, setting: MechanismSetting, *, distance: float, dimension: int, step: float | None
    ) -> PrivacyLoss: ...


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a statement has to know about a mechanism.

    Attributes:
        status: Of its guarantee.
        parameters: Names of all its parameters; a setting with others is refused.
        loss: Privacy loss of one token.
        noise: Size of its noise in d dimensions; None where there is none, or where it depends on the direction.
        pure_only: Whether `loss` knows no more than the pure bound.
        remark: What a reader has to know about its metric.
    """

    status: GuaranteeStatus
    parameters: frozenset[str]
    loss: TokenLoss
    noise: Callable[[MechanismSetting, int], Noise] | None
    pure_only: bool
    remark: Callable[[MechanismSetting], str] | None = None


def _laplace_loss(setting: MechanismSetting, *, distance: float, dimension: int, step: float | None) -> PrivacyLoss:
    return laplace_loss(eta=setting.eta, distance=distance, dimension=dimension, step=step)


def _laplace_noise(setting: MechanismSetting, dimension: int) -> Noise:
    # ‖z‖ ~ Gamma(d, 1/η), so E‖z‖ = d/η and E‖z‖² = d(d+1)/η², the same share of it in each of the d directions.
    length = dimension / setting.eta
    if not math.isfinite(length):
        raise MechanismError(f"eta must give noise of finite length, got eta={setting.eta!r}; take a larger one")
    return Noise(mean_length=length, deviation_along_a_line=math.sqrt(dimension + 1) / setting.eta)


def _pure_loss(setting: MechanismSetting, *, distance: float, dimension: int, step: float | None) -> PrivacyLoss:
    return pure_loss(epsilon=setting.eta * distance, step=step)


def _class_loss(setting: MechanismSetting, *, distance: float, dimension: int, step: float | None) -> PrivacyLoss:
    # The two tokens may be of different classes, at any distance.
    penalty = _parameter(setting, "penalty", at_most=math.inf)
    return pure_loss(epsilon=setting.eta * (distance + penalty), step=step)


def _class_remark(setting: MechanismSetting) -> str:
    nats = setting.eta * _parameter(setting, "penalty", at_most=math.inf)
    return (
        f"classes: every bound here allows the two tokens to be of different word classes, which adds {nats_up(nats)} "
        "to ε; for two of one class it is so much lower."
    )


def _stretched_slope(setting: MechanismSetting) -> float:
    # No eigenvalue of S is below 1 - m, so no distance in its metric exceeds the Euclidean one over sqrt(1 - m).
    return setting.eta / math.sqrt(1 - _parameter(setting, "mixing", at_most=0.999))


def _stretched_loss(setting: MechanismSetting, *, distance: float, dimension: int, step: float | None) -> PrivacyLoss:
    # Noise at a larger distance is told apart more easily: Laplace noise of a smaller scale plus independent noise is
    # Laplace noise of a larger one, because the Gamma law of its variance is self-decomposable.
    return laplace_loss(eta=_stretched_slope(setting), distance=distance, dimension=dimension, step=step)


def _stretched_remark(setting: MechanismSetting) -> str:
    return (
        "metric: the noise is longer along some directions of the table than along others. Every bound here holds for "
        f"any direction, with the slope {_stretched_slope(setting):.4g} per Euclidean distance in place of η; most "
        "pairs are protected better."
    )


def _parameter(setting: MechanismSetting, name: str, *, at_most: float) -> float:
    value = setting.parameters[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= at_most:
        raise MechanismError(f"{name} must be a number from 0 to {at_most:g}, got {name}={value!r}; privatize again")
    return float(value)


# One for each mechanism that is proved for all pairs of tokens. Vickrey and the rank fix compute their output from the
# noisy vector, or the token, of `laplace`, so its privacy loss bounds theirs.
_LAPLACE: Final = Promise(
    status="proved", parameters=frozenset({"eta"}), loss=_laplace_loss, noise=_laplace_noise, pure_only=False
)
_PURE: Final = Promise(status="proved", parameters=frozenset({"eta"}), loss=_pure_loss, noise=None, pure_only=True)
PROMISES: Final[Mapping[str, Promise]] = {
    "laplace": _LAPLACE,
    "vickrey": replace(_LAPLACE, parameters=frozenset({"eta", "tuning"})),
    "rank-fix": replace(_LAPLACE, parameters=frozenset({"eta", "decay"})),
    "mahalanobis": replace(
        _LAPLACE,
        parameters=frozenset({"eta", "metric", "mixing"}),
        loss=_stretched_loss,
        noise=None,
        remark=_stretched_remark,
    ),
    "exponential": replace(_PURE, parameters=frozenset({"eta", "beta", "calibrated", "prior"})),
    "soft-pos": replace(
        _PURE,
        parameters=frozenset({"eta", "beta", "calibrated", "metric", "penalty", "tags"}),
        loss=_class_loss,
        remark=_class_remark,
    ),
    "tem": replace(_PURE, parameters=frozenset({"eta", "outside"})),
    "santext": _PURE,
}


def privacy_statement(
    vocabulary: Vocabulary,
    setting: MechanismSetting,
    *,
    plain_tokens: PlainTokens,
    labels_sent: bool,
    word_pairs: Sequence[tuple[str, str]] = (),
    randomness: Randomness | None = None,
    unchanged: UnchangedShare | None = None,
    deniability: PlausibleDeniability | None = None,
    label_privacy: LabelPrivacy | None = None,
    two_texts: bool = False,
    targets: Targets | None = None,
) -> PrivacyStatement:
    """What `setting` promises on `vocabulary`, and what it does not.

    Args:
        vocabulary: Whose table η is measured in.
        setting: Mechanism and parameters, as a manifest states them.
        plain_tokens: As the manifest states them; public.
        labels_sent: Whether labels leave: in clear, unless `label_privacy` says otherwise.
        word_pairs: Words to state bounds for. They appear in the statement.
        randomness: As the manifest states it; None where no file is meant.
        unchanged: From `measure_unchanged`, to be shown as well.
        deniability: From `plausible_deniability`, to be shown as well.
        label_privacy: As the manifest states it; None where the labels sent are the true ones.
        two_texts: Whether texts are sent in pairs.
        targets: How texts to be generated are sent, if they are.

    Raises:
        MechanismError: The mechanism or one of its parameters is unknown, or η is outside its domain.
        UsageError: The two words of a pair have different numbers of tokens, or none.
    """
    promise = _promise(setting)
    noise = None if promise.noise is None else promise.noise(setting, vocabulary.dimension)
    distances = table_distances(vocabulary)

    def loss(distance: float, *, step: float | None = None) -> PrivacyLoss:
        return promise.loss(setting, distance=distance, dimension=vocabulary.dimension, step=step)

    references = [(near, loss(near.distance)) for near in _references(distances)]
    pairs = tuple(_bound(near.name, near.tokens, distance=near.distance, losses=[(one, 1)]) for near, one in references)
    texts = tuple(
        _bound(
            f"{near.name}_{length}",
            f"{length} tokens, {near.texts}",
            distance=near.distance * length,
            losses=[(one, length)],
        )
        for length in TEXT_LENGTHS
        for near, one in references
    )
    words = []
    for position, pair in enumerate(word_pairs):
        apart = word_distances(vocabulary, pair, position=position)
        step = loss_step(setting.eta * max(apart))
        losses = [(loss(distance, step=step), 1) for distance in apart]
        words.append(_bound(f"words_{position}", " / ".join(pair), distance=math.fsum(apart), losses=losses))
    return PrivacyStatement(
        protects=(randomness is None or randomness.insecure_seed is None)
        and (unchanged is None or unchanged.share < AS_GOOD_AS_TEXT),
        unit=UNIT,
        model=vocabulary.model,
        vocabulary_hash=vocabulary.hash,
        dimension=vocabulary.dimension,
        size=vocabulary.size,
        distances=distances,
        mechanism=setting,
        status=promise.status,
        noise=noise,
        delta=DELTA,
        pairs=pairs,
        texts=texts,
        word_pairs=tuple(words),
        unchanged=unchanged,
        deniability=deniability,
        plain_tokens=plain_tokens,
        labels_sent=labels_sent,
        label_privacy=label_privacy if labels_sent else None,
        randomness=randomness,
        reading=(
            *(() if promise.remark is None else (promise.remark(setting),)),
            *reading(pairs[0], texts[0], delta=DELTA, pure_only=promise.pure_only),
        ),
        not_protected=tuple(
            not_protected(
                plain_tokens, labels_sent=labels_sent, label_privacy=label_privacy, pairs=two_texts, targets=targets
            )
        ),
    )


def _promise(setting: MechanismSetting) -> Promise:
    if setting.name in MECHANISMS and setting.name not in PROMISES:
        kind = MECHANISMS[setting.name]
        raise MechanismError(
            f"there is no privacy statement for mechanism={setting.name!r}, because its guarantee is {kind.status}: "
            f"{kind.caveat}"
        )
    if setting.name not in PROMISES:
        raise MechanismError(
            f"there is no privacy statement for mechanism={setting.name!r}; choose one of {', '.join(PROMISES)}"
        )
    promise = PROMISES[setting.name]
    if setting.parameters.keys() != promise.parameters:
        raise MechanismError(
            f"mechanism={setting.name!r} must have exactly the parameters {', '.join(sorted(promise.parameters))}, "
            f"got {len(setting.parameters)}; upgrade rapt, or privatize again"
        )
    check_eta(setting.parameters["eta"])  # type: ignore[arg-type]  # it checks the type as well
    return promise


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """A distance that every statement speaks of, and how it is called there."""

    name: str
    tokens: str
    texts: str
    distance: float


def _references(distances: TableDistances) -> list[_Reference]:
    return [
        _Reference(
            name="nearest",
            tokens="a token, its nearest neighbour (median)",
            texts="each its nearest neighbour",
            distance=distances.nearest_50,
        ),
        _Reference(name="median", tokens="two tokens (median)", texts="each at the median", distance=distances.median),
        _Reference(
            name="largest",
            tokens="any two tokens (none are farther)",
            texts="each as far as can be",
            distance=distances.largest_bound,
        ),
    ]


def _bound(name: str, meaning: str, *, distance: float, losses: Sequence[tuple[PrivacyLoss, int]]) -> Bound:
    loss = compose(losses)
    return Bound(
        name=name,
        meaning=meaning,
        tokens=sum(count for _, count in losses),
        distance=distance,
        epsilon=loss.bound,
        epsilon_at_delta=loss.epsilon(DELTA),
        right_guess=(1 + loss.delta(0.0)) / 2,
    )


def word_distances(vocabulary: Vocabulary, pair: tuple[str, str], *, position: int) -> list[float]:
    """The distances of the tokens of two words, place by place."""
    left, right = vocabulary.encode(pair)
    if len(left) != len(right) or not left:
        raise UsageError(
            f"the words of pair {position} must have equally many tokens, at least 1, got {len(left)} and "
            f"{len(right)}: the number of tokens is not protected, so there is no bound; choose other words"
        )
    difference = vocabulary.embeddings[left].astype(np.float64) - vocabulary.embeddings[right]
    return [float(distance) for distance in np.linalg.norm(difference, axis=1)]
