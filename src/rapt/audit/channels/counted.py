"""P(y|x) of any mechanism that can be run, counted by the attacker on draws of his own; and that of `rank-fix`.

Three parts in four of the draws are words by the attacker's prior, so that the pairs which matter are counted most
often; the others are the outputs that were seen, so that the share which stays as it is is known for each of them.

A pair that came once from a word that was drawn once is no channel of probability 1. Every count is therefore shrunk to
what all words together say, as in Dirichlet smoothing:

    P(y|x) = (count(x, y) + κ·q(y|x)) / (draws(x) + κ),   q(y|x) = (share that changes)·g(y)·f(distance of x and y),

g(y) is the share of y among outputs that are not their input, f how much more often than that a distance occurs, and κ
makes the counts likeliest when each is foretold by the others (leave one out; Zhai and Lafferty, "A Study of Smoothing
Methods for Language Models", TOIS 2004, section 6).

Counting pairs as they come lets an attacker do worse than one who takes each output for its input. Counted this way, he
reads as much within the interval: 49.2 % against 49.3 % on SST-2 with `rank-fix` at η = 75 (docs/results/attacks.md).
What is counted is weaker than a closed form; nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels.estimate import ChannelEstimate, ChannelQuestion
from rapt.audit.channels.laplace import estimate_laplace_channel
from rapt.local.mechanisms import remake_mechanism
from rapt.local.mechanisms.near_tokens import find_nearest_tokens
from rapt.local.vocabulary import Vocabulary

TOKENS: Final = 131_072
_BLOCK: Final = 8192
_OF_OUTPUTS: Final = 4  # one draw of so many is of an output that was seen
# What the share that stays is worth for an output before any of its own draws was seen, in draws.
_BELIEF: Final = 2.0
_STRENGTHS: Final = 2.0 ** np.arange(-4, 15)  # κ
_BINS: Final = 24
_DISTANT_PAIRS: Final = 400_000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def count_channel(
    asked: ChannelQuestion,
    *,
    rng: np.random.Generator,
    tokens: int = TOKENS,
    on_progress: Callable[[float], None] | None = None,
) -> ChannelEstimate:
    """The channel of any mechanism, as counted.

    Args:
        asked: Question; its prior is that of the words that are drawn.
        rng: Generator of the words and of the noise.
        tokens: Words to privatize.
        on_progress: Called with the share done.

    Raises:
        MechanismError: The mechanism cannot be made from its setting alone.
    """
    outputs, prior, sources = asked.outputs, asked.prior, asked.sources
    mechanism = remake_mechanism(asked.setting, vocabulary=Vocabulary(asked.bundle), allow_unproved=True)
    own = tokens // _OF_OUTPUTS if len(outputs) else 0
    by_prior = tokens - own
    # Systematic samples: the number of times each word is drawn is its expected number, rounded.
    drawn = np.searchsorted(np.cumsum(prior), (np.arange(by_prior) + rng.random()) / by_prior, side="right")
    drawn = np.minimum(drawn, len(prior) - 1)
    drawn = np.concatenate([drawn, outputs[np.arange(own) * len(outputs) // max(own, 1)]])
    released = np.empty(tokens, dtype=np.int64)
    for start in range(0, tokens, _BLOCK):
        part = slice(start, start + _BLOCK)
        released[part] = mechanism.privatize(drawn[part], rng=rng)
        if on_progress is not None:
            on_progress(min(1.0, (start + _BLOCK) / tokens))

    times = np.bincount(drawn, minlength=len(prior))
    changed = released[:by_prior] != drawn[:by_prior]
    stays = 1 - float(changed.mean())
    stayed = np.bincount(drawn[released == drawn], minlength=len(prior))
    itself = (stayed[outputs] + _BELIEF * stays) / (times[outputs] + _BELIEF)

    # Pairs x -> y with x != y at the outputs that were asked for.
    moved = released != drawn
    (targets, origins), counts = np.unique(np.stack([released[moved], drawn[moved]]), axis=1, return_counts=True)
    asked_for = np.isin(targets, outputs)
    targets, origins, counts = targets[asked_for], origins[asked_for], counts[asked_for]
    hubs: Floats = np.bincount(released[:by_prior][changed], minlength=len(prior)).astype(np.float64) + 0.5
    usual = (1 - stays) * hubs[targets] / hubs.sum()
    usual *= _weigh_distances(asked, hubs, origins, targets, counts, rng=rng)
    strength = _choose_strength(counts, times[origins], usual)
    likelihood = (counts + strength * usual) / (times[origins] + strength)

    rows = np.searchsorted(outputs, targets)
    listed = np.repeat(outputs[:, None], 1 + sources, axis=1)
    found = np.zeros(listed.shape, dtype=np.float32)
    found[:, 0] = itself
    order = np.lexsort((-prior[origins] * likelihood, rows))
    rank = np.arange(len(order)) - np.searchsorted(rows[order], rows[order])
    kept, order = rank[rank < sources], order[rank < sources]
    listed[rows[order], 1 + kept] = origins[order]
    found[rows[order], 1 + kept] = likelihood[order]
    everything = np.bincount(released[:by_prior], minlength=len(prior))[outputs] / by_prior
    inside = (prior[listed] * found).sum(axis=1)
    unlisted = np.maximum(everything - inside, 0.0)
    return ChannelEstimate(outputs=outputs, sources=listed, likelihood=found[:, :, None], unlisted=unlisted)


def _weigh_distances(
    asked: ChannelQuestion, hubs: Floats, origins: Ints, targets: Ints, counts: Ints, *, rng: np.random.Generator
) -> Floats:
    """How much more often than by chance outputs at the distance of each pair occur, (pairs,)."""
    table = asked.bundle.embeddings
    if len(origins) == 0:
        return np.ones(0)
    apart = _compute_distances(table, origins, targets)
    chosen = rng.choice(len(origins), size=_DISTANT_PAIRS, p=counts / counts.sum())
    others = np.searchsorted(np.cumsum(hubs / hubs.sum()), rng.random(_DISTANT_PAIRS))
    chance = _compute_distances(table, origins[chosen], np.minimum(others, len(table) - 1))
    edges = np.unique(np.quantile(apart, np.linspace(0, 1, _BINS + 1)[1:-1]))
    seen = np.bincount(np.searchsorted(edges, apart), weights=counts, minlength=len(edges) + 1)
    expected = np.bincount(np.searchsorted(edges, chance), minlength=len(edges) + 1)
    share: Floats = ((seen + 1) / (seen.sum() + 1)) / ((expected + 1) / (expected.sum() + 1))
    return share[np.searchsorted(edges, apart)]


def _compute_distances(table: NDArray[np.float32], left: Ints, right: Ints) -> Floats:
    found = np.empty(len(left))
    for start in range(0, len(left), _BLOCK):
        part = slice(start, start + _BLOCK)
        found[part] = np.linalg.norm(table[left[part]] - table[right[part]], axis=1)
    return found


def _choose_strength(counts: Ints, times: Ints, usual: Floats) -> float:
    """κ under which the counts are likeliest, each foretold by the others."""
    if len(counts) == 0:
        return float(_STRENGTHS[-1])
    value = [float((counts * np.log((counts - 1 + k * usual) / (times - 1 + k))).sum()) for k in _STRENGTHS]
    return float(_STRENGTHS[int(np.argmax(value))])


# Share of the draws that must not move for the sum of two kinds to be the channel.
_RESTS: Final = 0.8
# Ranks that are followed, and the most frequent words that are.
_RANKS: Final = 3
_FOLLOWED: Final = 4096


def estimate_ranked_channel(
    asked: ChannelQuestion, *, rng: np.random.Generator, on_progress: Callable[[float], None] | None = None
) -> ChannelEstimate:
    """The channel of `rank-fix` at the outputs that are asked for: its Laplace noise, and the moves that follow it.

    The mechanism draws w as `laplace` does and puts out w's k-th nearest token with probability K(k), w itself at
    k = 0, so

        P(y|x) = Σ_w K(rank of y from w) P(w|x).

    Where moves are rare, two kinds of w carry nearly all of that sum for an x that is worth naming: w = y, which did
    not move, and w = x, which did not change and then moved. Both are here; what changed and then moved as well goes to
    the sources that are not listed. Where moves are frequent the channel is counted instead. Counted, it hides what
    context can tell: on SST-2 at η = 79.7 `context` then reads less than copying does.

    Args:
        asked: Question about `rank-fix`; of its setting eta and the decay are read.
        rng: Generator of the draws.
        on_progress: Called with the share done.
    """
    eligible, outputs, prior = asked.bundle.eligible, asked.outputs, asked.prior
    decay = asked.setting.parameters["decay"]
    assert isinstance(decay, float)
    law = np.exp(-decay * asked.setting.eta * np.arange(len(eligible)))
    law /= law.sum()
    if law[0] < _RESTS:
        return count_channel(asked, rng=rng, on_progress=on_progress)
    base = estimate_laplace_channel(asked, rng=rng, on_progress=on_progress)
    sources, likelihood = base.sources.copy(), base.likelihood * np.float32(law[0])
    stays = base.mean[:, 0]
    usual = float(np.average(stays, weights=prior[outputs])) if prior[outputs].sum() > 0 else float(stays.mean())

    followed = eligible[np.argsort(-prior[eligible], kind="stable")[:_FOLLOWED]]
    near, _ = find_nearest_tokens(
        asked.bundle.embeddings[followed].astype(np.float64),
        embeddings=asked.bundle.embeddings,
        eligible=eligible,
        count=_RANKS + 1,
    )
    moved = _list_moves(followed, near, outputs)
    places = np.minimum(np.searchsorted(outputs, moved[:, 0]), len(outputs) - 1)
    known = outputs[places] == moved[:, 0]
    chance = law[moved[:, 2]] * np.where(known, stays[places], usual)
    rows = np.searchsorted(outputs, moved[:, 1])
    for source, row, value in zip(moved[:, 0], rows, chance, strict=True):
        at = np.flatnonzero(sources[row] == source)
        if len(at):
            likelihood[row, at[0]] += value
            continue
        joint = prior[sources[row]] * likelihood[row].mean(axis=1)
        weakest = 1 + int(joint[1:].argmin()) if len(joint) > 1 else 0
        if weakest and prior[source] * value > joint[weakest]:
            sources[row, weakest], likelihood[row, weakest] = source, value
    # An output gets by moves of what changed about what it gives away.
    listed = (prior[base.sources] * base.mean).sum(axis=1)
    beyond = np.zeros(len(outputs)) if base.unlisted is None else base.unlisted
    unlisted = law[0] * beyond + (1 - law[0]) * (listed - prior[outputs] * stays + beyond)
    return ChannelEstimate(outputs=outputs, sources=sources, likelihood=likelihood, unlisted=np.maximum(unlisted, 0.0))


def _list_moves(followed: NDArray[np.int64], near: NDArray[np.int64], outputs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Source, output and rank of each move from a word that did not change to an output that was seen, (n, 3)."""
    ranks = np.broadcast_to(np.arange(near.shape[1]), near.shape)
    names = np.broadcast_to(followed[:, None], near.shape)
    wanted = (ranks > 0) & np.isin(near, outputs) & (near != names)
    return np.column_stack([names[wanted], near[wanted], ranks[wanted]])
