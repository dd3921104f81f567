"""A file that one process writes at a time: two that wrote one output would mix their records."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rapt.errors import CorpusError

if sys.platform != "win32":
    import fcntl


@contextmanager
def open_alone(path: Path) -> Iterator[IO[bytes]]:
    """A file open for reading and writing, made if it is not there, and locked until the block ends.

    The lock goes with the process: a killed one leaves none behind. Where the system has no such locks, none is taken.

    Raises:
        CorpusError: Another process has it.
        OSError: It cannot be opened.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b") as stream:
        if sys.platform != "win32":
            try:
                fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _taken() from None
            # Between opening and locking, the other process may have finished and given the file its final name.
            if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                raise _taken()
        yield stream


def _taken() -> CorpusError:
    return CorpusError("an output must be written by one process at a time; wait for it, or choose another name")
