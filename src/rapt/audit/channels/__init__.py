"""P(y|x) of every mechanism: by its closed form, by the geometry of Laplace noise and what follows it, or counted.

The ways to a channel are in one closed dict; which one a mechanism takes stands in `rapt.wire.mechanism_setting`. A
closed form is exact, in one draw. Any mechanism that can be run is counted on public words that the attacker privatizes
himself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels.counted import count_channel, estimate_ranked_channel
from rapt.audit.channels.estimate import SOURCES, ChannelEstimate, ChannelQuestion
from rapt.audit.channels.laplace import compute_rough_log_channel, estimate_laplace_channel
from rapt.errors import AuditError, MechanismError
from rapt.local.mechanisms import ClosedChannel, find_space, remake_mechanism
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS, ChannelKind, MechanismSetting
from rapt.wire.vocabulary_bundle import VocabularyBundle

# Most frequent tokens that are tried as sources beside the output itself. In a smaller table all are, and then
# everything here is exact.
_EXACT_TRIED: Final = 8192
# Sources at once: with 30,000 outputs, 60 MB of float64.
_EXACT_ROWS: Final = 256


def compute_exact_channel(
    asked: ChannelQuestion, *, rng: np.random.Generator, on_progress: Callable[[float], None] | None = None
) -> ChannelEstimate:
    """The channel of a mechanism with a closed form, for the sources of largest prior(x) * P(y|x).

    Args:
        asked: Question about a mechanism with a closed channel.
        rng: Not used: nothing is drawn.
        on_progress: Called with the share done.

    Raises:
        MechanismError: The mechanism cannot be made from its setting alone.
    """
    bundle, outputs, prior = asked.bundle, asked.outputs, asked.prior
    mechanism = cast(ClosedChannel, remake_mechanism(asked.setting, vocabulary=Vocabulary(bundle), allow_unproved=True))
    places = np.searchsorted(bundle.eligible, outputs)
    tried = np.flatnonzero(prior > 0)
    tried = np.union1d(tried[np.argsort(-prior[tried], kind="stable")[:_EXACT_TRIED]], outputs)
    kept = min(asked.sources, len(tried))
    itself = np.zeros(len(outputs))
    best = np.repeat(outputs[:, None], kept, axis=1)
    value, likelihood = np.zeros((len(outputs), kept)), np.zeros((len(outputs), kept))
    total = np.zeros(len(outputs))
    for start in range(0, len(tried), _EXACT_ROWS):
        rows = tried[start : start + _EXACT_ROWS]
        found = np.exp(mechanism.log_probabilities(rows)[:, places]).T  # (O, rows)
        own = np.flatnonzero(np.isin(outputs, rows))
        itself[own] = found[own, np.searchsorted(rows, outputs[own])]
        weighted = np.where(outputs[:, None] == rows, 0.0, found * prior[rows])
        total += weighted.sum(axis=1)
        everything = np.concatenate([value, weighted], axis=1)
        chosen = np.argpartition(-everything, kept - 1, axis=1)[:, :kept] if kept < everything.shape[1] else None
        if chosen is None:
            chosen = np.broadcast_to(np.arange(everything.shape[1]), everything.shape)
        names = np.concatenate([best, np.broadcast_to(rows, weighted.shape)], axis=1)
        value = np.take_along_axis(everything, chosen, axis=1)
        best = np.take_along_axis(names, chosen, axis=1)
        likelihood = np.take_along_axis(np.concatenate([likelihood, found], axis=1), chosen, axis=1)
        if on_progress is not None:
            on_progress(min(1.0, (start + _EXACT_ROWS) / len(tried)))
    # What a zero weight left in place is padding, as in every channel: y itself, with likelihood 0.
    padding = (value <= 0) | (best == outputs[:, None])
    best, likelihood = np.where(padding, outputs[:, None], best), np.where(padding, 0.0, likelihood)
    return ChannelEstimate(
        outputs=outputs,
        sources=np.concatenate([outputs[:, None], best], axis=1),
        likelihood=np.concatenate([itself[:, None], likelihood], axis=1).astype(np.float32)[:, :, None],
        unlisted=np.maximum(total - value.sum(axis=1), 0.0),
    )


class ChannelFunction(Protocol):
    """Computes or estimates P(y|x)."""

    def __call__(
        self, asked: ChannelQuestion, *, rng: np.random.Generator, on_progress: Callable[[float], None] | None = None
    ) -> ChannelEstimate:
        """The channel that is asked for; see `estimate_channel`."""
        ...


CHANNELS: Final[Mapping[ChannelKind, ChannelFunction]] = MappingProxyType(
    {
        "laplace": estimate_laplace_channel,
        "closed": compute_exact_channel,
        "two-nearest": estimate_laplace_channel,
        "ranked": estimate_ranked_channel,
        "counted": count_channel,
    }
)


def explain_missing_pairs(setting: MechanismSetting, bundle: VocabularyBundle) -> str | None:
    """Reason why P(y|x) is not known for every pair of words, or None where it is."""
    if (reason := explain_unknown_channel(setting, bundle)) is not None:
        return reason
    if (kind := KNOWN_MECHANISMS[setting.name].channel) in ("two-nearest", "counted", "ranked"):
        return f"the channel of mechanism={setting.name!r} is {kind}, which leaves out most pairs of words"
    return None


def compute_log_channel(
    setting: MechanismSetting,
    bundle: VocabularyBundle,
    *,
    sources: NDArray[np.int64],
    outputs: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The log of P(y|x) for every pair, (sources, outputs): exact for a closed channel, rough for `laplace`.

    Raises:
        AuditError: It is not known.
    """
    if (reason := explain_missing_pairs(setting, bundle)) is not None:
        raise AuditError(f"every pair of words must have a probability: {reason}; leave the attack out")
    if KNOWN_MECHANISMS[setting.name].channel == "laplace":
        space = find_space(setting.name, Vocabulary(bundle)).bundle
        return compute_rough_log_channel(space, setting, sources=sources, outputs=outputs, rng=rng)
    mechanism = cast(ClosedChannel, remake_mechanism(setting, vocabulary=Vocabulary(bundle), allow_unproved=True))
    places = np.searchsorted(bundle.eligible, outputs)
    found = np.empty((len(sources), len(outputs)), dtype=np.float32)
    for start in range(0, len(sources), _EXACT_ROWS):
        part = slice(start, start + _EXACT_ROWS)
        found[part] = mechanism.log_probabilities(sources[part])[:, places]
    return found


