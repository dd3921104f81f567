"""Who lives: each worker holds a lock on a file of its own, and the system lets go of it when the worker dies.

So a job whose worker was killed is known at once, without a clock: nobody waits for a lease to run out, and a machine
that slept does not lose its job to another one. All workers see the data directory, because the files are there.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from rapt.service.storage.data_directory import DataDirectory


@contextmanager
def living_worker(directory: DataDirectory, *, models: Iterable[str] = ()) -> Iterator[str]:
    """The name of a new worker, which lives until the end of the block or of the process.

    Args:
        directory: Where its lock is.
        models: Base models that it runs jobs of; they stand in the lock's file.
    """
    name = f"worker-{os.getpid()}-{secrets.token_hex(6)}"
    path = directory.workers / name
    # Locked under another name first: no one may see the lock's file before it is held.
    partial = directory.incoming / name
    with partial.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("\n".join(models))
        lock.flush()
        partial.rename(path)
        try:
            yield name
        finally:
            path.unlink(missing_ok=True)


def is_alive(directory: DataDirectory, worker: str) -> bool:
    """Whether a worker holds its lock."""
    try:
        lock = (directory.workers / worker).open("r+")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def models_of_the_living(directory: DataDirectory) -> set[str]:
    """The base models that some worker runs jobs of."""
    found = set[str]()
    for path in directory.workers.iterdir():
        if is_alive(directory, path.name):
            with suppress(FileNotFoundError):  # it has ended meanwhile
                found.update(path.read_text("utf-8").splitlines())
    return found


def bury_the_dead(directory: DataDirectory) -> None:
    """Delete the locks that nobody holds."""
    for path in directory.workers.iterdir():
        if not is_alive(directory, path.name):
            path.unlink(missing_ok=True)
