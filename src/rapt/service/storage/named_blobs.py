"""Blobs and the rows that name them: files and models. A blob stays as long as one row names it, whoever's it is.

Bytes are put before their row is written, and deleted after the last row is gone. Between the two another process may
come with the same bytes, so both happen under a lock for their digest, in the data directory, which all workers see:
whoever puts shares it, whoever deletes holds it alone and counts the rows once more. The system lets go of a lock when
its holder dies.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, select

from rapt.errors import UnavailableError
from rapt.service.storage.durable_files import StagedFile, not_stored
from rapt.service.storage.store import Store
from rapt.service.storage.tables import FILES, MODELS

_NAMING = (FILES.c.sha256, MODELS.c.sha256)


@contextmanager
def naming(store: Store, staged: StagedFile) -> Iterator[None]:
    """Put bytes; the block writes the row that names them. If it fails, they go unless another row names them."""
    try:
        with _locked(store, staged.sha256, fcntl.LOCK_SH):
            store.blobs.put(staged)
            yield
    except BaseException:
        with suppress(UnavailableError):  # then the next start deletes them; what went wrong first is what counts
            release(store, [staged.sha256])
        raise


def release(store: Store, digests: Iterable[str]) -> int:
    """Delete those blobs that no row names any more. Returns how many; whoever waits for it cannot tell."""
    deleted = 0
    for digest in sorted(set(digests)):
        with _locked(store, digest, fcntl.LOCK_EX):
            with store.database.read() as connection:
                named = is_named(connection, digest)
            if named:
                store.blobs.delete_nothing()
            else:
                store.blobs.delete(digest)
                deleted += 1
    return deleted


def is_named(connection: Connection, digest: str) -> bool:
    """Whether a row names a blob."""
    return any(connection.execute(select(name).where(name == digest).limit(1)).first() for name in _NAMING)


def named_blobs(connection: Connection) -> set[str]:
    """All blobs that rows name."""
    return {digest for name in _NAMING for digest in connection.execute(select(name).distinct()).scalars()}


@contextmanager
def _locked(store: Store, digest: str, how: int) -> Iterator[None]:
    # One of 256 files, which stay: a lock's file that came and went would need a lock of its own.
    try:
        descriptor = os.open(store.directory.naming / digest[:2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise not_stored(error) from None
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
