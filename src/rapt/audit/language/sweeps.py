"""Sweeps over a text: P(x_t | all of y), from a model that reads a token off all others of its text.

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

from rapt.audit.language.layout import place_in_text
from rapt.errors import AuditError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Keeps a candidate that was never likely above the logarithm of 0.
_TINY: Final = 1e-300


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
        conditional: Of these candidates.
        rng: Of the draws.
        blocks: Every so many-th position is drawn at once.
        sweeps: How often each position is drawn.
        first_kept: Sweeps that are not averaged, because they remember the start.
        on_progress: Called with the share done.

    Raises:
        AuditError: No sweep would be averaged.
    """
    if not 0 <= first_kept < sweeps or blocks < 1:
        raise AuditError(f"at least one sweep must be kept, got sweeps={sweeps}, first_kept={first_kept}; ask for more")
    place = place_in_text(lengths)
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
