"""P(y|x) of any mechanism that can be run: counted on public words that the attacker privatizes himself.

Words are drawn by the attacker's prior, so that the pairs which matter are counted most often. A source that never gave
an output among them is unknown there; each output keeps itself as a source, with the share of its own tokens that came
back, or of all tokens where it was not drawn. Weaker than a closed form, and nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels.estimate import SOURCES, ChannelEstimate
from rapt.local.mechanisms import mechanism_of_setting
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting
from rapt.wire.vocabulary_bundle import VocabularyBundle

TOKENS: Final = 131_072
_BLOCK: Final = 8192
# What a count of an output's own tokens is worth before any was seen, in tokens.
_BELIEF: Final = 2.0


def counted_channel(
    bundle: VocabularyBundle,
    *,
    setting: MechanismSetting,
    outputs: NDArray[np.int64],
    prior: NDArray[np.float64],
    rng: np.random.Generator,
    sources: int = SOURCES,
    tokens: int = TOKENS,
    on_progress: Callable[[float], None] | None = None,
) -> ChannelEstimate:
    """The channel at the given outputs, as counted.

    Args:
        bundle: The public table.
        setting: The mechanism.
        outputs: Sorted eligible ids, (O,).
        prior: Of the words that are drawn, (V,).
        rng: Of the words and of the noise.
        sources: Kept for each output beside itself.
        tokens: Words to privatize.
        on_progress: Called with the share done.

    Raises:
        MechanismError: The mechanism cannot be made from its setting alone.
    """
    mechanism = mechanism_of_setting(setting, vocabulary=Vocabulary(bundle), allow_unproved=True)
    # A systematic sample: the number of times each word is drawn is its expected number, rounded.
    drawn = np.searchsorted(np.cumsum(prior), (np.arange(tokens) + rng.random()) / tokens, side="right")
    drawn = np.minimum(drawn, len(prior) - 1)
    released = np.empty(tokens, dtype=np.int64)
    for start in range(0, tokens, _BLOCK):
        part = slice(start, start + _BLOCK)
        released[part] = mechanism.privatize(drawn[part], rng=rng)
        if on_progress is not None:
            on_progress(min(1.0, (start + _BLOCK) / tokens))
    times = np.bincount(drawn, minlength=len(prior))
    stayed = np.bincount(drawn[released == drawn], minlength=len(prior))
    overall = float((released == drawn).mean())
    pairs, counts = np.unique(np.stack([released, drawn]), axis=1, return_counts=True)
    listed = np.repeat(outputs[:, None], 1 + sources, axis=1)
    likelihood = np.zeros(listed.shape, dtype=np.float32)
    unlisted = np.zeros(len(outputs))
    likelihood[:, 0] = (stayed[outputs] + _BELIEF * overall) / (times[outputs] + _BELIEF)
    first, last = np.searchsorted(pairs[0], outputs), np.searchsorted(pairs[0], outputs, side="right")
    for place, (start, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        names, seen = pairs[1, start:end], counts[start:end]
        others = names != outputs[place]
        names, seen = names[others], seen[others]
        order = np.argsort(-seen, kind="stable")
        names, seen, beyond = names[order[:sources]], seen[order[:sources]], seen[order[sources:]]
        listed[place, 1 : 1 + len(names)] = names
        likelihood[place, 1 : 1 + len(names)] = seen / times[names]
        unlisted[place] = beyond.sum() / tokens
    return ChannelEstimate(outputs=outputs, sources=listed, likelihood=likelihood[:, :, None], unlisted=unlisted)
