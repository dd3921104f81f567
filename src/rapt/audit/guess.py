"""What an attack answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Guesses a token that are scored, so that figures of different attacks compare.
SCORED: Final = 10
# One more is asked for: the observed token is struck out where an attacker is told that it was changed.
CANDIDATES: Final = SCORED + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Guess:
    """The likeliest true tokens of each privatized token, the best first.

    Attributes:
        token_ids: (n, up to `CANDIDATES`), in the order of `AdversaryView.observed`.
        remarks: What a reader of the result must know, such as the prior that was used.
    """

    token_ids: NDArray[np.int64] = field(repr=False)
    remarks: tuple[str, ...] = ()
