"""Reading JSON that somebody else wrote: bounded before it is read, then every field named, typed and required.

`parse_json` is the one door for every document that comes in: a privatized file, a query, a card, the body of a
request. What passes can be kept, listed and sent on by anyone: no letter that a database, a terminal or UTF-8 refuses,
no number beyond 64 bits, no infinity, no name twice, no depth or breadth without a bound. `parse_object` is for a file
that its own user has, such as a corpus or the configuration of a model, where such things are nobody else's trouble.

Messages name fields, positions and types, never a value: it may be text, or megabytes long.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from rapt.errors import WireError

T = TypeVar("T")

# A request for a tuning job has the deepest document, 6 levels; a card has the broadest object, about 40 fields.
MOST_LEVELS: Final = 16
MOST_FIELDS: Final = 1000
MOST_CONTAINERS: Final = 65_536  # lists and objects: each takes a hundred bytes where its text takes two
LONGEST_NAME: Final = 256  # letters of a name, a hash, a program and its version
LARGEST: Final = 2**63 - 1  # the largest whole number of a database
LARGEST_ID: Final = 2**31 - 1  # the largest id of a token
# Letters of a fraction: every 64-bit float is written in 25.
_LONGEST_FRACTION: Final = 64
_MOST_DIGITS: Final = 18  # of a whole number that is surely below LARGEST

# Surrogates are in no UTF-8, NUL in no text of PostgreSQL; other control characters do as they like with a terminal.
_NO_TEXT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_DIGITS_AS_0: Final = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
_TOO_LONG: Final = b"0" * (_MOST_DIGITS + 1)
_PLAIN_KINDS: Final = frozenset({int, float, bool, type(None)})

# Made once: `json.dumps` with these settings would make one for every line.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def parse_json(raw: str | bytes, *, what: str, most_fields: int = MOST_FIELDS) -> Any:
    """Parse one JSON value in UTF-8 within the limits of this module, in time and memory in proportion to its bytes.

    Args:
        raw: The text as it came in; the caller bounds its size.
        what: Name of the document in messages.
        most_fields: Largest number of fields of one object.

    Raises:
        WireError: The text is not JSON, or is beyond a limit.
    """
    opened = raw.count("[") + raw.count("{") if isinstance(raw, str) else raw.count(b"[") + raw.count(b"{")
    if opened > MOST_CONTAINERS:
        raise WireError(f"{what} must have at most {MOST_CONTAINERS} lists and objects; write it in parts")
    try:
        data = raw.encode("utf-8") if isinstance(raw, str) else raw
        text = data.decode("utf-8").removeprefix("\ufeff")
        decoder = _SLOW_DECODER if _TOO_LONG in data.translate(_DIGITS_AS_0) else _DECODER
        value = decoder.decode(text)
    except (ValueError, RecursionError):
        # The decoder's own message quotes its input, which may be a user's text: it is dropped on purpose.
        raise WireError(
            f"{what} must be one JSON value in UTF-8, each name once and each number finite and within 64 bits; "
            "it is damaged or of another kind"
        ) from None
    # Without an escape, ASCII that the decoder took has no letter that is refused, but DEL.
    texts = "\\" in text or "\x7f" in text or not text.isascii()
    _check_levels(value, what=what, most_fields=most_fields, texts=texts, numbers=False)
    return value


def parse_document(raw: str | bytes, *, what: str) -> dict[str, Any]:
    """Parse one JSON object within the limits of `parse_json`. Raises as that does."""
    return _check_object(parse_json(raw, what=what), what=what)


def parse_object(line: str | bytes, *, what: str) -> dict[str, Any]:
    """Parse one JSON object of a user's own; duplicate keys, NaN and other values that are not JSON are refused."""
    try:
        value = json.loads(line, object_pairs_hook=_refuse_repeated_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise WireError(f"{what} must be one JSON object; the file is damaged or of another kind") from None
    return _check_object(value, what=what)


def check_json(value: Any, *, what: str) -> None:
    """Check a value that was parsed elsewhere against the limits of `parse_json`. Raises `WireError`."""
    _check_levels(value, what=what, most_fields=MOST_FIELDS, texts=True, numbers=True)


def is_text(value: str) -> bool:
    """Whether a text can be kept and shown: no lone surrogate, no control character but tabs and line ends."""
    return _NO_TEXT.search(value) is None


def check_fields(value: Mapping[str, Any], *, required: set[str], optional: set[str], what: str) -> None:
    """Refuse a missing field, and a field that this version does not know."""
    if missing := sorted(required - value.keys()):
        raise WireError(f"{what} must have the field {missing[0]!r}; it was written by another version or cut off")
    if len(value) > len(required) and value.keys() - required - optional:
        raise WireError(f"{what} has a field this version does not know; upgrade rapt, or write it again")


def read_field(value: Mapping[str, Any], name: str, kind: type[T], *, what: str) -> T:
    """Return the field `name`, checked to be of exactly the type `kind` (a bool is not an int)."""
    found = value.get(name)
    if kind is float and type(found) is int and abs(found) <= LARGEST:
        found = float(found)
    if type(found) is not kind:
        raise WireError(f"{what} must have {name} of type {kind.__name__}, got {type(found).__name__}")
    return found


def read_name(value: Mapping[str, Any], name: str, *, what: str, longest: int = LONGEST_NAME) -> str:
    """Return the field `name` as a text of one to `longest` letters on one line."""
    found = read_field(value, name, str, what=what)
    if not 0 < len(found) <= longest or not found.isprintable():
        raise WireError(f"{what} must have 1 to {longest} printable letters in {name}; write it again")
    return found


def read_count(value: Mapping[str, Any], name: str, *, what: str, most: int = LARGEST) -> int:
    """Return the field `name` as a whole number from 0 to `most`."""
    found = read_field(value, name, int, what=what)
    if not 0 <= found <= most:
        raise WireError(f"{what} must have {name} from 0 to {most}; write it again")
    return found


def read_ids(value: Mapping[str, Any], name: str, *, what: str) -> tuple[int, ...]:
    """Return the field `name` as a tuple of token ids."""
    found = value.get(name)
    if type(found) is not list:
        raise WireError(f"{what} must have {name} as a list of token ids, got {type(found).__name__}")
    if found and (set(map(type, found)) != {int} or min(found) < 0 or max(found) > LARGEST_ID):
        raise WireError(f"{what} must have only whole numbers >= 0 in {name}, of 31 bits; write the file again")
    return tuple(found)


def dump_line(value: Mapping[str, Any]) -> str:
    """Write one line of JSON, keys in the given order, nothing but ASCII."""
    return _ENCODER.encode(value)


def _check_object(value: Any, *, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WireError(f"{what} must be a JSON object, got {type(value).__name__}")
    return value


def _check_levels(value: Any, *, what: str, most_fields: int, texts: bool, numbers: bool) -> None:
    """Walk a value level by level, so that its depth costs no stack; lists of plain values are not walked in Python."""
    level, levels = [value], 0
    while level:
        levels += 1
        if levels > MOST_LEVELS:
            raise WireError(f"{what} must have at most {MOST_LEVELS} levels of lists and objects; write it flat")
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                if len(item) > most_fields:
                    raise WireError(f"{what} must have at most {most_fields} fields in an object; write fewer")
                below += item.values()
                if texts:
                    below += item.keys()
            elif kind is list:
                kinds = set(map(type, item))
                if not kinds <= _PLAIN_KINDS or (numbers and not kinds <= {int, bool, type(None)}):
                    below += item
                elif numbers and item:
                    _check_number(max(filter(None, item), default=0), what=what)
                    _check_number(min(filter(None, item), default=0), what=what)
            elif kind is str:
                if texts and not is_text(item):
                    raise WireError(f"{what} must have no control character and no lone surrogate; take it out")
            elif numbers:
                _check_number(item, what=what)
        level = below


def _check_number(value: Any, *, what: str) -> None:
    if (type(value) is float and not math.isfinite(value)) or (type(value) is int and abs(value) > LARGEST):
        raise WireError(f"{what} must have numbers that are finite and within 64 bits; correct them")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _parse_fraction(written: str) -> float:
    value = float(written)
    if len(written) > _LONGEST_FRACTION or not math.isfinite(value):
        raise ValueError("not a finite number of usual length")
    return value


def _parse_whole_number(written: str) -> int:
    if len(written) > _MOST_DIGITS + 2 or abs(value := int(written)) > LARGEST:
        raise ValueError("beyond 64 bits")
    return value


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_refuse_repeated_keys, parse_constant=_refuse_constant, parse_float=_parse_fraction
)
# Calls Python for every whole number.
_SLOW_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_refuse_repeated_keys,
    parse_constant=_refuse_constant,
    parse_float=_parse_fraction,
    parse_int=_parse_whole_number,
)
