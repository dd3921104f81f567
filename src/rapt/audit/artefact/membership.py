"""Membership inference on a tuned model: was this text among those it was tuned on?

The attacker asks the model about a text, with its label, and compares the confidence of the answer with that of
*shadow* models, which he tuned himself in the same way on texts that he chose. This is LiRA (Carlini et al. 2022): the
logit-scaled confidence log(p / (1 - p)) is close to normal over trainings, so two normal laws are fitted for each
text, one to the shadow models that had it and one to those that had not.

- `lira_online` is the log ratio of the two densities: shadow models are tuned with the text in question.
- `lira_offline` is how far the confidence lies above the second law alone: shadow models are tuned once, before anybody
  knows which text will be asked about.
- `threshold` is the confidence itself (Yeom et al. 2018), for comparison: it finds easy texts more than members.

Texts are drawn into the tuning of each shadow model independently of each other model. If each text were in exactly
half of them, as is usual, the number of shadow models that have a text would tell whether the attacked one has it.

*Source.* Carlini, Chien, Nasr, Song, Terzis, Tramèr: "Membership Inference Attacks From First Principles", S&P 2022,
Algorithm 1, and Section VI-C for the variance that all texts share when there are few shadow models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import AuditError

Floats = NDArray[np.float64]

# Shadow models on either side of a text from which on it has a variance of its own: half of the paper's 64.
_OWN_VARIANCE: Final = 32
_LEAST_DEVIATION: Final = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipView:
    """All that the attacker holds. n texts that he asks about, N shadow models. Who was a member is not among it.

    Attributes:
        target: Logit-scaled confidence of the attacked model in the label of each text, (n,).
        shadows: The same of each shadow model, (N, n).
        members: Which texts the attacker tuned each shadow model on, (N, n).
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


def views_of_each(answers: Floats, members: NDArray[np.bool_]) -> Iterator[MembershipView]:
    """Each model as the attacked one, all others being the attacker's own shadow models.

    Args:
        answers: Confidences of all models, (N, n).
        members: What each was tuned on, (N, n); a view does not hold the attacked model's own.
    """
    for target in range(len(answers)):
        yield MembershipView(
            target=answers[target],
            shadows=np.delete(answers, target, axis=0),
            members=np.delete(members, target, axis=0),
        )


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


def threshold(view: MembershipView) -> Floats:
    """The confidence itself, (n,): no shadow model is used."""
    return view.target


MEMBERSHIP_ATTACKS: Final[Mapping[str, Callable[[MembershipView], Floats]]] = MappingProxyType(
    {"lira_online": lira_online, "lira_offline": lira_offline, "threshold": threshold}
)


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
