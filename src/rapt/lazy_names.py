"""Public names of a room that are loaded when they are first used (PEP 562): importing the room costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def load_lazily(room: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a room.

    Args:
        room: Name of the package.
        homes: Module of each public name.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[room], name, value)  # so that it is looked up once
        return value

    return load, lambda: sorted(homes)


def is_installed(package: str) -> bool:
    """Whether a package of other people can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # whoever finds it for Python says that it may not be had
        return False
