"""What an attacker on membership holds: confidences of the attacked model, and those of models of his own.

Texts are drawn into the tuning of each shadow model independently of each other model. If each text were in exactly
half of them, as is usual, the number of shadow models that have a text would tell whether the attacked one has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rapt.errors import AuditError

Floats = NDArray[np.float64]


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
