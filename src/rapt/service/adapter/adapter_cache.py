"""Tuned models kept in memory, up to a number of bytes: the least recently used goes first.

A soft prompt takes some 30 KiB, so a few gibibytes hold a hundred thousand tenants.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields, is_dataclass
from threading import Lock
from typing import Final

from torch import Tensor

from rapt.service.adapter.adapter import Adapter

# Of an adapter beside its tensors: the card, and the objects that hold it all together.
_OVERHEAD: Final = 8 * 1024


class AdapterCache:
    """Adapters by name; safe to use from many threads. A name stands for the same weights for ever."""

    def __init__(self, capacity: int, *, before_waiting: Callable[[], None] = lambda: None) -> None:
        """Start with no adapter.

        Args:
            capacity: Most bytes; one adapter is kept whatever its size.
            before_waiting: Called before an adapter is loaded or waited for; what it raises, `get` raises.
        """
        self._capacity = capacity
        self._before_waiting = before_waiting
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._loading: dict[str, Future[Adapter]] = {}
        self._bytes = 0
        self._guard = Lock()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._adapters)

    def has(self, name: str) -> bool:
        """Whether the adapter of a name is here."""
        with self._guard:
            return name in self._adapters

    @property
    def bytes(self) -> int:
        """Memory that they take, about."""
        return self._bytes

    def get(self, name: str, load: Callable[[], Adapter]) -> Adapter:
        """The adapter of a name, loaded if it is not here; who asks meanwhile waits for the same load."""
        with self._guard:
            if name in self._adapters:
                self._adapters.move_to_end(name)
                return self._adapters[name]
            self._before_waiting()
            waiting = self._loading.get(name)
            if waiting is None:
                mine = self._loading[name] = Future[Adapter]()
        if waiting is not None:
            return waiting.result()
        try:
            adapter = load()  # outside the lock: a slow disk must not hold up those that are here
        except BaseException as error:
            with self._guard:
                if self._loading.get(name) is mine:
                    del self._loading[name]
            mine.set_exception(error)
            raise
        with self._guard:
            # Dropped while it was being loaded: whoever asked before may still use it, but it is not kept.
            if self._loading.get(name) is mine:
                del self._loading[name]
                self._keep(name, adapter)
        mine.set_result(adapter)
        return adapter

    def drop(self, name: str) -> None:
        """Forget a deleted adapter, also one that is being loaded."""
        with self._guard:
            self._loading.pop(name, None)
            adapter = self._adapters.pop(name, None)
            if adapter is not None:
                self._bytes -= bytes_of(adapter)

    def _keep(self, name: str, adapter: Adapter) -> None:
        self._adapters[name] = adapter
        self._bytes += bytes_of(adapter)
        while self._bytes > self._capacity and len(self._adapters) > 1:
            _, oldest = self._adapters.popitem(last=False)
            self._bytes -= bytes_of(oldest)


def bytes_of(adapter: Adapter) -> int:
    """Memory that an adapter takes, about: its tensors, and a little for the rest."""
    return _OVERHEAD + _count_tensor_bytes(adapter)


def _count_tensor_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_count_tensor_bytes, value.values()))
    if is_dataclass(value):
        return sum(_count_tensor_bytes(getattr(value, field.name)) for field in fields(value))
    return 0
