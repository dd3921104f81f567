"""The options of a mechanism: a closed list with types and defaults, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rapt.errors import MechanismError
from rapt.wire.manifest import Parameter


@dataclass(frozen=True, kw_only=True)
class Option:
    """A public parameter of a mechanism beside eta; its value is recorded in the setting.

    Attributes:
        default: Also fixes the type.
        help: One line for people.
    """

    default: Parameter
    help: str


def read_options(
    given: Mapping[str, Parameter], known: Mapping[str, Option], *, mechanism: str
) -> dict[str, Parameter]:
    """All options of a mechanism: the given ones, and the defaults of the others.

    Raises:
        MechanismError: An option is unknown, of another type, or not finite.
    """
    for name in given:
        if name not in known:
            choose = f"choose among {', '.join(known)}" if known else "it has none"
            raise MechanismError(f"mechanism={mechanism!r} has no option {name!r}; {choose}")
    return {
        name: _typed(given[name], option, name) if name in given else option.default for name, option in known.items()
    }


def _typed(value: Parameter, option: Option, name: str) -> Parameter:
    kind = type(option.default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise MechanismError(
            f"option {name!r} must be {_KINDS[kind]}, got {name}={value!r}; leave it out for {option.default!r}"
        )
    return value


_KINDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a word"}
