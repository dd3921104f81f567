"""What a batch came to, whatever its task."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """The loss of one batch and how much of it was right.

    Attributes:
        loss: L_task, a scalar in nats a row, or a token of generated text; carries a gradient.
        right: How many answers were right, a scalar.
        total: Of how many.
    """

    loss: Tensor
    right: Tensor
    total: int
