"""Scoring: how much of the truth a guess recovered, and how much of that a guess without the text would have.

The only module, with `bound`, that reads a `Truth`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapt.audit.guess import SCORED, Guess
from rapt.audit.intervals import Share, clustered_share
from rapt.audit.view import AdversaryView, Truth
from rapt.errors import AuditError


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Recovered tokens among some tokens.

    Attributes:
        first: Share whose true token was the first guess.
        any_of_k: Share whose true token was among the first `k` guesses.
        k: Guesses that were allowed.
        chance: What the best guess without the text recovers: always the most frequent token, its frequency known.
        chance_of_k: The same with `k` guesses.
    """

    first: Share
    any_of_k: Share
    k: int
    chance: float
    chance_of_k: float

    @property
    def advantage(self) -> float:
        """Recovered beyond chance; the interval of `first`, moved by `chance`, is its interval."""
        return self.first.value - self.chance


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """Success of one guess on a file.

    Attributes:
        all_tokens: Over every token.
        changed_tokens: Over those that the mechanism changed, by the same guesses; None when it changed none.
        told_changed: Over the same tokens, by an attacker who is told which they are, so that the observed token is
            struck out of the guesses. More than any attacker knows, and the fair comparison with `chance` there.
    """

    all_tokens: Recovery
    changed_tokens: Recovery | None
    told_changed: Recovery | None


def score(guess: Guess, *, view: AdversaryView, truth: Truth) -> TokenScore:
    """The share of tokens that a guess names rightly.

    Raises:
        AuditError: Guess, view and truth are of different files.
    """
    true = truth.token_ids
    if not len(guess.token_ids) == len(view.observed) == len(true):
        raise AuditError(
            f"guess, view and truth must be of one file, got {len(guess.token_ids)}, {len(view.observed)} and "
            f"{len(true)} tokens"
        )
    everything = _recovery(guess.token_ids[:, :SCORED], true, lengths=view.record_lengths)
    assert everything is not None  # a view has at least one token
    changed = view.observed != true
    record = np.repeat(np.arange(len(view.record_lengths)), view.record_lengths)
    lengths = np.bincount(record[changed], minlength=len(view.record_lengths))
    guessed, observed = guess.token_ids[changed], view.observed[changed]
    return TokenScore(
        all_tokens=everything,
        changed_tokens=_recovery(guessed[:, :SCORED], true[changed], lengths=lengths),
        told_changed=_recovery(_struck_out(guessed, observed)[:, :SCORED], true[changed], lengths=lengths),
    )


def unchanged_share(*, view: AdversaryView, truth: Truth) -> Share:
    """The share of tokens that the mechanism gave back as they were: N_w, averaged over the text."""
    found = clustered_share(view.observed == truth.token_ids, view.record_lengths)
    assert found is not None  # a view has at least one token
    return found


def _struck_out(guessed: NDArray[np.int64], observed: NDArray[np.int64]) -> NDArray[np.int64]:
    """The guesses without the observed token, which goes to the end of its row."""
    order = np.argsort(guessed == observed[:, None], axis=1, kind="stable")
    return np.take_along_axis(guessed, order, axis=1)


def _recovery(guessed: NDArray[np.int64], true: NDArray[np.int64], *, lengths: NDArray[np.int64]) -> Recovery | None:
    hits = guessed == true[:, None]
    first = clustered_share(hits[:, 0], lengths)
    any_of_k = clustered_share(hits.any(axis=1), lengths)
    if first is None or any_of_k is None:
        return None
    k = guessed.shape[1]
    frequency = np.sort(np.bincount(true))[::-1] / len(true)
    return Recovery(
        first=first,
        any_of_k=any_of_k,
        k=k,
        chance=float(frequency[0]),
        chance_of_k=float(frequency[:k].sum()),
    )
