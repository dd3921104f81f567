"""Membership inference on a tuned model: was this text among those it was tuned on?

The attacker asks the model about a text, with its label, and compares the confidence of the answer with that of
*shadow* models, which he tuned himself in the same way on texts that he chose. Every attack gets the same
`MembershipView` and gives a score for each text; who was a member is told to the judge alone.

`threshold` is the confidence itself (Yeom et al. 2018), for comparison: it finds easy texts more than members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from rapt.audit.artefact.hierarchical import hierarchical
from rapt.audit.artefact.lira import lira_offline, lira_online
from rapt.audit.artefact.membership_view import Floats, MembershipView
from rapt.audit.artefact.rmia import rmia


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
