"""Tuned models kept in memory: the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from rapt.service.model.adapter import Adapter


class AdapterCache:
    """At most `capacity` adapters by name; safe to use from many threads."""

    def __init__(self, capacity: int) -> None:
        """Start empty."""
        self._capacity = capacity
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._guard = Lock()

    def get(self, name: str, load: Callable[[], Adapter]) -> Adapter:
        """The adapter of a name, loaded if it is not here."""
        with self._guard:
            if name in self._adapters:
                self._adapters.move_to_end(name)
                return self._adapters[name]
        adapter = load()  # outside the lock: a slow disk must not hold up those that are here
        with self._guard:
            self._adapters[name] = adapter
            self._adapters.move_to_end(name)
            while len(self._adapters) > self._capacity:
                self._adapters.popitem(last=False)
        return adapter

    def drop(self, name: str) -> None:
        """Forget a deleted adapter."""
        with self._guard:
            self._adapters.pop(name, None)
