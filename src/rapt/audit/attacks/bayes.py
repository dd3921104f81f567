"""The context-free Bayes attack: argmax_x prior(x) * P(y|x), the best that a token on its own allows.

Source: Tong et al., NAACL 2025, the attack without context. The channel is the mechanism's own, which is public; the
prior is whatever the attacker knows about the frequency of words.
"""

from __future__ import annotations

import numpy as np

from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.guess import CANDIDATES, Guess


def context_free_bayes(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the sources of largest posterior probability.

    Without a public prior the attacker fits one to the file itself (`prior_fit`), which is much weaker.

    Args:
        desk: What the attacker has.
        on_progress: Called with the share done.
    """
    channel = desk.channel(on_progress)
    prior = desk.prior()
    place = np.searchsorted(channel.outputs, desk.view.observed)
    return Guess(token_ids=channel.ranked(prior.probabilities)[:, :CANDIDATES][place], remarks=(prior.source,))
