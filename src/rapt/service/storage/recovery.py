"""Opening a store, after what a crash left behind was put in order."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import select

from rapt.service.storage.blobs import open_blobs
from rapt.service.storage.data_directory import DataDirectory, lock_data_directory, make_data_directory
from rapt.service.storage.database import CONNECTIONS, Database, database_url
from rapt.service.storage.job_runs import requeue_jobs
from rapt.service.storage.store import Store, list_named_blobs, move_blobs, own_blobs, refuse_foreign, release
from rapt.service.storage.tables import PARTS, RUN_STATES
from rapt.service.storage.worker_rows import delete_dead_locks, holds_lock, list_workers_elsewhere

log = logging.getLogger(__name__)

_MASK_LOCK: Final = threading.Lock()
# The mask of new files as each store that is open found it, the first one first: those after it found the private one.
_MASKS: Final[list[int]] = []


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
        _open_in_order(directory, url=url, blobs=blobs, connections=connections) as store,
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
    with _open_in_order(make_data_directory(data_directory), url=url, blobs=blobs, connections=connections) as store:
        yield store


def requeue_abandoned_jobs(store: Store) -> int:
    """Queue again what dead workers left. Returns how many."""
    now = int(time.time())
    elsewhere: dict[str, list[str]] | None = None

    def is_alive(worker: str) -> bool:
        nonlocal elsewhere
        if holds_lock(store.directory, worker):
            return True
        if elsewhere is None:
            elsewhere = list_workers_elsewhere(store)
        return worker in elsewhere

    requeued = requeue_jobs(store, is_alive=is_alive, now=now)
    delete_dead_locks(store.directory)
    return requeued


@contextmanager
def _open_in_order(
    directory: DataDirectory, *, url: str | None, blobs: str | None, connections: int
) -> Iterator[Store]:
    with _keep_new_files_private():
        where = open_blobs(blobs, folder=directory.blobs)
        database = Database(database_url(url, file=directory.database), connections=connections)
        try:
            yield Store(database, directory, where)
        finally:
            database.close()


@contextmanager
def _keep_new_files_private() -> Iterator[None]:
    """What libraries write is for nobody else either: the database, tensors, vocabularies.

    The mask is the whole process's, and stores may overlap: the last one to close puts back what the first one found.
    """
    with _MASK_LOCK:
        _MASKS.append(os.umask(0o077))
    try:
        yield
    finally:
        with _MASK_LOCK:
            os.umask(_MASKS.pop())


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
    if any(holds_lock(store.directory, path.name) for path in store.directory.workers.iterdir()):
        # A worker of its own process outlived the service, and may be writing what it has not named yet.
        return swept
    return swept + store.directory.sweep(run_states=run_states, parts=parts)
