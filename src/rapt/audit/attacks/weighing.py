"""How much to believe each source of an attacker's beliefs: weights fitted on text whose truth he knows.

Evidence of the channel, sums over n-grams and a language model all say something about each candidate, partly the same
thing twice. The logarithms are added with weights that make the true candidates of the shadow text likeliest: a
conditional logit (McFadden 1974), convex, with a handful of weights, so a few thousand tokens are enough.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A logarithm below this says "no" as loudly; it bounds what one wrong belief can do to the fit.
LEAST: Final = -30.0
# Keeps weights near where they begin when there is little text, as if so many tokens had been seen.
_CAUTION: Final = 20.0


def weigh(features: Floats, target: Ints, *, start: Floats) -> Floats:
    """Weights of the features, (F,).

    Args:
        features: Of each candidate of each token, (F, n, K).
        target: Column of the true candidate, (n,).
        start: Weights to begin with, and to stay near, (F,).
    """
    chosen = np.take_along_axis(features, target[None, :, None], axis=2)[..., 0]  # (F, n)

    def loss(weights: Floats) -> tuple[float, Floats]:
        score = np.tensordot(weights, features, axes=1)
        total = logsumexp(score, axis=1)
        expected = np.einsum("fnk,nk->fn", features, np.exp(score - total[:, None]))
        away = weights - start
        value = float((total - weights @ chosen).sum() + _CAUTION / 2 * away @ away)
        return value, (expected - chosen).sum(axis=1) + _CAUTION * away

    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x)
