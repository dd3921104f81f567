"""LiRA: two normal laws for each text, one of models that were tuned on it and one of models that were not.

The logit-scaled confidence log(p / (1 - p)) is close to normal over trainings, so both laws are fitted to the
attacker's shadow models.

- `lira_online` is the log ratio of the two densities: shadow models are tuned with the text in question.
- `lira_offline` is how far the confidence lies above the second law alone: shadow models are tuned once, before anybody
  knows which text will be asked about.

*Source.* Carlini, Chien, Nasr, Song, Terzis, Tramèr: "Membership Inference Attacks From First Principles", S&P 2022,
Algorithm 1, and Section VI-C for the variance that all texts share when there are few shadow models.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.artefact.membership_view import Floats, MembershipView

# Shadow models on either side of a text from which on it has a variance of its own: half of the paper's 64.
_OWN_VARIANCE: Final = 32
_LEAST_DEVIATION: Final = 1e-6


def lira_online(view: MembershipView) -> Floats:
    """Log ratio of the densities with and without each text, (n,): larger speaks for a member."""
    inside, outside = _law(view, view.members), _law(view, ~view.members)
    score: Floats = _log_density(view.target, inside) - _log_density(view.target, outside)
    return score


def lira_offline(view: MembershipView) -> Floats:
    """Deviations above the models without each text, (n,)."""
    mean, deviation = _law(view, ~view.members)
    score: Floats = (view.target - mean) / deviation
    return score


def _law(view: MembershipView, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and deviation of the chosen shadow models' confidences in each text, (n,) each."""
    count = chosen.sum(axis=0)
    everywhere = float(view.shadows[chosen].mean())
    mean = np.where(count > 0, (view.shadows * chosen).sum(axis=0) / np.maximum(count, 1), everywhere)
    square = (np.where(chosen, view.shadows - mean, 0.0) ** 2).sum(axis=0)
    freedom = np.maximum(count - 1, 0)
    shared = float(square.sum() / max(int(freedom.sum()), 1))
    variance = np.where(count >= _OWN_VARIANCE, square / np.maximum(freedom, 1), shared)
    return mean, np.maximum(np.sqrt(variance), _LEAST_DEVIATION)


def _log_density(values: Floats, law: tuple[Floats, Floats]) -> Floats:
    mean, deviation = law
    density: Floats = -0.5 * ((values - mean) / deviation) ** 2 - np.log(deviation)
    return density
