"""Opening a store, after what a crash left behind was put in order; and which workers live.

Each worker holds a lock on a file of its own, and the system lets go of it when the worker dies. So a job whose worker
was killed is known at once, without a clock: nobody waits for a lease to run out, and a machine that slept does not
lose its job to another one. All workers see the data directory, because the files are there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import select

from rapt.service.storage.blobs import open_blobs
from rapt.service.storage.data_directory import DataDirectory, lock_data_directory, make_data_directory
from rapt.service.storage.database import CONNECTIONS, Database, database_url
from rapt.service.storage.job_runs import requeue_jobs
from rapt.service.storage.store import Store, list_named_blobs, move_blobs, own_blobs, refuse_foreign, release
from rapt.service.storage.tables import PARTS, RUN_STATES

log = logging.getLogger(__name__)


@contextmanager
def hold_worker_lock(directory: DataDirectory, *, models: Iterable[str] = ()) -> Iterator[str]:
    """The name of a new worker, which lives until the end of the block or of the process.

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


def list_models_of_living(directory: DataDirectory) -> set[str]:
    """The base models that some worker runs jobs of."""
    found = set[str]()
    for path in directory.workers.iterdir():
        if is_alive(directory, path.name):
            with suppress(FileNotFoundError):  # it has ended meanwhile
                found.update(path.read_text("utf-8").splitlines())
    return found


def delete_dead_locks(directory: DataDirectory) -> None:
    """Delete the locks that nobody holds."""
    for path in directory.workers.iterdir():
        if not is_alive(directory, path.name):
            path.unlink(missing_ok=True)


@contextmanager
def open_store(
    data_directory: Path, *, url: str | None = None, blobs: str | None = None, connections: int = CONNECTIONS
) -> Iterator[Store]:
    """The store of the one serving process, after what a crash left behind was put in order.

    Jobs whose workers died are queued again; bytes that no row names are deleted.

    Args:
        data_directory: Folder of the data.
        url: URL of a PostgreSQL database; None for SQLite in the folder.
        blobs: URL of an object store; None for the folder.
        connections: The most that this process has open to the database.

    Raises:
        UsageError: The folder cannot be written, is in use by another service, or was written by a newer version; or
            the blobs are of another service.
        UnavailableError: The database or the object store cannot be reached.
    """
    with (
        lock_data_directory(data_directory) as directory,
        _opened(directory, url=url, blobs=blobs, connections=connections) as store,
    ):
        _recover(store)
        yield store


@contextmanager
def join_store(
    data_directory: Path, *, url: str | None = None, blobs: str | None = None, connections: int = CONNECTIONS
) -> Iterator[Store]:
    """The store of a service that may be running: for workers, and for changes to rows alone.

    Raises: The reasons of `open_store`, but others may have it open.
    """
    with _opened(make_data_directory(data_directory), url=url, blobs=blobs, connections=connections) as store:
        yield store


def requeue_abandoned_jobs(store: Store) -> int:
    """Queue again what dead workers left. Returns how many."""
    requeued = requeue_jobs(store, is_alive=lambda worker: is_alive(store.directory, worker), now=int(time.time()))
    delete_dead_locks(store.directory)
    return requeued


@contextmanager
def _opened(directory: DataDirectory, *, url: str | None, blobs: str | None, connections: int) -> Iterator[Store]:
    # What libraries write is for nobody else either: the database, tensors, vocabularies.
    before = os.umask(0o077)
    try:
        where = open_blobs(blobs, folder=directory.blobs)
        database = Database(database_url(url, file=directory.database), connections=connections)
        try:
            yield Store(database, directory, where)
        finally:
            database.close()
    finally:
        os.umask(before)


def _recover(store: Store) -> None:
    requeued = requeue_abandoned_jobs(store)
    refuse_foreign(store)
    moved = move_blobs(store)
    own_blobs(store)
    swept = _sweep(store)
    if swept or requeued or moved:
        log.info("recovered: %d leavings deleted, %d jobs queued again, %d blobs moved", swept, requeued, moved)


def _sweep(store: Store) -> int:
    there = set(store.blobs.list())
    with store.database.read() as connection:
        # After the look at what is there: of what was put since, `release` finds the row.
        named = list_named_blobs(connection)
        run_states = set(connection.execute(select(RUN_STATES.c.folder)).scalars())
        parts = set(connection.execute(select(PARTS.c.id)).scalars())
    if lost := len(named - there):
        log.error("%d of the %d blobs that files and models name are missing", lost, len(named))
    swept = release(store, there - named)
    if any(is_alive(store.directory, path.name) for path in store.directory.workers.iterdir()):
        # A worker of its own process outlived the service, and may be writing what it has not named yet.
        return swept
    return swept + store.directory.sweep(run_states=run_states, parts=parts)
