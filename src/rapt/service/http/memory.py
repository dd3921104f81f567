"""Memory that was freed goes back to the system.

The passes of a model free and take blocks of ever other sizes. What is freed between blocks that stay is kept by the C
library, in pieces that the next pass often cannot use: under load a service grew by megabytes a minute that nothing in
it held. glibc gives whole pages of it back when it is asked to, in a few milliseconds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Final

# How often, s: what is given back is taken again page by page, which costs some, so not after every pass.
_EVERY: Final = 5.0


def give_back() -> bool:
    """Give back what was freed; whether there was any. Another C library than glibc is left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1


@contextmanager
def giving_back(*, every: float = _EVERY) -> Iterator[None]:
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
