"""Which workers live: by locks where they share a disk, and by what they say of themselves where they do not.

Each worker holds a lock on a file of its own, and the system lets go of it when the worker dies. So a job whose worker
was killed on this machine is known at once, without a clock, and a machine that slept does not lose its job.

On PostgreSQL a worker may be on a machine with a data directory of its own. There it says every few seconds that it
lives, by the database's clock, and whoever cannot see its lock believes that for a minute. One that was away for longer
loses its job, and changes nothing of it when it comes back: `job_runs`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Final

from sqlalchemy import BigInteger, Float, cast, delete, func, select
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.sql.elements import ColumnElement

from rapt.errors import UnavailableError
from rapt.service.storage.data_directory import DataDirectory
from rapt.service.storage.store import Store
from rapt.service.storage.tables import WORKERS

log = logging.getLogger(__name__)

# How often a worker says that it lives, and for how long it is believed, s.
_BETWEEN_WORDS: Final = 10.0
BELIEVED: Final = 60
_FORGOTTEN_AFTER: Final = 86_400  # s


def read_clock() -> ColumnElement[float]:
    """Return PostgreSQL's clock, Unix time, s: one for all machines."""
    return cast(func.extract("epoch", func.clock_timestamp()), Float)


@contextmanager
def live_as_worker(store: Store, *, models: Sequence[str] = ()) -> Iterator[str]:
    """The name of a new worker, which lives until the end of the block or of the process.

    Args:
        store: Store of the service.
        models: Base models that it runs jobs of.
    """
    with hold_worker_lock(store.directory, models=models) as name:
        if store.database.is_sqlite:
            yield name
            return
        values = {"name": name, "place": store.directory.place, "models": list(models), "seen_at": _read_now()}
        # The row is gone where the database was away, or this machine asleep, for so long that the others forgot it.
        alive = (
            insert(WORKERS).values(values).on_conflict_do_update(index_elements=["name"], set_={"seen_at": _read_now()})
        )
        with store.database.change_alone() as connection:
            connection.execute(alive)
        ended = Event()
        saying = Thread(target=_say_so, args=(store, alive, ended), name="rapt-alive", daemon=True)
        saying.start()
        try:
            yield name
        finally:
            ended.set()
            saying.join()
            with suppress(UnavailableError), store.database.change_alone() as connection:
                connection.execute(delete(WORKERS).where(WORKERS.c.name == name))


def _say_so(store: Store, alive: Insert, ended: Event) -> None:
    while not ended.wait(_BETWEEN_WORDS):
        with suppress(UnavailableError), store.database.change_alone() as connection:
            connection.execute(alive)


def _read_now() -> ColumnElement[int]:
    return cast(read_clock(), BigInteger)


@contextmanager
def hold_worker_lock(directory: DataDirectory, *, models: Iterable[str] = ()) -> Iterator[str]:
    """The name of a new worker whose lock is held within the block.

    Args:
        directory: Data directory that has its lock.
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


def holds_lock(directory: DataDirectory, worker: str) -> bool:
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


def list_workers_elsewhere(store: Store) -> dict[str, list[str]]:
    """The models of each worker that lives on another disk, by its name; rows of those long gone are deleted."""
    if store.database.is_sqlite:
        return {}
    elsewhere = WORKERS.c.place != store.directory.place
    believed = select(WORKERS.c.name, WORKERS.c.models).where(elsewhere, WORKERS.c.seen_at > _read_now() - BELIEVED)
    with store.database.change_alone() as connection:
        connection.execute(delete(WORKERS).where(WORKERS.c.seen_at < _read_now() - _FORGOTTEN_AFTER))
        return {row.name: row.models for row in connection.execute(believed)}


def list_models_of_living(store: Store) -> set[str]:
    """The base models that some worker runs jobs of."""
    found = {model for models in list_workers_elsewhere(store).values() for model in models}
    for path in store.directory.workers.iterdir():
        if holds_lock(store.directory, path.name):
            with suppress(FileNotFoundError):  # it has ended meanwhile
                found.update(path.read_text("utf-8").splitlines())
    return found


def delete_dead_locks(directory: DataDirectory) -> None:
    """Delete the locks that nobody holds."""
    for path in directory.workers.iterdir():
        if not holds_lock(directory, path.name):
            path.unlink(missing_ok=True)
