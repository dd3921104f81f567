"""The setting of a mechanism: its name and public parameters, checked, as manifests and cards of adapters state it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from rapt.errors import MechanismError, WireError
from rapt.wire.mechanisms import MOST_CODES, MOST_CODEWORDS, MOST_EPSILON, Unit, find_unit
from rapt.wire.strict_json import check_fields, read_count, read_field, read_name

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
