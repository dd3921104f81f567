"""The mechanisms, one a module, in one closed dict: easy to swap among proved parts, hard to extend by accident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rapt.errors import MechanismError
from rapt.local.mechanisms.interface import GuaranteeStatus, Mechanism
from rapt.local.mechanisms.laplace import LaplaceMechanism
from rapt.local.vocabulary import Vocabulary

MECHANISMS: Final[Mapping[str, type[LaplaceMechanism]]] = {LaplaceMechanism.name: LaplaceMechanism}

__all__ = ["MECHANISMS", "GuaranteeStatus", "Mechanism", "make_mechanism"]


def make_mechanism(name: str, *, vocabulary: Vocabulary, eta: float) -> Mechanism:
    """The mechanism of that name on a vocabulary.

    Args:
        name: A key of `MECHANISMS`.
        vocabulary: Whose table and eligible ids it uses.
        eta: Slope of the guarantee, 1/distance in the vocabulary's table; there is no default.

    Raises:
        MechanismError: The name is unknown, or eta is not a finite number above 0.
    """
    if name not in MECHANISMS:
        raise MechanismError(f"unknown mechanism={name!r}; choose one of {', '.join(MECHANISMS)}")
    return MECHANISMS[name](vocabulary=vocabulary, eta=eta)
