"""Answers of the database that still hold, so that a request in a busy minute asks nothing.

SQLite tells by one number whether anything was committed by anybody, in this process or another. An answer is kept
with the number from before its question, and holds for as long as the number stays: a key that is revoked by the
command line is refused by the very next request. PostgreSQL has no such number, so there nothing is kept.

The event loop must not wait for a disk or a server. Within `at_hand_only` whatever would wait raises `WouldWait`
instead, and the caller does the same work in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Some 10 MB of rows. Beyond it all are forgotten: whoever still asks is kept again.
_MOST: Final = 20_000
_AT_HAND_ONLY: ContextVar[bool] = ContextVar("rapt_at_hand_only", default=False)


class WouldWait(Exception):
    """The work needs the database or the disk."""


@contextmanager
def at_hand_only() -> Iterator[None]:
    """Within the block nothing waits: what would raises `WouldWait`, before it has changed anything."""
    token = _AT_HAND_ONLY.set(True)
    try:
        yield
    finally:
        _AT_HAND_ONLY.reset(token)


def about_to_wait() -> None:
    """To be called before waiting for a disk or a server. Raises `WouldWait` within `at_hand_only`."""
    if _AT_HAND_ONLY.get():
        raise WouldWait


class Remembered:
    """Answers by question; safe to use from many threads."""

    def __init__(self, version: Callable[[], int | None], *, most: int = _MOST) -> None:
        """Start empty.

        Args:
            version: A number that changes whenever anything is committed; None if nobody knows.
            most: Answers that are kept.
        """
        self._version = version
        self._most = most
        self._answers: dict[Hashable, Any] = {}
        self._holds_at: int | None = None
        self._guard = Lock()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._answers)

    def ask(self, question: Hashable, look_up: Callable[[], T]) -> T:
        """The answer to a question, looked up unless it is known to hold still. None, and what raises, is not kept.

        Args:
            question: Must be answered by the database alone: not by time, and not by who asks.
            look_up: Asks the database.
        """
        with self._guard:
            before = self._version()
            if before is None or before != self._holds_at:
                self._answers.clear()
                self._holds_at = before
            elif question in self._answers:
                known: T = self._answers[question]
                return known
        answer = look_up()
        with self._guard:
            # Looked up after `before` was read: if anything changed since, the number has, and this is dropped too.
            if answer is not None and before is not None and before == self._holds_at:
                if len(self._answers) >= self._most:
                    self._answers.clear()
                self._answers[question] = answer
        return answer
