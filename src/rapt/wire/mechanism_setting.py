"""Public knowledge of mechanisms, and their settings: a name and public parameters, as manifests and cards state them.

Each mechanism is listed here with its parameters by name, the status of its guarantee, and its channel. The mechanisms
themselves are in `rapt.local.mechanisms`. Names and meanings are append-only: the name of a mechanism, or of a
parameter, keeps its meaning for ever. A file may state fewer parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard

from rapt.errors import MechanismError, WireError
from rapt.wire.strict_json import check_fields, read_count, read_field, read_name

GuaranteeStatus = Literal["proved", "conditional", "broken-as-published"]
# How an attacker learns P(y|x): by a closed form, by the geometry of Laplace noise and the nearest token, or the two
# nearest, by that and the moves among near tokens that follow it, or by counting draws of his own.
ChannelKind = Literal["closed", "laplace", "two-nearest", "ranked", "counted"]
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


def _find_known(parameters: str, channel: ChannelKind) -> KnownMechanism:
    return KnownMechanism(frozenset(parameters.split()), channel)


KNOWN_MECHANISMS: Final[Mapping[str, KnownMechanism]] = {
    "laplace": _find_known("eta", "laplace"),
    "exponential": _find_known("eta beta calibrated prior", "closed"),
    "soft-pos": _find_known("eta beta calibrated metric penalty tags", "closed"),
    "mahalanobis": _find_known("eta metric mixing", "laplace"),
    "unit-laplace": _find_known("eta metric", "laplace"),
    "vickrey": _find_known("eta tuning", "two-nearest"),
    "rank-fix": _find_known("eta decay", "ranked"),
    "tem": _find_known("eta outside", "closed"),
    "santext": _find_known("eta", "closed"),
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


Parameter = float | int | str | bool

MOST_PARAMETERS: Final = 16  # the largest number of a mechanism's parameters; the richest mechanism has 6
LONGEST_CENTER: Final = 24_000  # letters of a second centre in 4,096 dimensions
_OF_A_PAIR: Final = 2  # texts
_PARAMETER_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class MechanismSetting:
    """A mechanism and its public parameters; `eta` is in 1/distance of the table named by the vocabulary hash."""

    name: str
    parameters: Mapping[str, Parameter]

    @property
    def unit(self) -> Unit:
        """Unit of one guarantee: each token, or the whole text."""
        return find_unit(self.name)

    @property
    def eta(self) -> float:
        """The slope of the dχ guarantee of a token: log P(y|x) - log P(y|x') <= eta * d(x, x').

        Raises:
            MechanismError: The mechanism protects whole texts.
        """
        if self.unit == "text":
            raise MechanismError(
                f"eta is of mechanisms that protect tokens, got {self.name}, which protects whole texts; "
                "take its epsilon"
            )
        return float(self.parameters["eta"])

    @property
    def epsilon(self) -> float:
        """The bound for a whole text: log P(y|x) - log P(y|x') <= epsilon for any two texts x, x'; nats.

        Raises:
            MechanismError: The mechanism protects tokens.
        """
        if self.unit == "token":
            raise MechanismError(
                "epsilon is of mechanisms that protect whole texts, got one that protects tokens; take its eta"
            )
        return float(self.parameters["epsilon"])

    @property
    def texts(self) -> int:
        """Number of texts that one release stands for: 2 for a code of a pair, whose ε is for the pair, else 1."""
        return int(self.parameters.get("texts", 1)) if self.unit == "text" else 1

    @property
    def center(self) -> str | None:
        """Second centre of the code, where a pool of two rounds found one; `rapt.wire.code_bundle.apply_center`."""
        found = self.parameters.get("center") if self.unit == "text" else None
        return None if found is None else str(found)

    def describe_strength(self) -> str:
        """Return the parameter that says how strong the guarantee is, such as `eta=75` or `epsilon=4`."""
        name, value = ("epsilon", self.epsilon) if self.unit == "text" else ("eta", self.eta)
        return f"{name}={repr(value).removesuffix('.0')}"  # all of its digits: who asks must give the same


def check_eta(eta: object) -> float:
    """Return `eta` as a float, if it is a finite number above zero.

    Raises:
        MechanismError: eta is not such a number.
    """
    if not is_finite(eta) or eta <= 0:
        raise MechanismError(
            "eta must be a finite number above 0; see `rapt statement` for what a value means on a vocabulary"
        )
    return float(eta)


def check_epsilon(epsilon: float, *, most: float = MOST_EPSILON) -> float:
    """Return the `epsilon` of a whole text as a float, if it is a number above 0 and at most `most`.

    Raises:
        MechanismError: epsilon is not such a number.
    """
    if not is_finite(epsilon) or not 0 < epsilon <= most:
        raise MechanismError(
            f"the epsilon of a text must be a number above 0 and at most {most:g}; 1 to 8 are usual, and beyond 16 "
            "a text is nearly always told from a thousand others"
        )
    return float(epsilon)


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def dump_mechanism(setting: MechanismSetting) -> dict[str, Any]:
    """Return a mechanism as plain JSON values."""
    return {"name": setting.name, "parameters": dict(setting.parameters)}


def parse_mechanism(value: Mapping[str, Any]) -> MechanismSetting:
    """Return the mechanism in a JSON object.

    Raises:
        WireError: A field is missing, unknown or mistyped, or a value is beyond the limits of this format.
        MechanismError: η or ε is outside its domain.
    """
    what = "the mechanism"
    check_fields(value, required={"name", "parameters"}, optional=set(), what=what)
    parameters = read_field(value, "parameters", dict, what=what)
    if len(parameters) > MOST_PARAMETERS or not all(map(_PARAMETER_NAME.fullmatch, parameters)):
        raise WireError(
            f"{what} must have at most {MOST_PARAMETERS} parameters, named by small letters, digits and underscores"
        )
    if not all(type(item) in (float, int, str, bool) for item in parameters.values()):
        raise WireError(f"{what} must have numbers, words or true/false as parameters")
    name = read_name(value, "name", what=what)
    if find_unit(name) == "text":
        return MechanismSetting(name=name, parameters=_read_parameters_of_codes(parameters))
    for one, item in parameters.items():
        if type(item) is str:
            read_name(parameters, one, what=f"a parameter of {what}")
    if "eta" not in parameters:
        raise WireError(f"{what} must state eta; a file without a guarantee is not accepted")
    check_eta(parameters["eta"])
    return MechanismSetting(name=name, parameters=parameters)


def _read_parameters_of_codes(parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    what = "the mechanism of a file of codes"
    names = {"epsilon", "preferred", "codewords", "codes"}
    check_fields(parameters, required=names, optional={"texts", "center"}, what=what)
    of_pairs = "texts" in parameters
    if of_pairs and read_count(parameters, "texts", what=what) != _OF_A_PAIR:
        raise WireError(f"{what} must have texts={_OF_A_PAIR} for codes of pairs, or none; write the file again")
    size = read_count(parameters, "codewords", what=what, most=MOST_CODEWORDS)
    preferred = read_count(parameters, "preferred", what=what, most=MOST_CODEWORDS)
    codes = read_count(parameters, "codes", what=what, most=MOST_CODES)
    if not 1 <= preferred < size or codes < 1:
        raise WireError(
            f"{what} must have at least one code and fewer preferred codewords than codewords; write the file again"
        )
    epsilon = check_epsilon(parameters["epsilon"])
    found: dict[str, Parameter] = {"epsilon": epsilon, "preferred": preferred, "codewords": size, "codes": codes}
    if of_pairs:
        found["texts"] = _OF_A_PAIR
    if "center" in parameters:
        found["center"] = read_name(parameters, "center", what=what, longest=LONGEST_CENTER)
    return found
