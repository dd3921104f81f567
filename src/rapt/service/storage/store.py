"""The state of a service: a database, a data directory and a store of blobs that always agree.

Order of writes: bytes first, then the row that names them; to delete, the row first, then the bytes. So a crash leaves
at worst bytes that no row names, and the next start (`recovery`) deletes those.

A blob stays as long as one row names it, whoever's it is. Between putting bytes and writing their row, and between the
last row and deleting them, another process may come with the same bytes, so both happen under a lock for their digest,
in the data directory: whoever puts shares it, whoever deletes holds it alone and counts the rows
once more. The system lets go of a lock when its holder dies. On PostgreSQL the lock is the database's, so that workers
need no disk in common.

Where blobs are in an object store, so is the state of a run, under the digest of its archive: a worker on another
machine goes on from it.

A service writes its id beside its blobs, and takes none that have another's: at its start it deletes those that no row
of its own names, and in the place of another service that would be all of them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from rapt.errors import UnavailableError, UsageError
from rapt.service.storage.blobs import BlobStore, LocalBlobs
from rapt.service.storage.data_directory import DataDirectory, StagedFile, explain_not_stored
from rapt.service.storage.database import Database
from rapt.service.storage.tables import FILES, IDENTITY, MODELS, RUN_STATES

_NAMING = (FILES.c.sha256, MODELS.c.sha256, RUN_STATES.c.folder)
_DIGEST_LETTERS = 64  # other states of runs are folders, with shorter names


@dataclass(frozen=True, eq=False)
class Store:
    """Database, blobs and data directory. The functions of the `..._rows` modules take one.

    Attributes:
        database: Database of the rows.
        directory: Folder of uploads on their way, states of runs, and locks.
        blobs: Files and adapters, by their digests; which of them are needed is known to `list_named_blobs`.
    """

    database: Database
    directory: DataDirectory
    blobs: BlobStore


@contextmanager
def naming(store: Store, staged: StagedFile) -> Iterator[None]:
    """Put bytes; the block writes the row that names them. If it fails, they go unless another row names them."""
    try:
        with _hold_lock(store, staged.sha256, fcntl.LOCK_SH):
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
        with _hold_lock(store, digest, fcntl.LOCK_EX):
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


def list_named_blobs(connection: Connection) -> set[str]:
    """All blobs that rows name."""
    named = (select(name).distinct().where(func.length(name) == _DIGEST_LETTERS) for name in _NAMING)
    return {digest for query in named for digest in connection.execute(query).scalars()}


def keeps_run_states(store: Store) -> bool:
    """Whether states of runs are blobs, which workers on every machine reach."""
    return not isinstance(store.blobs, LocalBlobs)


def is_blob(run_state: str) -> bool:
    """Whether the name of a state is the digest of a blob; those of folders are shorter."""
    return len(run_state) == _DIGEST_LETTERS


def discard_run_states(store: Store, names: Iterable[str]) -> None:
    """Delete states that no row names any more: folders, or blobs."""
    for name in names:
        if is_blob(name):
            with suppress(UnavailableError):  # then the next start deletes it
                release(store, [name])
        else:
            store.directory.remove_run_state(name)


@contextmanager
def _hold_lock(store: Store, digest: str, how: int) -> Iterator[None]:
    if not store.database.is_sqlite:
        with store.database.hold_name(digest, shared=how == fcntl.LOCK_SH):
            yield
        return
    # One of 256 files, which stay: a lock's file that came and went would need a lock of its own.
    try:
        descriptor = os.open(store.directory.naming / digest[:2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise explain_not_stored(error) from None
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def refuse_foreign(store: Store) -> None:
    """Refuse blobs that another service has claimed.

    Raises:
        UsageError: They are another service's.
        UnavailableError: They cannot be reached.
    """
    if store.blobs.owner() not in (None, read_service_id(store)):
        raise UsageError("the setting blobs must be of this service only, got that of another; give each its own")


def own_blobs(store: Store) -> None:
    """Make sure that the blobs are those of this service; claim them if they are nobody's yet.

    Raises:
        UsageError: They are another service's, or what the rows name is kept elsewhere.
        UnavailableError: They cannot be reached.
    """
    refuse_foreign(store)
    if store.blobs.owner() is not None:
        return
    with store.database.read() as connection:
        named = list_named_blobs(connection)
    if named and named.isdisjoint(store.blobs.list()):
        raise UsageError(
            "the setting blobs must be where this service keeps its files and adapters, and none of them is there; "
            "give the same to `rapt serve`, `rapt worker` and `rapt admin` every time"
        )
    store.blobs.claim(read_service_id(store))


def read_service_id(store: Store) -> str:
    """The id of the service that a store is of: drawn once, and no secret."""
    with store.database.read() as connection:
        return str(connection.execute(select(IDENTITY.c.id)).scalar_one())


def move_blobs(store: Store) -> int:
    """Move the named blobs of the data directory to where the service keeps its blobs now. Returns how many.

    For the one serving process, before anybody looks. Each is put there before it is deleted here, so a crash at any
    moment leaves what the next start goes on with.
    """
    here = LocalBlobs(store.directory.blobs)
    if isinstance(store.blobs, LocalBlobs) and store.blobs.root == here.root:
        return 0
    with store.database.read() as connection:
        named = list_named_blobs(connection)
    moved = 0
    for name in list(here.list()):
        if name in named:
            store.blobs.put(StagedFile(path=here.path(name), bytes=here.size(name), sha256=name))
            moved += 1
        here.delete(name)
    here.disclaim()
    return moved
