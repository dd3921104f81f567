"""Public knowledge of each mechanism: its parameters by name, the status of its guarantee, and its channel.

The mechanisms themselves are in `rapt.local.mechanisms`. Names and meanings are append-only: the name of a mechanism,
or of a parameter, keeps its meaning for ever. A file may state fewer parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

GuaranteeStatus = Literal["proved", "conditional", "broken-as-published"]
# How an attacker learns P(y|x): by a closed form, by the geometry of Laplace noise, by that and the moves among near
# tokens that follow it, or by counting draws of his own.
ChannelKind = Literal["closed", "laplace", "ranked", "counted"]
# What one guarantee is for: each token beside its neighbours by distance (eta), or the whole text beside any (epsilon).
Unit = Literal["token", "text"]

MOST_CODEWORDS: Final = 65_536  # of a codebook
MOST_CODES: Final = 64  # ids that one text becomes
USUAL_EPSILON: Final = 16.0  # beyond it a text is nearly always named among a thousand; a user has to say so
MOST_EPSILON: Final = 64.0


@dataclass(frozen=True)
class KnownMechanism:
    """Knowledge of a mechanism that a reader of a manifest needs.

    Attributes:
        parameters: Names of all its public parameters.
        channel: Way in which an attacker learns P(y|x).
        status: Whether the guarantee is proved for all pairs of tokens, or of texts.
        caveat: Reason why it is not, and what to use instead; empty where it is.
        unit: Unit of the guarantee: each token, at slope `eta`, or the whole text, at `epsilon`.
    """

    parameters: frozenset[str]
    channel: ChannelKind
    status: GuaranteeStatus = "proved"
    caveat: str = ""
    unit: Unit = "token"


def _known(parameters: str, channel: ChannelKind) -> KnownMechanism:
    return KnownMechanism(frozenset(parameters.split()), channel)


KNOWN_MECHANISMS: Final[Mapping[str, KnownMechanism]] = {
    "laplace": _known("eta", "laplace"),
    "exponential": _known("eta beta calibrated prior", "closed"),
    "soft-pos": _known("eta beta calibrated metric penalty tags", "closed"),
    "mahalanobis": _known("eta metric mixing", "laplace"),
    "unit-laplace": _known("eta metric", "laplace"),
    "vickrey": _known("eta tuning", "counted"),
    "rank-fix": _known("eta decay", "ranked"),
    "tem": _known("eta outside", "closed"),
    "santext": _known("eta", "closed"),
    "custext": KnownMechanism(
        frozenset({"eta", "metric", "set_size"}),
        "closed",
        status="conditional",
        caveat="it holds within a set of words only, and the set of every word is sent in clear; use santext",
    ),
    "pct2t": KnownMechanism(
        frozenset({"eta", "metric", "tags"}),
        "counted",
        status="broken-as-published",
        caveat="words of different classes have no outputs in common, so their ε is infinite; use soft-pos",
    ),
    "subset": KnownMechanism(
        frozenset({"epsilon", "preferred", "codewords", "codes", "texts", "center"}), "closed", unit="text"
    ),
}


def find_unit(name: str) -> Unit:
    """Return the unit of a mechanism; one that is not known here protects tokens, as all did at first."""
    known = KNOWN_MECHANISMS.get(name)
    return "token" if known is None else known.unit
