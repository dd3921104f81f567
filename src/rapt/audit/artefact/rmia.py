"""RMIA: is the model surer of this text than of others, each measured by what models in general think of it?

A text x is held against every other text z: the ratio [p(x | model) / p(x)] / [p(z | model) / p(z)], with p(x) the mean
probability of x's label over shadow models, half of the weight on those that had x. The score is the share of texts z
for which the ratio is at least γ.

Within one model, whatever γ is, the score rises with p(x | model) / p(x); γ only decides which texts share a score.
Paper: γ = 2 and texts z of the population. Ours: γ = 1, which makes the score a rank, and the texts that are asked
about, of which about half are members. Effect: fewer ties where few false alarms are allowed, and no further text is
needed.

*Source.* Zarifzadeh, Liu, Shokri: "Low-Cost High-Power Membership Inference Attacks", ICML 2024, arXiv 2312.03262.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from rapt.audit.artefact.membership_view import Floats, MembershipView


def rmia(view: MembershipView) -> Floats:
    """Share of the other texts that the model is relatively less sure of, (n,); a tie counts one half."""
    probability = expit(view.shadows)
    inside, outside = _mean(probability, view.members), _mean(probability, ~view.members)
    expected = np.log((inside + outside) / 2)
    ratio = -np.logaddexp(0.0, -view.target) - expected
    share: Floats = (stats.rankdata(ratio) - 1) / max(len(ratio) - 1, 1)
    return share


def _mean(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Mean over the chosen shadow models, (n,), and over all where none is chosen."""
    count = chosen.sum(axis=0)
    mean: Floats = np.where(count > 0, (values * chosen).sum(axis=0) / np.maximum(count, 1), values.mean(axis=0))
    return mean
