"""Membership inference: what an attacker holds, and his attacks.

What an attacker on membership holds: confidences of the attacked model, and those of models of his own.

Texts are drawn into the tuning of each shadow model independently of each other model. If each text were in exactly
half of them, as is usual, the number of shadow models that have a text would tell whether the attacked one has it.

LiRA: two normal laws for each text, one of models that were tuned on it and one of models that were not.

The logit-scaled confidence log(p / (1 - p)) is close to normal over trainings, so both laws are fitted to the
attacker's shadow models.

- `lira_online` is the log ratio of the two densities: shadow models are tuned with the text in question.
- `lira_offline` is how far the confidence lies above the second law alone: shadow models are tuned once, before anybody
  knows which text will be asked about.

*Source.* Carlini, Chien, Nasr, Song, Terzis, Tramèr: "Membership Inference Attacks From First Principles", S&P 2022,
Algorithm 1, and Section VI-C for the variance that all texts share when there are few shadow models.

RMIA: is the model surer of this text than of others, each measured by what models in general think of it?

A text x is held against every other text z: the ratio [p(x | model) / p(x)] / [p(z | model) / p(z)], with p(x) the mean
probability of x's label over shadow models, half of the weight on those that had x. The score is the share of texts z
for which the ratio is at least γ.

Within one model, whatever γ is, the score rises with p(x | model) / p(x); γ only decides which texts share a score.
Paper: γ = 2 and texts z of the population. Ours: γ = 1, which makes the score a rank, and the texts that are asked
about, of which about half are members. Effect: fewer ties where few false alarms are allowed, and no further text is
needed.

*Source.* Zarifzadeh, Liu, Shokri: "Low-Cost High-Power Membership Inference Attacks", ICML 2024, arXiv 2312.03262.

A likelihood ratio in which texts learn from each other: LiRA's two laws, for as few shadow models as people tune.

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

Membership inference on a tuned model: was this text among those it was tuned on?

The attacker asks the model about a text, with its label, and compares the confidence of the answer with that of
*shadow* models, which he tuned himself in the same way on texts that he chose. Every attack gets the same
`MembershipView` and gives a score for each text; who was a member is told to the judge alone.

`threshold` is the confidence itself (Yeom et al. 2018), for comparison: it finds easy texts more than members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import digamma, expit, polygamma

from rapt.errors import AuditError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipView:
    """All that the attacker holds. n texts that he asks about, N shadow models. Who was a member is not among it.

    Attributes:
        target: Logit-scaled confidence of the attacked model in the label of each text, (n,).
        shadows: The same of each shadow model, (N, n).
        members: True for each text that the attacker tuned a shadow model on, (N, n).
    """

    target: Floats = field(repr=False)
    shadows: Floats = field(repr=False)
    members: NDArray[np.bool_] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse shadow models that nothing can be learned from (`AuditError`)."""
        if self.shadows.shape != self.members.shape or self.shadows.shape[1:] != self.target.shape:
            raise AuditError(
                f"shadow models must be asked about the same texts as the model, got {self.shadows.shape} for "
                f"{self.target.shape}"
            )
        if len(self.shadows) < 2 or self.members.all() or not self.members.any():
            raise AuditError(
                f"membership needs two shadow models at least, tuned on some texts and not on others, got "
                f"{len(self.shadows)}; tune more"
            )


def make_views(answers: Floats, members: NDArray[np.bool_]) -> Iterator[MembershipView]:
    """Each model as the attacked one, all others being the attacker's own shadow models.

    Args:
        answers: Confidences of all models, (N, n).
        members: True for each text that a model was tuned on, (N, n); a view does not hold the attacked model's own.
    """
    for target in range(len(answers)):
        yield MembershipView(
            target=answers[target],
            shadows=np.delete(answers, target, axis=0),
            members=np.delete(members, target, axis=0),
        )


# Shadow models on either side of a text from which on it has a variance of its own: half of the paper's 64.
_OWN_VARIANCE: Final = 32
_LEAST_DEVIATION: Final = 1e-6


def lira_online(view: MembershipView) -> Floats:
    """Log ratio of the densities with and without each text, (n,): larger speaks for a member."""
    inside, outside = _fit_law(view, view.members), _fit_law(view, ~view.members)
    score: Floats = _log_density_of_law(view.target, inside) - _log_density_of_law(view.target, outside)
    return score


def lira_offline(view: MembershipView) -> Floats:
    """Deviations above the models without each text, (n,)."""
    mean, deviation = _fit_law(view, ~view.members)
    score: Floats = (view.target - mean) / deviation
    return score


