"""P(y|x) of a mechanism whose probabilities can be written down: exact, in one draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels.estimate import SOURCES, ChannelEstimate
from rapt.local.mechanisms import ClosedChannel, mechanism_of_setting
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting
from rapt.wire.vocabulary_bundle import VocabularyBundle

# Most frequent tokens that are tried as sources beside the output itself. In a smaller table all are, and then
# everything here is exact.
_TRIED: Final = 8192
# Sources at once: with 30,000 outputs, 60 MB of float64.
_ROWS: Final = 256


def exact_channel(
    bundle: VocabularyBundle,
    *,
    setting: MechanismSetting,
    outputs: NDArray[np.int64],
    prior: NDArray[np.float64],
    rng: np.random.Generator,
    sources: int = SOURCES,
    on_progress: Callable[[float], None] | None = None,
) -> ChannelEstimate:
    """The channel at the given outputs, for the sources of largest prior(x) * P(y|x).

    Args:
        bundle: The public table.
        setting: The mechanism, which must have a closed channel.
        outputs: Sorted eligible ids, (O,).
        prior: Chooses which sources are kept, (V,); it does not enter P(y|x).
        rng: Not used: nothing is drawn.
        sources: Kept for each output beside itself.
        on_progress: Called with the share done.

    Raises:
        MechanismError: The mechanism cannot be made from its setting alone.
    """
    mechanism = cast(ClosedChannel, mechanism_of_setting(setting, vocabulary=Vocabulary(bundle), allow_unproved=True))
    places = np.searchsorted(bundle.eligible, outputs)
    tried = np.flatnonzero(prior > 0)
    tried = np.union1d(tried[np.argsort(-prior[tried], kind="stable")[:_TRIED]], outputs)
    kept = min(sources, len(tried))
    itself = np.zeros(len(outputs))
    best = np.repeat(outputs[:, None], kept, axis=1)
    value, likelihood = np.zeros((len(outputs), kept)), np.zeros((len(outputs), kept))
    total = np.zeros(len(outputs))
    for start in range(0, len(tried), _ROWS):
        rows = tried[start : start + _ROWS]
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
            on_progress(min(1.0, (start + _ROWS) / len(tried)))
    # What a zero weight left in place is padding, as in every channel: y itself, with likelihood 0.
    padding = (value <= 0) | (best == outputs[:, None])
    best, likelihood = np.where(padding, outputs[:, None], best), np.where(padding, 0.0, likelihood)
    return ChannelEstimate(
        outputs=outputs,
        sources=np.concatenate([outputs[:, None], best], axis=1),
        likelihood=np.concatenate([itself[:, None], likelihood], axis=1).astype(np.float32)[:, :, None],
        unlisted=np.maximum(total - value.sum(axis=1), 0.0),
    )
