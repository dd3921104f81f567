"""How the demo speaks: whoever calls it decides whether that is a terminal, a log or nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Meter(Protocol):
    """Takes the progress of one piece of work."""

    def __call__(self, done: int, /, *, total: int | None = None, note: str = "") -> None:
        """Show that `done` of `total` units are done; `note` is what else there is to say."""


class Narrator(Protocol):
    """Takes what the demo has to say while it runs."""

    def say(self, line: str) -> None:
        """One line."""

    def meter(self, what: str, *, total: int | None = None, unit: str = "") -> AbstractContextManager[Meter]:
        """A meter for one piece of work."""
