"""The entity policy in a manifest: its kinds and what became of each, neither patterns nor placeholders.

It follows from the setting and not from a text: how many entities were found stays on the user's machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from rapt.errors import WireError
from rapt.wire.mechanism_setting import check_epsilon, check_eta

Treatment = Literal["mask", "pseudonym", "epsilon", "eta"]
TREATMENTS: Final[tuple[Treatment, ...]] = get_args(Treatment)  # the strictest first
MOST_KINDS: Final = 64
KIND_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, kw_only=True)
class KindSetting:
    """What became of the entities of one kind.

    Attributes:
        kind: Name of the kind, such as `person`.
        treatment: `mask` and `pseudonym` replaced its words before the mechanism; `eta` and `epsilon` replaced each of
            its tokens at a strength of its own.
        strength: η in 1/distance, or ε in nats for any two tokens; None for words that were replaced.
    """

    kind: str
    treatment: Treatment
    strength: float | None = None


def dump_policy(policy: Sequence[KindSetting]) -> dict[str, Any]:
    """Return the kinds as plain JSON values, as a policy's file writes them."""
    return {one.kind: one.treatment if one.strength is None else {one.treatment: one.strength} for one in policy}


def parse_policy(value: Mapping[str, Any]) -> tuple[KindSetting, ...]:
    """Return the kinds in a JSON object, as `dump_policy` writes them.

    Raises:
        WireError: There are too many kinds, or a name or a treatment is none of this format.
        MechanismError: An η or ε is outside its domain.
    """
    what = "the policy of a manifest"
    if not 1 <= len(value) <= MOST_KINDS or not all(map(KIND_NAME.fullmatch, value)):
        raise WireError(
            f"{what} must have 1 to {MOST_KINDS} kinds, named by small letters, digits and underscores; write the file "
            "again"
        )
    found = []
    for kind, stated in value.items():
        if stated in ("mask", "pseudonym"):
            found.append(KindSetting(kind=kind, treatment=stated))
        elif type(stated) is dict and stated.keys() == {"eta"}:
            found.append(KindSetting(kind=kind, treatment="eta", strength=check_eta(stated["eta"])))
        elif type(stated) is dict and stated.keys() == {"epsilon"}:
            found.append(KindSetting(kind=kind, treatment="epsilon", strength=check_epsilon(stated["epsilon"])))
        else:
            raise WireError(f"{what} must say mask, pseudonym, eta or epsilon of each kind; upgrade rapt")
    return tuple(found)


def describe_policy(policy: Sequence[KindSetting]) -> str:
    """Return the kinds and what became of each, in words."""
    groups: dict[str, list[str]] = {}
    for one in policy:
        said = {"mask": "masked", "pseudonym": "pseudonyms"}.get(one.treatment)
        said = said or f"each token at {one.treatment}={one.strength:g}"
        groups.setdefault(said, []).append(one.kind)
    return "; ".join(f"{', '.join(kinds)}: {said}" for said, kinds in groups.items())
