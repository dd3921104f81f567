"""Arguments of the public functions, checked by what their annotations say, so that a mistake is one line of the tree.

Python finds an argument of another type where it is used, in the middle of the work and in words about the inside. Here
it is found at the call, and named. What a number must be beyond a number is checked where it has its meaning.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from rapt.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

# Numbers that have a check of their own, of any type, with an error of their own.
_CHECKED_ELSEWHERE: Final = ("self", "return", "eta", "epsilon", "label_epsilon")
_KINDS: Final[Mapping[Any, tuple[type | tuple[type, ...], str]]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a string"),
    Path: (os.PathLike, "a path"),
    type(None): (type(None), "None"),
}


def check_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that refuses an argument of another kind than its annotation names (`UsageError`).

    Numbers, texts, paths, and values of this package's own classes are checked; lists, tables and switches are not.
    """
    signature = inspect.signature(function)
    itself: Any = function

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> T:
        kinds = _find_kinds(itself)
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:  # one is missing or unknown: Python says it better, with the function's name
            given = {}
        for name, value in given.items():
            if name in kinds:
                _check(name, value, kinds[name])
        return function(*args, **options)

    return called


def check_fields(value: object) -> None:
    """Refuse a field of a dataclass that is of another kind than its annotation names (`UsageError`)."""
    kind: Any = type(value)
    for name, known in _find_kinds(kind).items():
        _check(name, getattr(value, name), known)


def _check(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if not any(_matches(value, kind) for kind in known):
        raise UsageError(f"`{name}` must be {_describe(known)}, got {type(value).__name__}")


@functools.cache
def _find_kinds(function: Any) -> Mapping[str, tuple[Any, ...]]:
    """The kinds of each argument that can be checked; of one that may be of a kind that cannot, none."""
    try:
        hints = get_type_hints(function)
    except NameError:  # a name that only type checkers import
        return {}
    found = {}
    for name, hint in hints.items():
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        if name not in _CHECKED_ELSEWHERE and all(_can_be_checked(kind) for kind in kinds):
            found[name] = kinds
    return found


def _can_be_checked(kind: Any) -> bool:
    return kind in _KINDS or (isinstance(kind, type) and kind not in (Any, bool, object))


def _matches(value: Any, kind: Any) -> bool:
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(kind) if not name.startswith("_"))
    known = _KINDS[kind][0] if kind in _KINDS else kind
    return isinstance(value, known) and not (isinstance(value, bool) and kind in (int, float))


def _describe(kinds: tuple[Any, ...]) -> str:
    """What an argument may be, in words: a path that may be a string is a path."""
    words = [_KINDS[kind][1] if kind in _KINDS else _name(kind) for kind in kinds]
    if "a path" in words:
        words = [word for word in words if word != "a string"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _name(kind: type) -> str:
    if issubclass(kind, Enum):
        return f"one of {kind.__name__}"
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
