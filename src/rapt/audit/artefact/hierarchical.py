"""A likelihood ratio in which texts learn from each other: LiRA's two laws, for as few shadow models as people tune.

LiRA fits the two laws of a text to the handful of shadow models that had it and that had not, so both means are off by
a third of a deviation with ten of each. Here a text is one of many:

- *Models.* Some models are surer of everything than others. Each model's answers are scaled to mean 0 and deviation 1
  over the texts.
- *Laws.* Of text i, models without it answer N(μ_i, σ_i²) and those with it N(μ_i + δ_i, σ_i²).
- *Shifts.* How much surer a model is of what it has read, δ_i, is N(δ, ω²) over texts; both are found by the method of
  moments of DerSimonian and Laird 1986.
- *Variances.* σ_i² is shrunk towards the one that explains all texts (Smyth 2004, Section 6.2): with few models it is
  that one, with many it is the text's own, and no threshold lies between.

Nothing is known of μ_i beforehand. The score is the log ratio of both predictive densities at the attacked model's
answer, each as wide as its mean is uncertain. With ω = ∞ each mean is that of its own side alone, as in LiRA.

*Source.* The model and its closed form are ours. Brännvall 2026 (arXiv 2603.11799) shares variances among texts in the
same spirit, by a normal-inverse-gamma prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import digamma, polygamma

from rapt.audit.artefact.membership_view import Floats, MembershipView

_LEAST_VARIANCE: Final = 1e-12
_STEPS: Final = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """What shadow models answer on n texts, by whether they had them; means and counts (n,) each.

    Attributes:
        inside: Mean answer of the models that had each text, anything where there is none.
        with_it: How many they are.
        outside: The same of those that had not.
        without: How many they are; above 0 where `with_it` is 0.
    """

    inside: Floats
    with_it: Floats
    outside: Floats
    without: Floats


def hierarchical(view: MembershipView) -> Floats:
    """Log ratio of the predictive densities with and without each text, (n,): larger speaks for a member."""
    target, *shadows = (_scaled(row) for row in (view.target, *view.shadows))
    answers, members = np.stack(shadows), view.members
    with_it, without = members.sum(axis=0), (~members).sum(axis=0)
    sides = Sides(
        inside=np.where(members, answers, 0.0).sum(axis=0) / np.maximum(with_it, 1),
        with_it=with_it,
        outside=np.where(members, 0.0, answers).sum(axis=0) / np.maximum(without, 1),
        without=without,
    )
    squares = ((answers - np.where(members, sides.inside, sides.outside)) ** 2).sum(axis=0)
    variance = shrunk_variances(squares, np.maximum(with_it - 1, 0) + np.maximum(without - 1, 0))
    both = (with_it > 0) & (without > 0)
    shift, spread = law_of_shifts(
        (sides.inside - sides.outside)[both],
        variance[both] / with_it[both] + variance[both] / without[both],
    )
    return log_ratio(target, sides, variance=variance, shift=shift, spread=spread)


def log_ratio(target: Floats, sides: Sides, *, variance: Floats, shift: float, spread: float) -> Floats:
    """Log ratio of both predictive densities at the target's answers, (n,), for known σ², (n,), δ and ω²."""
    # What either side tells of its own mean, and of the other's, from which it is one uncertain shift away.
    own_inside, own_outside = sides.with_it / variance, sides.without / variance
    from_inside = sides.with_it / (variance + sides.with_it * spread)
    from_outside = sides.without / (variance + sides.without * spread)
    member = _log_density(
        target,
        mean=(sides.inside * own_inside + (sides.outside + shift) * from_outside) / (own_inside + from_outside),
        variance=variance + 1 / (own_inside + from_outside),
    )
    other = _log_density(
        target,
        mean=(sides.outside * own_outside + (sides.inside - shift) * from_inside) / (own_outside + from_inside),
        variance=variance + 1 / (own_outside + from_inside),
    )
    return member - other


def law_of_shifts(shifts: Floats, variances: Floats) -> tuple[float, float]:
    """Mean δ and variance ω² of shifts (k,) that are known to some variance each, (k,); 0 and 0 where k = 0.

    ω² is 0 where the shifts differ by no more than their variances explain.
    """
    if not len(shifts):
        return 0.0, 0.0
    weights = 1 / variances
    mean = float(np.average(shifts, weights=weights))
    excess = float((weights * (shifts - mean) ** 2).sum()) - (len(shifts) - 1)
    room = float(weights.sum() - (weights**2).sum() / weights.sum())
    spread = max(excess / room, 0.0) if room > 0 else 0.0
    return float(np.average(shifts, weights=1 / (variances + spread))), spread


def shrunk_variances(squares: Floats, freedom: Floats) -> Floats:
    """Variance of each text, (n,): its own and everybody's, weighted by their degrees of freedom.

    The variances of texts are taken to follow d_0 s_0² / χ²(d_0); d_0 and s_0² match mean and variance of the logs.

    Args:
        squares: Sums of squared deviations, (n,).
        freedom: Their degrees of freedom, (n,), 0 where nothing is known.
    """
    known = freedom > 0
    if not known.any():
        return np.full(len(squares), 1.0)  # answers are scaled to it
    own = np.maximum(squares[known] / freedom[known], _LEAST_VARIANCE)
    half = freedom[known] / 2
    logs = np.log(own) - digamma(half) + np.log(half)
    mean = float(logs.mean())
    excess = float(logs.var(ddof=1) - polygamma(1, half).mean()) if len(logs) > 1 else 0.0
    if excess <= 0:  # no more different than chance makes them
        return np.full(len(squares), np.exp(mean))
    prior = 2 * _inverse_trigamma(excess)
    common = np.exp(mean + digamma(prior / 2) - np.log(prior / 2))
    shrunk: Floats = np.maximum((prior * common + squares) / (prior + freedom), _LEAST_VARIANCE)
    return shrunk


def _inverse_trigamma(value: float) -> float:
    """The x with ψ'(x) = value > 0, by Newton's method on 1 / ψ', which is nearly straight (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(_STEPS):
        found = float(polygamma(1, x))
        step = found * (1 - found / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def _scaled(row: Floats) -> Floats:
    deviation = row.std()
    scaled: Floats = (row - row.mean()) / (deviation if deviation > 0 else 1.0)
    return scaled


def _log_density(values: Floats, *, mean: Floats, variance: Floats) -> Floats:
    density: Floats = -0.5 * ((values - mean) ** 2 / variance + np.log(variance))
    return density
