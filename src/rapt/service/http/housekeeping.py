"""A thread of the serving process that does what nobody asks for: see `tidying`."""

from __future__ import annotations

import logging
import time
from threading import Event, Thread
from typing import Final

from rapt.errors import UnavailableError
from rapt.service.storage.store import Store
from rapt.service.storage.tidying import tell_who_waits_for_a_model, tidy
from rapt.service.storage.worker_locks import models_of_the_living

log = logging.getLogger(__name__)

_BETWEEN: Final = 60.0  # s


class Housekeeper:
    """Tidies a store from time to time, until it is closed."""

    def __init__(self, store: Store, *, between: float = _BETWEEN) -> None:
        """Begin after `start`, and then every `between` s."""
        self._store = store
        self._between = between
        self._closing = Event()
        self._thread = Thread(target=self._loop, name="rapt-housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
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
                tell_who_waits_for_a_model(self._store, served=models_of_the_living(self._store.directory), now=now)
            except UnavailableError:  # which is in the log already
                continue
            except Exception as error:  # a thread that ended would let rows and parts pile up
                log.error("the store could not be tidied: %s", type(error).__name__)
