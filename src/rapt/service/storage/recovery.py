"""Opening a store: what a crash left behind is put in order before anybody looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from rapt.service.storage.data_directory import DataDirectory, lock_data_directory, make_data_directory
from rapt.service.storage.database import Database, database_url
from rapt.service.storage.job_runs import requeue_jobs
from rapt.service.storage.store import Store
from rapt.service.storage.tables import CHECKPOINTS, FILES, MODELS, PARTS
from rapt.service.storage.worker_locks import bury_the_dead, is_alive

log = logging.getLogger(__name__)


@contextmanager
def open_store(data_directory: Path, *, url: str | None = None) -> Iterator[Store]:
    """The store of the one serving process, after what a crash left behind was put in order.

    Jobs whose workers died are queued again; bytes that no row names are deleted.

    Args:
        data_directory: The folder.
        url: Of a PostgreSQL database; None for SQLite in the folder.

    Raises:
        UsageError: The folder cannot be written, is in use by another service, or was written by a newer version.
        UnavailableError: The database cannot be reached.
    """
    with lock_data_directory(data_directory) as directory, _opened(directory, url=url) as store:
        _recover(store)
        yield store


@contextmanager
def join_store(data_directory: Path, *, url: str | None = None) -> Iterator[Store]:
    """The store of a service that may be running: for workers, and for changes to rows alone.

    Raises: As `open_store`, but others may have it open.
    """
    with _opened(make_data_directory(data_directory), url=url) as store:
        yield store


def requeue_abandoned_jobs(store: Store) -> int:
    """Queue again what dead workers left. Returns how many."""
    requeued = requeue_jobs(store, is_alive=lambda worker: is_alive(store.directory, worker), now=int(time.time()))
    bury_the_dead(store.directory)
    return requeued


@contextmanager
def _opened(directory: DataDirectory, *, url: str | None) -> Iterator[Store]:
    database = Database(database_url(url, file=directory.database))
    try:
        yield Store(database, directory)
    finally:
        database.close()


def _recover(store: Store) -> None:
    requeued = requeue_abandoned_jobs(store)
    with store.database.read() as connection:
        blobs = set(connection.execute(select(FILES.c.sha256)).scalars())
        adapters = set(connection.execute(select(MODELS.c.adapter)).scalars())
        checkpoints = {folder for folder in connection.execute(select(CHECKPOINTS.c.folder)).scalars() if folder}
        parts = set(connection.execute(select(PARTS.c.id)).scalars())
    if any(is_alive(store.directory, path.name) for path in store.directory.workers.iterdir()):
        # A worker of its own process outlived the service, and may be writing what it has not named yet.
        return
    swept = store.directory.sweep(blobs=blobs, adapters=adapters, checkpoints=checkpoints, parts=parts)
    if swept or requeued:
        log.info("recovered: %d leavings deleted, %d jobs queued again", swept, requeued)
