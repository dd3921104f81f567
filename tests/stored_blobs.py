"""A store of blobs that writes down what is asked of it, and can be made to fail or to wait."""

from __future__ import annotations

from collections.abc import Callable


class Watched:
    """A real store behind a list of what was asked; `before` is called with the name of each question."""

    def __init__(self, blobs, *, before: Callable[[str], None] = lambda question: None) -> None:
        """Watch a store."""
        self._blobs = blobs
        self._before = before
        self.asked: list[str] = []

    def __getattr__(self, name: str):
        """The method of the store, watched."""
        method = getattr(self._blobs, name)

        def ask(*arguments, **settings):
            self.asked.append(name)
            self._before(name)
            return method(*arguments, **settings)

        return ask