def explain_unknown_channel(setting: MechanismSetting, bundle: VocabularyBundle) -> str | None:
    """Reason why the channel of a mechanism cannot be known here, or None where it can."""
    if setting.name not in KNOWN_MECHANISMS:
        return f"the channel of mechanism={setting.name!r} is not known here"
    try:
        remake_mechanism(setting, vocabulary=Vocabulary(bundle), allow_unproved=True)
    except MechanismError:
        return f"mechanism={setting.name!r} cannot be made again from the manifest alone"
    return None


def estimate_channel(
    setting: MechanismSetting,
    bundle: VocabularyBundle,
    *,
    outputs: NDArray[np.int64],
    prior: NDArray[np.float64],
    rng: np.random.Generator,
    sources: int = SOURCES,
    on_progress: Callable[[float], None] | None = None,
) -> ChannelEstimate:
    """The channel of a mechanism at the given outputs.

    Args:
        setting: The mechanism, from the manifest.
        bundle: The public table.
        outputs: Sorted eligible ids, (O,).
        prior: Chooses which sources are looked at, (V,).
        rng: Generator of the draws, where there are any.
        sources: Kept for each output beside itself.
        on_progress: Called with the share done.

    Raises:
        AuditError: The mechanism's channel is not known here.
    """
    if (reason := explain_unknown_channel(setting, bundle)) is not None:
        raise AuditError(
            f"a channel must be of one of {', '.join(KNOWN_MECHANISMS)}: {reason}; leave out what needs one"
        )
    kind = KNOWN_MECHANISMS[setting.name].channel
    # The geometry of Laplace noise is that of the rows it was added to.
    table = find_space(setting.name, Vocabulary(bundle)).bundle if kind == "laplace" else bundle
    asked = ChannelQuestion(bundle=table, setting=setting, outputs=outputs, prior=prior, sources=sources)
    return CHANNELS[kind](asked, rng=rng, on_progress=on_progress)
