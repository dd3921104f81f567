"""Scoring: how much of the truth a guess recovered, and how much of that a guess without the text would have.

The only module, with `bound`, that reads a `Truth`.

What no attacker who looks at each token alone can exceed: the sum over y of max_x prior(x) * P(y|x), true prior.

The judge's own figure: it is given the exact word frequencies of the audited text, which no attacker has. It counts on
fresh noise, so it is a property of the mechanism on this text and not of the file's luck. It also says what share of
tokens the stated mechanism should leave unchanged: a file that differs was not made by that mechanism.

The best choice for every y comes from the channel estimate; its success is counted on fresh tokens through the real
mechanism, so an error of the estimate can only make the choice worse, never the count better. How much it may be worse
is `regret`, and is added to the upper end.

Not covered: attackers who use the context of a token, and those who fit themselves to the file's own noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels import estimate_channel
from rapt.audit.intervals import Share, compute_clustered_share, compute_independent_share
from rapt.audit.truth import Truth
from rapt.audit.view import SCORED, AdversaryView, Guess
from rapt.errors import AuditError
from rapt.local.mechanisms import remake_mechanism
from rapt.local.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Recovered tokens among some tokens.

    Attributes:
        first: Share whose true token was the first guess.
        any_of_k: Share whose true token was among the first `k` guesses.
        k: Guesses that were allowed.
        chance: Recovery of the best guess without the text: always the most frequent token, its frequency known.
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


def score_guess(guess: Guess, *, view: AdversaryView, truth: Truth) -> TokenScore:
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
    everything = _make_recovery(guess.token_ids[:, :SCORED], true, lengths=view.record_lengths)
    assert everything is not None  # a view has at least one token
    changed = view.observed != true
    record = np.repeat(np.arange(len(view.record_lengths)), view.record_lengths)
    lengths = np.bincount(record[changed], minlength=len(view.record_lengths))
    guessed, observed = guess.token_ids[changed], view.observed[changed]
    return TokenScore(
        all_tokens=everything,
        changed_tokens=_make_recovery(guessed[:, :SCORED], true[changed], lengths=lengths),
        told_changed=_make_recovery(_strike_out(guessed, observed)[:, :SCORED], true[changed], lengths=lengths),
    )


def compute_unchanged_share(*, view: AdversaryView, truth: Truth) -> Share:
    """The share of tokens that the mechanism gave back as they were: N_w, averaged over the text."""
    found = compute_clustered_share(view.observed == truth.token_ids, view.record_lengths)
    assert found is not None  # a view has at least one token
    return found


def _strike_out(guessed: NDArray[np.int64], observed: NDArray[np.int64]) -> NDArray[np.int64]:
    """The guesses without the observed token, which goes to the end of its row."""
    order = np.argsort(guessed == observed[:, None], axis=1, kind="stable")
    return np.take_along_axis(guessed, order, axis=1)


def _make_recovery(
    guessed: NDArray[np.int64], true: NDArray[np.int64], *, lengths: NDArray[np.int64]
) -> Recovery | None:
    hits = guessed == true[:, None]
    first = compute_clustered_share(hits[:, 0], lengths)
    any_of_k = compute_clustered_share(hits.any(axis=1), lengths)
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


# Tokens that are privatized afresh: twice those of the file, within limits. The largest number gives half an interval
# of at most 1.1 points; more than the file's own error would be wasted on a small one.
MOST_TRIALS: Final = 8192
_LEAST_TRIALS: Final = 1024


@dataclass(frozen=True, kw_only=True)
class ContextFreeBound:
    """The success of the best context-free attacker on this text.

    Attributes:
        success: Success of the best choice found, on fresh noise.
        high: Upper end with what the choice may have missed: an attacker above it is not context-free.
        regret: Success that the choice may have missed, as a share of it.
        unchanged: Share of tokens that the stated mechanism leaves as they are, on the same fresh noise.
    """

    success: Share
    high: float
    regret: float
    unchanged: Share


def compute_context_free_bound(
    view: AdversaryView,
    truth: Truth,
    *,
    seed: int,
    trials: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> ContextFreeBound:
    """The bound for the text of a view under its stated mechanism.

    Args:
        view: View of the service.
        truth: The true tokens, whose frequencies are the prior.
        seed: Seed of the fresh noise and of the channel estimate. Nothing is released, so it need not be secret.
        trials: Tokens to privatize; None chooses by the size of the file.
        on_progress: Called with the share done.

    Raises:
        AuditError: The mechanism's channel is not known.
    """
    if trials is None:
        trials = int(np.clip(2 * len(truth.token_ids), _LEAST_TRIALS, MOST_TRIALS))
    rng = np.random.default_rng(seed)
    setting = view.manifest.mechanism
    prior = np.bincount(truth.token_ids, minlength=len(view.bundle.embeddings)) / len(truth.token_ids)
    # A systematic sample: every token of the text stands in it with the same expected number.
    places = (np.arange(trials) + rng.random()) * (len(truth.token_ids) / trials)
    true = np.sort(truth.token_ids)[places.astype(np.int64)]
    mechanism = remake_mechanism(setting, vocabulary=Vocabulary(view.bundle), allow_unproved=True)
    released = mechanism.privatize(true, rng=rng)
    outputs, place = np.unique(released, return_inverse=True)
    channel = estimate_channel(setting, view.bundle, outputs=outputs, prior=prior, rng=rng, on_progress=on_progress)
    success = compute_independent_share(channel.rank_sources(prior)[:, 0][place] == true)
    regret = channel.regret(prior)
    return ContextFreeBound(
        success=success,
        high=min(1.0, success.high * (1 + regret)),
        regret=regret,
        unchanged=compute_independent_share(released == true),
    )
