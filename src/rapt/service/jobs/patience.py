"""A store that is away for a while: work on it is done again until it passes, so that no run is lost to it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event
from typing import Final, TypeVar

from rapt.errors import UnavailableError
from rapt.service.tuning.tuner import TuningCancelled

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.2  # s; each is twice the one before
_LONGEST_PAUSE: Final = 5.0

T = TypeVar("T")


def patiently(work: Callable[[], T], *, should_stop: Callable[[], bool]) -> T:
    """What `work` returns, however long its store is away.

    Args:
        work: May be begun again, also after it was done and the answer of the store was lost.
        should_stop: Asked before each pause.

    Raises:
        TuningCancelled: The store was away, and it was time to stop.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            done = work()
        except UnavailableError as error:
            if should_stop():
                raise TuningCancelled from None
            if pause == _FIRST_PAUSE:
                log.warning("a job waits for its store: %s", error)
            Event().wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if pause > _FIRST_PAUSE:
                log.info("a job goes on: its store is back")
            return done
