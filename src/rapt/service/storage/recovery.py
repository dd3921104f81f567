"""Opening a store: what a crash left behind is put in order before anybody looks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from rapt.service.storage.data_directory import lock_data_directory
from rapt.service.storage.database import FILES, MODELS, Database
from rapt.service.storage.job_rows import requeue_running_jobs
from rapt.service.storage.store import Store

log = logging.getLogger(__name__)


@contextmanager
def open_store(data_directory: Path) -> Iterator[Store]:
    """The store in a folder, after what a crash left behind was put in order.

    Jobs that were running are queued again; bytes that no row names are deleted.

    Raises:
        UsageError: The folder cannot be written, is in use by another service, or was written by a newer version.
    """
    with lock_data_directory(data_directory) as directory:
        database = Database(directory.database)
        try:
            store = Store(database, directory)
            _recover(store)
            yield store
        finally:
            database.close()


def _recover(store: Store) -> None:
    with store.database.read() as connection:
        blobs = set(connection.execute(select(FILES.c.sha256)).scalars())
        adapters = set(connection.execute(select(MODELS.c.adapter)).scalars())
    swept = store.directory.sweep(blobs=blobs, adapters=adapters)
    requeued = requeue_running_jobs(store, now=int(time.time()))
    if swept or requeued:
        log.info("recovered: %d leavings deleted, %d jobs queued again", swept, requeued)
