"""Several releases of one text: what their independent noise is worth when somebody lays them on top of each other.

The attacker holds R privatizations of each token and names the word of largest log π(x) + Σ_r log P(y_r | x): Bayes,
which nobody beats who looks at each place by itself. With R = 1 it is the context-free attack of `rapt audit`. P is
exact where the mechanism has a closed channel; for the others it is the estimate of `rapt.audit.channels` at the
outputs that were seen, where all words that are not listed share the probability that is left to them. The figures are
then a lower bound on what such an attacker can do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels import estimate_channel
from rapt.audit.intervals import Share, compute_clustered_share
from rapt.audit.view import TokenPrior
from rapt.local.mechanisms import remake_mechanism
from rapt.local.mechanisms.interface import find_closed_channel
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Words that are tried: the most frequent ones by the prior, beside every token that was seen.
_TRIED = 8192
_ROWS = 256
_SOURCES = 63
# Of an output that no word but the listed ones can explain: it rules a word out, but for errors of the estimate.
_LEAST = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class ReleasesView:
    """The attacker's side: R releases of n tokens, the public setting, and how frequent words are.

    Attributes:
        releases: Outputs, (R, n).
        setting: Mechanism of the releases.
        vocabulary: Public vocabulary.
        prior: Public frequencies.
    """

    releases: Ints = field(repr=False)
    setting: MechanismSetting
    vocabulary: Vocabulary
    prior: TokenPrior


@dataclass(frozen=True, kw_only=True)
class PooledRelease:
    """Success with R releases.

    Attributes:
        releases: Number R of releases.
        recovered: Share of tokens named rightly, the text as the unit of chance.
        chance: Chance of always naming the most frequent token.
    """

    releases: int
    recovered: Share
    chance: float


def pool_guesses(
    view: ReleasesView,
    *,
    counts: tuple[int, ...],
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[int, Ints]:
    """The likeliest word of each place from the first R releases, for each R in `counts`: (n,) each."""
    outputs, place = np.unique(view.releases, return_inverse=True)
    place = place.reshape(view.releases.shape)
    prior = view.prior.probabilities
    tried = np.argsort(-prior, kind="stable")[:_TRIED]
    tried = np.union1d(tried[prior[tried] > 0], outputs[prior[outputs] > 0])
    rows = _log_channel(view, outputs, seed=seed)
    best = {count: np.full(view.releases.shape[1], -np.inf) for count in counts}
    named = {count: view.releases[0].copy() for count in counts}
    for start in range(0, len(tried), _ROWS):
        words = tried[start : start + _ROWS]
        table, weight = rows(words), np.log(prior[words])
        total, done = np.repeat(weight[:, None], view.releases.shape[1], axis=1), 0
        for count in sorted(counts):
            for release in range(done, count):
                total = total + table[:, place[release]]
            done = count
            winner = total.argmax(axis=0)
            value = total[winner, np.arange(total.shape[1])]
            better = value > best[count]
            named[count] = np.where(better, words[winner], named[count])
            best[count] = np.where(better, value, best[count])
        on_progress(min(1.0, (start + _ROWS) / len(tried)))
    return named


def score_releases(guesses: dict[int, Ints], *, true: Ints, lengths: Ints) -> tuple[PooledRelease, ...]:
    """The judge: the share of places that each guess names rightly.

    Args:
        guesses: Guessed tokens by the number of releases, (n,) each.
        true: True tokens, (n,).
        lengths: Tokens of each text, adding up to n.
    """
    chance = float(np.bincount(true).max() / len(true))
    scored = []
    for count in sorted(guesses):
        share = compute_clustered_share(guesses[count] == true, lengths)
        assert share is not None
        scored.append(PooledRelease(releases=count, recovered=share, chance=chance))
    return tuple(scored)


def _log_channel(view: ReleasesView, outputs: Ints, *, seed: int) -> Callable[[Ints], Floats]:
    """A function from words, (C,), to log P(output | word), (C, outputs)."""
    mechanism = remake_mechanism(view.setting, vocabulary=view.vocabulary, allow_unproved=True)
    if (exact := find_closed_channel(mechanism)) is not None:
        columns = np.searchsorted(view.vocabulary.eligible, outputs)
        return lambda words: exact(words)[:, columns]
    channel = estimate_channel(
        view.setting,
        view.vocabulary.bundle,
        outputs=outputs,
        prior=view.prior.probabilities,
        rng=np.random.default_rng([seed, 17]),
        sources=_SOURCES,
    )
    likelihood, prior = channel.mean, view.prior.probabilities
    listed = likelihood > 0
    rest = np.maximum(1 - np.where(listed, prior[channel.sources], 0).sum(axis=1), _LEAST)
    beyond = np.zeros(len(outputs)) if channel.unlisted is None else channel.unlisted
    lowest = np.log(np.maximum(beyond / rest, _LEAST))
    output, column = np.nonzero(listed)
    source, value = channel.sources[output, column], np.log(likelihood[output, column])
    order = np.argsort(source, kind="stable")
    source, output, value = source[order], output[order], value[order]

    def rows(words: Ints) -> Floats:
        table = np.repeat(lowest[None], len(words), axis=0)
        first, last = np.searchsorted(source, words), np.searchsorted(source, words, side="right")
        for row, (start, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            table[row, output[start:end]] = value[start:end]
        return table

    return rows
