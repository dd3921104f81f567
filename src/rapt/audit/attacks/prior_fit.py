"""The frequencies of words, fitted to a privatized file by an attacker who has no public text."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels.estimate import ChannelEstimate
from rapt.audit.priors import uniform_prior
from rapt.audit.view import AdversaryView

# Share of the starting prior that is spread evenly, so that no token is ruled out.
_EVEN_SHARE: Final = 0.1


def fit_prior(
    channel: ChannelEstimate, counts: NDArray[np.int64], *, start: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """Frequencies of the true tokens, estimated from the privatized ones by expectation-maximization.

    Each step replaces prior(x) by the mean of P(x|y) over the observed tokens.

    Args:
        channel: At the observed outputs, O of them.
        counts: How often each was observed, (O,).
        start: Prior to begin with, (V,).
        steps: Number of steps; more of them raise the likelihood, and at some point follow the noise.

    Returns:
        (V,), sum 1.
    """
    prior = start
    for _ in range(steps):
        joint = channel.joint(prior)
        total = joint.sum(axis=1, keepdims=True)
        posterior = joint / np.where(total > 0, total, 1)
        fitted = np.bincount(channel.sources.ravel(), (counts[:, None] * posterior).ravel(), minlength=len(start))
        prior = fitted / fitted.sum()
    return prior


def starting_prior(view: AdversaryView, outputs: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where the fit begins: the frequencies of the privatized tokens, and a little for every other."""
    prior = _EVEN_SHARE * uniform_prior(view.bundle).probabilities
    prior[outputs] += (1 - _EVEN_SHARE) * counts / counts.sum()
    return prior
