"""Exposures: what a mechanism, an entity policy and a cluster leave open, as lines of a privacy statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rapt.wire.manifest import (
    CLUSTER_SOURCE,
    CLUSTER_SOURCE_WITHOUT_AES,
    Arrangement,
    LabelPrivacy,
    PlainTokens,
    Randomness,
    Targets,
)
from rapt.wire.mechanism_setting import Unit
from rapt.wire.policy_setting import KindSetting, describe_policy

PROTECTS_NOTHING: Final = (
    "THIS PROTECTS NOTHING. The noise came from a seed that is written in the file, so anyone can draw it again and "
    "read the text. Privatize again without a seed before anything leaves this machine."
)


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Something that the mechanism does not protect."""

    what: str
    why: str


def list_exposures(
    plain_tokens: PlainTokens,
    *,
    labels_sent: bool,
    label_privacy: LabelPrivacy | None,
    pairs: bool,
    targets: Targets | None,
    arrangement: Arrangement,
    noise_drawn: bool = True,
) -> Iterator[Exposure]:
    """List what the mechanism leaves open, for any setting of it."""
    if targets == "public":
        yield Exposure(
            what="targets",
            why="the text to be generated of each record is sent in clear, because it was declared public; what it "
            "says of the text beside it is open",
        )
    if pairs or targets == "privatized":
        yield Exposure(
            what="texts of one record",
            why="which texts belong together; each is protected as a text is, and what two of them have in common is "
            "told twice: their losses add up",
        )
    if labels_sent and label_privacy is not None:
        yield Exposure(
            what="labels",
            why="the names of the labels are sent in clear, so which labels exist is open; the label of a text is "
            "randomized, and its ε adds to the text's; the share of each label in the whole file can be estimated well",
        )
    elif labels_sent:
        yield Exposure(what="labels", why="the label of each text, and the names of the labels, are sent in clear")
    length = "how many tokens each has"
    if (bucket := arrangement.length_bucket) is not None:
        length = (
            f"how many tokens each has, rounded up to a multiple of {bucket} by public words that went through the "
            "mechanism; a reader who sees where the sense ends can tell how long a text was"
        )
    yield Exposure(
        what="number and length",
        why=f"how many texts there are, and {length}; a rare word shows its number of pieces",
    )
    order = "the order of the texts, "
    if arrangement.shuffled:
        order = "not the order of the texts, which were shuffled (only the receipt of the run knows how), but "
    yield Exposure(
        what="order and place",
        why=f"{order}the place of each token, and where a text begins and ends",
    )
    if arrangement.replayed:
        yield Exposure(
            what="equal texts",
            why="a text whose tokens were released before with this setting stands here as it was sent then, in this "
            "file or in another, so whoever sees both sees that it is the same text; texts of one record are always "
            "drawn apart",
        )
    yield Exposure(
        what="repeated releases",
        why="each further release of a text adds its own loss, and so does each text in which a word comes back; "
        "privatize a text once and keep the file",
    )
    yield Exposure(
        what="context",
        why="the words of a text depend on each other, so a reader who knows the language corrects many single tokens",
    )
    yield Exposure(
        what="topic, style and author",
        why="what is spread over many tokens is protected as a text is, not as a token is: see the table of texts",
    )
    yield Exposure(what="timing", why="when and how often files and queries are sent, and how long that takes")
    yield Exposure(what="the setting", why="model, mechanism, η and all numbers of this statement are public")
    if noise_drawn:
        yield Exposure(
            what="floating point",
            why="the bounds are of real numbers; noise is drawn in float64, whose missing tail, of probability below "
            "1e-15, ε at δ covers and the pure ε strictly does not; the noisy vector, whose low bits would betray a "
            "token, never leaves, only the token nearest to it",
        )
    else:
        yield Exposure(
            what="floating point",
            why="draws are exact for scores that are rounded once, which changes a pure ε by less than 1e-5",
        )
    if plain_tokens.count:
        yield Exposure(
            what="plain tokens",
            why="they are public by design and stand beside their privatized forms; they were chosen before any text "
            "was read and say nothing about one",
        )


def list_trusted_machines(randomness: Randomness | None) -> Iterator[Exposure]:
    """Say whom a file that was drawn on a cluster trusts beside the machine of its owner."""
    if randomness is not None and randomness.source in (CLUSTER_SOURCE, CLUSTER_SOURCE_WITHOUT_AES):
        yield Exposure(
            what="the cluster",
            why="the texts and the key of the noise were on every node of a Ray cluster, in memory and perhaps on "
            "disk. The whole cluster is trusted as the machine of the owner is, and so is its network",
        )


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
