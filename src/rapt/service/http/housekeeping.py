"""Threads of the serving process that do what nobody asks for: they tidy the store, and give freed memory back.

The passes of a model free and take blocks of ever other sizes. What is freed between blocks that stay is kept by the C
library, in pieces that the next pass often cannot use: under load a service grew by megabytes a minute that nothing in
it held. glibc gives whole pages of it back when it is asked to, in a few milliseconds.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Final

from rapt.errors import UnavailableError
from rapt.service.storage.store import Store
from rapt.service.storage.tidying import tidy, warn_jobs_without_model
from rapt.service.storage.worker_rows import list_models_of_living

log = logging.getLogger(__name__)

_BETWEEN_TIDYING: Final = 60.0  # s
# How often, s: what is given back is taken again page by page, which costs some, so not after every pass.
_BETWEEN_TRIMS: Final = 5.0


class Housekeeper:
    """Tidies a store from time to time, until it is closed."""

    def __init__(self, store: Store, *, between: float = _BETWEEN_TIDYING) -> None:
        """Begin after `start`, and then every `between` s."""
        self._store = store
        self._between = between
        self._closing = Event()
        self._thread = Thread(target=self._loop, name="rapt-housekeeping", daemon=True)

    def start(self) -> None:
        """Start the thread that tidies."""
        self._thread.start()

    def close(self) -> None:
        """Stop after what is being done, and wait for that."""
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(self._between):
            now = int(time.time())
            try:
                if done := tidy(self._store, now=now, should_stop=self._closing.is_set):
                    log.info("%d rows had had their time", done)
                warn_jobs_without_model(self._store, served=list_models_of_living(self._store), now=now)
            except UnavailableError:  # which is in the log already
                continue
            except Exception as error:  # a thread that ended would let rows and parts pile up
                log.error("the store could not be tidied: %s", type(error).__name__)


def give_back() -> bool:
    """Give back what was freed; whether there was any. Another C library than glibc is left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1


@contextmanager
def give_back_regularly(*, every: float = _BETWEEN_TRIMS) -> Iterator[None]:
    """Within the block, give back every so many seconds."""
    over = Event()

    def loop() -> None:
        while not over.wait(every):
            give_back()

    thread = Thread(target=loop, name="rapt-memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
