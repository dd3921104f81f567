"""Beam search: P(x_t | y) from a model that reads a text from left to right and remembers all of it.

Such a model has no sums over paths either. So the likeliest readings of a text so far are kept, a fixed number of them,
each is continued by every candidate of the next position, and the best of these are kept in turn. What is believed of a
position is the share of the readings that go through a candidate, taken a few positions later: by then what follows has
had its say, and the readings do not yet all agree. With enough readings that is exact, apart from what comes later.

Source: beam search over channel and language model is Kazemi et al.'s ("BeamClean", 2025), who keep the likeliest
reading alone; shares of readings name more tokens rightly.

Sweeps over a text: P(x_t | all of y), from a model that reads a token off all others of its text.

A masked language model has no sums over paths: it needs every other token to be something. So the tokens are drawn,
position after position, each from what its neighbours and its own evidence say,

    P(x_t | x_others, y_t) ∝ P(y_t | x_t) P(x_t | x_others),

over and over (Gibbs sampling, Geman and Geman 1984), and the probabilities that were drawn from are averaged after a
few sweeps (Rao and Blackwell: the draws themselves would be noisier). Every n-th position is drawn at once, blind to
the others of its block, which costs one pass of the model for each block. Where the source is a Markov chain and the
blocks are every second position that is exact, and the mean tends to the true posterior; with a masked language model,
whose conditionals belong to no joint distribution, it is a good guess and no more (Wang and Cho 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from rapt.audit.language.layout import batch_texts, number_tokens, pad_places
from rapt.errors import AuditError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# In the place of a candidate where a text has ended.
ENDED: Final = -1
# Share of a belief that is left to what was pruned: it orders the later guesses.
_PRUNED: Final = 0.02
_TINY: Final = 1e-300


class LanguageReader(Protocol):
    """A language model in the middle of some readings, one a row."""

    def offer(self, candidates: Ints) -> Floats:
        """Log P(candidate | what the row has read), or a quick guess at it, in nats, (rows, K)."""
        ...

    def take(self, parents: Ints, candidates: Ints) -> Floats:
        """Make each row the reading of an earlier one and a candidate more; `ENDED` adds nothing.

        Args:
            parents: Row that is continued, (rows,).
            candidates: Token that continues each row, (rows,).

        Returns:
            What must be added to the offers that were taken to make them right, (rows,).
        """
        ...


def search_beam(
    candidates: Ints,
    evidence: Floats,
    *,
    lengths: Ints,
    read: Callable[[int], LanguageReader],
    beams: int,
    later: int,
    together: int = 1,
    on_progress: Callable[[float], None] | None = None,
) -> Floats:
    """Log belief in each candidate of each position, (n, K).

    Args:
        candidates: Rows of the table, (n, K), texts one after another.
        evidence: log P(y | candidate), in nats, (n, K).
        lengths: Tokens of each text, sum n.
        read: Makes a reader of so many rows that have read nothing.
        beams: Readings kept of each text.
        later: Positions after which the readings are asked.
        together: Texts read in one batch.
        on_progress: Called with the share done.
    """
    found = np.empty(evidence.shape)
    done = 0
    for group in batch_texts(lengths, np.arange(len(lengths)), together=together):
        places, inside = pad_places(lengths, group)
        longest = places.shape[1]
        reader = read(len(group) * beams)
        weight = np.full((len(group), beams), -np.inf)
        weight[:, 0] = 0.0  # one reading, of nothing
        path = np.zeros((len(group), beams, longest), dtype=np.int64)
        pruned = np.zeros((len(group), longest, evidence.shape[1]))
        for t in range(longest):
            weight, path = _make_step(
                reader, weight, path, candidates[places[:, t]], evidence[places[:, t]], inside[:, t], pruned, t
            )
            # A position is asked about `later` positions after it, or where its text ends.
            last = np.equal(t, lengths[group] - 1)
            for row in range(len(group)):
                asked = range(max(0, t - later), t + 1) if last[row] else [t - later] if inside[row, t] else []
                for position in asked:
                    if position >= 0:
                        found[places[row, position]] = _compute_belief(
                            weight[row], path[row, :, position], pruned[row, position]
                        )
            if on_progress is not None:
                on_progress((done + int(inside[:, : t + 1].sum())) / len(candidates))
        done += int(inside.sum())
    return found


def _make_step(
    reader: LanguageReader,
    weight: Floats,
    path: Ints,
    candidates: Ints,
    evidence: Floats,
    inside: NDArray[np.bool_],
    pruned: Floats,
    t: int,
) -> tuple[Floats, Ints]:
    """One position further: weights (B, W), not normalized, and paths (B, W, T)."""
    texts, beams = weight.shape
    width = candidates.shape[1]
    offered = reader.offer(np.repeat(candidates, beams, axis=0)).reshape(texts, beams, width)
    score = weight[:, :, None] + offered + evidence[:, None, :]
    pruned[:, t] = np.exp(_normalize(np.logaddexp.reduce(score, axis=1)))
    # Of nothing there is one reading, so at first there are fewer continuations than places: the others weigh nothing.
    best = np.argsort(-score.reshape(texts, -1), axis=1, kind="stable")[:, :beams]
    parent, chosen = best // width, best % width
    stays = ~inside[:, None]
    parent = np.where(stays, np.arange(beams), parent)
    taken = np.where(stays, ENDED, np.take_along_axis(candidates, chosen, axis=1))
    kept = np.take_along_axis(score.reshape(texts, -1), best, axis=1)
    path = np.take_along_axis(path, parent[:, :, None], axis=1)
    path[:, :, t] = chosen
    rows = (np.arange(texts)[:, None] * beams + parent).ravel()
    correction = reader.take(rows, taken.ravel()).reshape(texts, beams)
    return np.where(stays, weight, kept + correction), path


def _compute_belief(weight: Floats, chosen: Ints, pruned: Floats) -> Floats:
    share = np.bincount(chosen, np.exp(_normalize(weight[None])[0]), minlength=len(pruned))
    belief: Floats = np.log(np.maximum((1 - _PRUNED) * share + _PRUNED * pruned, _TINY))
    return belief


def _normalize(values: Floats) -> Floats:
    total = np.logaddexp.reduce(values, axis=-1, keepdims=True)
    found: Floats = values - np.where(np.isfinite(total), total, 0.0)
    return found


# Keeps a candidate that was never likely above the logarithm of 0.


class Conditional(Protocol):
    """How likely each candidate of some positions is, given the other tokens of their texts."""

    def __call__(self, tokens: Ints, asked: NDArray[np.bool_]) -> Floats:
        """Log P(candidate | those tokens of its text that are not asked), up to a constant for each position.

        Args:
            tokens: One candidate for each position of all texts, (n,).
            asked: The positions that are drawn; their own tokens must not be looked at, (n,).

        Returns:
            (positions asked, K), in nats.
        """
        ...


def sweep(
    candidates: Ints,
    evidence: Floats,
    *,
    lengths: Ints,
    start: Ints,
    conditional: Conditional,
    rng: np.random.Generator,
    blocks: int = 2,
    sweeps: int = 6,
    first_kept: int = 1,
    on_progress: Callable[[float], None] | None = None,
) -> Floats:
    """Log P(candidate | all that was seen in its text), normalized over the candidates of each position, (n, K).

    Args:
        candidates: Rows of the table, (n, K), texts one after another.
        evidence: log P(y | candidate), in nats, (n, K).
        lengths: Tokens of each text, sum n.
        start: The tokens to begin with, (n,).
        conditional: Function that gives the log probability of each of these candidates, given its neighbours.
        rng: Generator of the draws.
        blocks: Every so many-th position is drawn at once.
        sweeps: Number of times that each position is drawn.
        first_kept: Sweeps that are not averaged, because they remember the start.
        on_progress: Called with the share done.

    Raises:
        AuditError: No sweep would be averaged.
    """
    if not 0 <= first_kept < sweeps or blocks < 1:
        raise AuditError(f"at least one sweep must be kept, got sweeps={sweeps}, first_kept={first_kept}; ask for more")
    place = number_tokens(lengths)
    tokens = start.copy()
    total = np.zeros(evidence.shape)
    for done in range(sweeps * blocks):
        turn, block = divmod(done, blocks)
        asked = place % blocks == block
        if asked.any():
            score = conditional(tokens, asked) + evidence[asked]
            chance = np.exp(score - score.max(axis=1, keepdims=True))
            chance /= chance.sum(axis=1, keepdims=True)
            drawn = (np.cumsum(chance, axis=1) < rng.random((len(chance), 1))).sum(axis=1)
            drawn = np.minimum(drawn, chance.shape[1] - 1)
            tokens[asked] = candidates[asked, drawn]
            if turn >= first_kept:
                total[asked] += chance
        if on_progress is not None:
            on_progress((done + 1) / (sweeps * blocks))
    found: Floats = np.log(np.maximum(total / (sweeps - first_kept), _TINY))
    return found
