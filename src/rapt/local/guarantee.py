"""Promise of a setting, in numbers and words: the privacy statement.

A value of η means nothing without its table, and a pure bound η·d is a very loose one in hundreds of dimensions, so a
statement gives, beside each other: ε = η·d at distances that occur in the table, and (ε, δ) and the best possible
guess from the exact privacy-loss distribution (`privacy_loss`), for one token and for a text. It ends with what the
mechanism leaves open. The numbers bound every attack on the tokens, whatever else the attacker knows; how far a given
attack gets is measured by the audit.

An unknown mechanism, or an unknown parameter of a known one, is refused: no promise is better than a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rapt.arguments import check_arguments
from rapt.errors import MechanismError, UsageError
from rapt.local.deniability import PlausibleDeniability, UnchangedShare
from rapt.local.distances import TableDistances, measure_distances
from rapt.local.exposures import list_exposures, list_policy_exposures, list_trusted_machines
from rapt.local.mechanisms import MECHANISMS, find_space
from rapt.local.mechanisms.interface import Promise
from rapt.local.own_texts import FileShape, OwnTexts
from rapt.local.privacy_loss import PrivacyLoss, choose_loss_step, compose
from rapt.local.retention import KindShare, WordChance
from rapt.local.statement import AS_GOOD_AS_TEXT, UNIT, Bound, PrivacyStatement, explain_numbers
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import UNARRANGED, Arrangement, LabelPrivacy, PlainTokens, Randomness, Targets
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS, MechanismSetting, check_eta
from rapt.wire.policy_setting import KindSetting

__all__ = ["PrivacyStatement", "state_privacy"]

DELTA: Final = 1e-5
TEXT_LENGTHS: Final = (10, 20)


@check_arguments
def state_privacy(
    vocabulary: Vocabulary,
    setting: MechanismSetting,
    *,
    plain_tokens: PlainTokens,
    labels_sent: bool,
    word_pairs: Sequence[tuple[str, str]] = (),
    randomness: Randomness | None = None,
    unchanged: UnchangedShare | None = None,
    every_token: UnchangedShare | None = None,
    kinds: Sequence[KindShare] = (),
    words: Sequence[WordChance] = (),
    deniability: PlausibleDeniability | None = None,
    label_privacy: LabelPrivacy | None = None,
    two_texts: bool = False,
    targets: Targets | None = None,
    file: FileShape | None = None,
    own: OwnTexts | None = None,
    own_unchanged: UnchangedShare | None = None,
    arrangement: Arrangement = UNARRANGED,
    policy: Sequence[KindSetting] = (),
) -> PrivacyStatement:
    """State what `setting` promises on `vocabulary`, and what it does not.

    Args:
        vocabulary: Vocabulary whose table η is measured in.
        setting: Mechanism and parameters, as a manifest states them.
        plain_tokens: Plain tokens that the manifest states; public.
        labels_sent: Whether labels leave: in clear, unless `label_privacy` says otherwise.
        word_pairs: Words to state bounds for. They appear in the statement.
        randomness: Source of the noise that the manifest states; None where no file is meant.
        unchanged: Result of `measure_unchanged`, to be shown as well.
        every_token: The same over every token that may be an output, to be shown as well.
        kinds: Result of `measure_kinds`, to be shown as well.
        words: Result of `measure_words`, to be shown as well.
        deniability: Result of `measure_deniability`, to be shown as well.
        label_privacy: Privatization of the labels, as the manifest states it; None where the true ones are sent.
        two_texts: Whether texts are sent in pairs.
        targets: Way in which texts to be generated are sent, if they are.
        file: Result of `measure_file`: then the table of texts is of its own lengths.
        own: Result of `count_own_texts`, to be shown as well.
        own_unchanged: Result of `measure_unchanged` over those texts, to be shown as well.
        arrangement: Equality, order and lengths of the records, as the manifest states them.
        policy: Kinds of entities that were treated otherwise; bounds are those of the largest η among all.

    Raises:
        MechanismError: The mechanism or one of its parameters is unknown, or η is outside its domain.
        UsageError: The two words of a pair have different numbers of tokens, or none.
    """
    setting = find_weakest(setting, policy) if policy else setting
    promise = _find_promise(setting)
    noise = None if promise.noise is None else promise.noise(setting, vocabulary.dimension)
    # η is measured in the metric of the mechanism, which may scale the rows of the table first.
    space = find_space(setting.name, vocabulary)
    distances = measure_distances(space)

    def loss(distance: float, *, step: float | None = None) -> PrivacyLoss:
        return promise.loss(setting, distance=distance, dimension=vocabulary.dimension, step=step)

    lengths = TEXT_LENGTHS if file is None else tuple(sorted({file.median, file.longest}))
    references = [(near, loss(near.distance)) for near in _list_references(distances)]
    pairs = tuple(
        _make_bound(near.name, near.tokens, distance=near.distance, losses=[(one, 1)]) for near, one in references
    )
    texts = tuple(
        _make_bound(
            f"{near.name}_{length}",
            f"{length} token{'s' if length > 1 else ''}, {near.texts}",
            distance=near.distance * length,
            losses=[(one, length)],
        )
        for length in lengths
        for near, one in references
    )
    named = []
    for position, pair in enumerate(word_pairs):
        apart = measure_word_distances(space, pair, position=position)
        step = choose_loss_step(setting.eta * max(apart))
        losses = [(loss(distance, step=step), 1) for distance in apart]
        named.append(_make_bound(f"words_{position}", " / ".join(pair), distance=math.fsum(apart), losses=losses))
    return PrivacyStatement(
        protects=(randomness is None or randomness.insecure_seed is None)
        and all(found is None or found.share < AS_GOOD_AS_TEXT for found in (unchanged, every_token)),
        unit=UNIT,
        model=vocabulary.model,
        vocabulary_hash=vocabulary.hash,
        dimension=vocabulary.dimension,
        size=vocabulary.size,
        normalization="none" if promise.space is None else str(setting.parameters["metric"]),
        distances=distances,
        mechanism=setting,
        status=KNOWN_MECHANISMS[setting.name].status,
        noise=noise,
        delta=DELTA,
        pairs=pairs,
        texts=texts,
        word_pairs=tuple(named),
        file=file,
        own=own,
        own_unchanged=own_unchanged,
        unchanged=unchanged,
        every_token=every_token,
        kinds=tuple(kinds),
        words=tuple(words),
        deniability=deniability,
        plain_tokens=plain_tokens,
        labels_sent=labels_sent,
        label_privacy=label_privacy if labels_sent else None,
        randomness=randomness,
        policy=tuple(policy),
        reading=(
            *(() if promise.remark is None else (promise.remark(setting),)),
            *explain_numbers(pairs[0], texts[0], delta=DELTA, pure_only=promise.pure_only),
        ),
        not_protected=(
            *list_policy_exposures(policy, unit="token"),
            *list_exposures(
                plain_tokens,
                labels_sent=labels_sent,
                label_privacy=label_privacy,
                pairs=two_texts,
                targets=targets,
                noise_drawn=not promise.pure_only,
                arrangement=arrangement,
            ),
            *list_trusted_machines(randomness),
        ),
    )


def _find_promise(setting: MechanismSetting) -> Promise:
    if setting.name not in MECHANISMS:
        proved = [name for name, kind in MECHANISMS.items() if kind.promise is not None]
        raise MechanismError(
            f"there is no privacy statement for mechanism={setting.name!r}; choose one of {', '.join(proved)}"
        )
    kind = MECHANISMS[setting.name]
    if kind.promise is None:
        raise MechanismError(
            f"there is no privacy statement for mechanism={setting.name!r}, because its guarantee is "
            f"{kind.known.status}: {kind.known.caveat}"
        )
    if setting.parameters.keys() != kind.known.parameters:
        raise MechanismError(
            f"mechanism={setting.name!r} must have exactly the parameters {', '.join(sorted(kind.known.parameters))}, "
            f"got {len(setting.parameters)}; upgrade rapt, or privatize again"
        )
    check_eta(setting.parameters["eta"])
    return kind.promise


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """A distance that every statement speaks of, and how it is called there."""

    name: str
    tokens: str
    texts: str
    distance: float


def _list_references(distances: TableDistances) -> list[_Reference]:
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


def _make_bound(name: str, meaning: str, *, distance: float, losses: Sequence[tuple[PrivacyLoss, int]]) -> Bound:
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


def measure_word_distances(vocabulary: Vocabulary, pair: tuple[str, str], *, position: int) -> list[float]:
    """The distances of the tokens of two words, place by place."""
    left, right = vocabulary.encode(pair)
    if len(left) != len(right) or not left:
        raise UsageError(
            f"the words of pair {position} must have equally many tokens, at least 1, got {len(left)} and "
            f"{len(right)}: the number of tokens is not protected, so there is no bound; choose other words"
        )
    difference = vocabulary.embeddings[left].astype(np.float64) - vocabulary.embeddings[right]
    return [float(distance) for distance in np.linalg.norm(difference, axis=1)]


def find_weakest(setting: MechanismSetting, policy: Sequence[KindSetting]) -> MechanismSetting:
    """Return the mechanism at the largest η that a policy gives any token."""
    largest = max([setting.eta, *(one.strength or 0.0 for one in policy if one.treatment == "eta")])
    return MechanismSetting(name=setting.name, parameters={**setting.parameters, "eta": largest})
