"""Reading JSON that somebody else wrote: every field is named, typed and required, or the reader refuses.

Messages name fields, positions and types, never values that could hold text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from rapt.errors import WireError

T = TypeVar("T")

# Made once: `json.dumps` with these settings would make one for every line.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def parse_object(line: str | bytes, *, what: str) -> dict[str, Any]:
    """One JSON object; duplicate keys, NaN and other values that JSON does not have are refused."""
    try:
        value = json.loads(line, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        # The decoder's own message quotes its input, which may be a user's text: it is dropped on purpose.
        raise WireError(f"{what} must be one JSON object; the file is damaged or of another kind") from None
    if not isinstance(value, dict):
        raise WireError(f"{what} must be a JSON object, got {type(value).__name__}")
    return value


def exact_fields(value: Mapping[str, Any], *, required: set[str], optional: set[str], what: str) -> None:
    """Refuse a missing field, and a field that this version does not know."""
    if missing := sorted(required - value.keys()):
        raise WireError(f"{what} must have the field {missing[0]!r}; it was written by another version or cut off")
    if len(value) > len(required) and value.keys() - required - optional:
        raise WireError(f"{what} has a field this version does not know; upgrade rapt, or write it again")


def field(value: Mapping[str, Any], name: str, kind: type[T], *, what: str) -> T:
    """The field `name`, checked to be of exactly the type `kind` (a bool is not an int)."""
    found = value.get(name)
    if kind is float and type(found) is int:
        found = float(found)
    if type(found) is not kind:
        raise WireError(f"{what} must have {name} of type {kind.__name__}, got {type(found).__name__}")
    return found


def id_tuple(value: Mapping[str, Any], name: str, *, what: str) -> tuple[int, ...]:
    """The field `name` as a tuple of non-negative token ids."""
    found = value.get(name)
    if type(found) is not list:
        raise WireError(f"{what} must have {name} as a list of token ids, got {type(found).__name__}")
    if not all(type(item) is int and item >= 0 for item in found):
        raise WireError(f"{what} must have only whole numbers >= 0 in {name}; write the file again")
    return tuple(found)


def dump(value: Mapping[str, Any]) -> str:
    """One line of JSON, keys in the given order, nothing but ASCII."""
    return _ENCODER.encode(value)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
