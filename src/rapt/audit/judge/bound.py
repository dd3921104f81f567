"""What no attacker who looks at each token alone can exceed: the sum over y of max_x prior(x) * P(y|x), true prior.

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

from rapt.audit.channels import estimate_channel
from rapt.audit.intervals import Share, independent_share
from rapt.audit.view import AdversaryView, Truth
from rapt.local.mechanisms import mechanism_of_setting
from rapt.local.vocabulary import Vocabulary

# Tokens that are privatized afresh: twice those of the file, within limits. The largest number gives half an interval
# of at most 1.1 points; more than the file's own error would be wasted on a small one.
MOST_TRIALS: Final = 8192
_LEAST_TRIALS: Final = 1024


@dataclass(frozen=True, kw_only=True)
class ContextFreeBound:
    """The success of the best context-free attacker on this text.

    Attributes:
        success: Of the best choice found, on fresh noise.
        high: Upper end with what the choice may have missed: an attacker above it is not context-free.
        regret: Success that the choice may have missed, as a share of it.
        unchanged: Share of tokens that the stated mechanism leaves as they are, on the same fresh noise.
    """

    success: Share
    high: float
    regret: float
    unchanged: Share


def context_free_bound(
    view: AdversaryView,
    truth: Truth,
    *,
    seed: int,
    trials: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> ContextFreeBound:
    """The bound for the text of a view under its stated mechanism.

    Args:
        view: What the service sees.
        truth: The true tokens, whose frequencies are the prior.
        seed: Of the fresh noise and of the channel estimate. Nothing is released, so it need not be secret.
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
    mechanism = mechanism_of_setting(setting, vocabulary=Vocabulary(view.bundle), allow_unproved=True)
    released = mechanism.privatize(true, rng=rng)
    outputs, place = np.unique(released, return_inverse=True)
    channel = estimate_channel(setting, view.bundle, outputs=outputs, prior=prior, rng=rng, on_progress=on_progress)
    success = independent_share(channel.ranked(prior)[:, 0][place] == true)
    regret = channel.regret(prior)
    return ContextFreeBound(
        success=success,
        high=min(1.0, success.high * (1 + regret)),
        regret=regret,
        unchanged=independent_share(released == true),
    )
