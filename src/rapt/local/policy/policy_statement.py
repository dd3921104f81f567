"""Exposures that an entity policy leaves open, as lines of a privacy statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rapt.local.statement import Exposure
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.mechanisms import Unit
from rapt.wire.policy_setting import KindSetting, describe_policy


def list_policy_exposures(policy: Sequence[KindSetting], *, unit: Unit) -> Iterator[Exposure]:
    """List what is open beside the rest of a statement; nothing without a policy.

    Args:
        policy: Kinds and treatments, as a manifest states them.
        unit: Unit of the mechanism that the rewritten texts went through.
    """
    if not policy:
        return
    yield Exposure(what="the policy", why=f"its kinds and treatments stand in the manifest ({describe_policy(policy)})")
    yield Exposure(
        what="what no recognizer found",
        why="a name or number that was missed is protected as the rest of the text is, and no better; how many are "
        "missed, `rapt audit --entities-labelled` measures on labelled text",
    )
    treatments = {one.treatment for one in policy}
    if unit == "text":
        return
    if treatments & {"mask", "pseudonym"}:
        yield Exposure(
            what="places of entities",
            why="that one stood at a place is protected as a token is, because its placeholder went through the "
            "mechanism; how many tokens the rewritten text has is open",
        )
    if "pseudonym" in treatments:
        yield Exposure(
            what="equal names",
            why="a name has the same pseudonym wherever it comes, so its losses add up over texts, as those of any "
            "word do; of the name itself the pseudonym says nothing to anybody without the key",
        )
    if treatments & {"eta", "epsilon"}:
        yield Exposure(
            what="strengths of their own",
            why="which tokens a recognizer took for such a kind: more or less noise shows it, and two texts for which "
            "it differs have no bound; the numbers of this statement are those of the largest eta",
        )


def find_weakest(setting: MechanismSetting, policy: Sequence[KindSetting]) -> MechanismSetting:
    """Return the mechanism at the largest η that a policy gives any token."""
    largest = max([setting.eta, *(one.strength or 0.0 for one in policy if one.treatment == "eta")])
    return MechanismSetting(name=setting.name, parameters={**setting.parameters, "eta": largest})
