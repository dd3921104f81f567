"""Trees of frozen dataclasses as JSON and back: the types of the fields are the schema."""

from __future__ import annotations

import types
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rapt.errors import AuditError

T = TypeVar("T")


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values, fields in their order."""
    return asdict(value)


def from_json(kind: type[T], value: Any) -> T:
    """The dataclass that `to_json` wrote.

    Raises:
        AuditError: A field is missing, unknown, or of another type.
    """
    found: T = _read(kind, value, where="report")
    return found


def _read(kind: Any, value: Any, *, where: str) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, where=where)
    if get_origin(kind) is tuple:
        if type(value) not in (list, tuple):
            raise AuditError(f"{where} must be a list, got {type(value).__name__}")
        parts = get_args(kind)
        expected = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if len(expected) != len(value):
            raise AuditError(f"{where} must have {len(expected)} items, got {len(value)}")
        return tuple(
            _read(part, item, where=f"{where}[{i}]") for i, (part, item) in enumerate(zip(expected, value, strict=True))
        )
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise AuditError(f"{where} must be of type {kind.__name__}, got {type(value).__name__}")
    return value


def _read_dataclass(kind: type[Any], value: Any, *, where: str) -> Any:
    names = {item.name for item in fields(kind)}
    if type(value) is not dict or value.keys() != names:
        raise AuditError(f"{where} must have the fields {', '.join(sorted(names))}; it was written by another version")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], value[name], where=f"{where}.{name}") for name in names})