def _fit_law(view: MembershipView, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and deviation of the chosen shadow models' confidences in each text, (n,) each."""
    count = chosen.sum(axis=0)
    everywhere = float(view.shadows[chosen].mean())
    mean = np.where(count > 0, (view.shadows * chosen).sum(axis=0) / np.maximum(count, 1), everywhere)
    square = (np.where(chosen, view.shadows - mean, 0.0) ** 2).sum(axis=0)
    freedom = np.maximum(count - 1, 0)
    shared = float(square.sum() / max(int(freedom.sum()), 1))
    variance = np.where(count >= _OWN_VARIANCE, square / np.maximum(freedom, 1), shared)
    return mean, np.maximum(np.sqrt(variance), _LEAST_DEVIATION)


def _log_density_of_law(values: Floats, law: tuple[Floats, Floats]) -> Floats:
    mean, deviation = law
    density: Floats = -0.5 * ((values - mean) / deviation) ** 2 - np.log(deviation)
    return density


def rmia(view: MembershipView) -> Floats:
    """Share of the other texts that the model is relatively less sure of, (n,); a tie counts one half."""
    probability = expit(view.shadows)
    inside, outside = _average_over(probability, view.members), _average_over(probability, ~view.members)
    expected = np.log((inside + outside) / 2)
    ratio = -np.logaddexp(0.0, -view.target) - expected
    share: Floats = (stats.rankdata(ratio) - 1) / max(len(ratio) - 1, 1)
    return share


def _average_over(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Mean over the chosen shadow models, (n,), and over all where none is chosen."""
    count = chosen.sum(axis=0)
    mean: Floats = np.where(count > 0, (values * chosen).sum(axis=0) / np.maximum(count, 1), values.mean(axis=0))
    return mean


_LEAST_VARIANCE: Final = 1e-12
_STEPS: Final = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """Answers of the shadow models on n texts, with and without each text; means and counts (n,) each.

    Attributes:
        inside: Mean answer of the models that had each text, anything where there is none.
        with_it: Number of models that had the text.
        outside: The same of those that had not.
        without: Number of models that did not have it; above 0 where `with_it` is 0.
    """

    inside: Floats
    with_it: Floats
    outside: Floats
    without: Floats


def hierarchical(view: MembershipView) -> Floats:
    """Log ratio of the predictive densities with and without each text, (n,): larger speaks for a member."""
    target, *shadows = (_scale(row) for row in (view.target, *view.shadows))
    answers, members = np.stack(shadows), view.members
    with_it, without = members.sum(axis=0), (~members).sum(axis=0)
    sides = Sides(
        inside=np.where(members, answers, 0.0).sum(axis=0) / np.maximum(with_it, 1),
        with_it=with_it,
        outside=np.where(members, 0.0, answers).sum(axis=0) / np.maximum(without, 1),
        without=without,
    )
    squares = ((answers - np.where(members, sides.inside, sides.outside)) ** 2).sum(axis=0)
    variance = shrink_variances(squares, np.maximum(with_it - 1, 0) + np.maximum(without - 1, 0))
    both = (with_it > 0) & (without > 0)
    shift, spread = estimate_shifts(
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


def estimate_shifts(shifts: Floats, variances: Floats) -> tuple[float, float]:
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


def shrink_variances(squares: Floats, freedom: Floats) -> Floats:
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
    prior = 2 * _invert_trigamma(excess)
    common = np.exp(mean + digamma(prior / 2) - np.log(prior / 2))
    shrunk: Floats = np.maximum((prior * common + squares) / (prior + freedom), _LEAST_VARIANCE)
    return shrunk


def _invert_trigamma(value: float) -> float:
    """The x with ψ'(x) = value > 0, by Newton's method on 1 / ψ', which is nearly straight (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(_STEPS):
        found = float(polygamma(1, x))
        step = found * (1 - found / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def _scale(row: Floats) -> Floats:
    deviation = row.std()
    scaled: Floats = (row - row.mean()) / (deviation if deviation > 0 else 1.0)
    return scaled


def _log_density(values: Floats, *, mean: Floats, variance: Floats) -> Floats:
    density: Floats = -0.5 * ((values - mean) ** 2 / variance + np.log(variance))
    return density


def threshold(view: MembershipView) -> Floats:
    """The confidence itself, (n,): no shadow model is used."""
    return view.target


MEMBERSHIP_ATTACKS: Final[Mapping[str, Callable[[MembershipView], Floats]]] = MappingProxyType(
    {
        "hierarchical": hierarchical,
        "lira_online": lira_online,
        "lira_offline": lira_offline,
        "rmia": rmia,
        "threshold": threshold,
    }
)
