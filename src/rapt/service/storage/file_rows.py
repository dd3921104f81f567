"""Uploaded files: rows that name bytes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from sqlalchemy import ColumnElement, delete, insert, or_, select

from rapt.errors import DamagedError, UsageError
from rapt.service.storage.blobs import open_blob
from rapt.service.storage.callers import Caller, Repeatable, find_made_before, note, record
from rapt.service.storage.data_directory import StagedFile
from rapt.service.storage.database import Cursor, Page, find, make_value, read_page
from rapt.service.storage.store import Store, naming, release
from rapt.service.storage.tables import FILES, JOBS
from rapt.service.storage.tenant_rows import ACTIVE, MOST_FILES, check_bytes, check_files, check_tenant
from rapt.wire.manifest import Manifest
from rapt.wire.mechanism_setting import dump_mechanism

PURPOSE: Final = "fine-tune"
_AT_ONCE: Final = 500
# What stands in the audit log in the place of a key, where time deleted a file.
_CLOCK: Final = "expiry"


@dataclass(frozen=True, kw_only=True)
class FileSummary:
    """Summary of an admitted file, for use without opening it again.

    Attributes:
        manifest: Manifest of the file.
        longest: Number of tokens of the longest text, plain tokens not counted.
    """

    manifest: Manifest
    longest: int


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One upload. Two uploads of the same bytes are two of these and one blob.

    Attributes:
        id: `file-...`.
        tenant: Tenant that owns it.
        filename: Name that the client gave it; shown, never used.
        purpose: `fine-tune`.
        bytes: Size in bytes.
        sha256: Hex digest, and name of its blob.
        created_at: Time of creation, Unix time, s.
        vocabulary_hash: Hash of the vocabulary that it was privatized for.
        mechanism: Mechanism that privatized it, as the manifest says.
        insecure_seed: Whether the noise came from a seed, which protects nothing.
        records: Number of records.
        tokens: Tokens of their texts.
        longest: Tokens of the longest text.
        plain_tokens: m, before each text.
        labels: Number of classes; 0 without labels.
        expires_at: Unix time from which on it goes by itself, s; None keeps it.
    """

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: int
    vocabulary_hash: str
    mechanism: dict[str, Any]
    insecure_seed: bool
    records: int
    tokens: int
    longest: int
    plain_tokens: int
    labels: int
    expires_at: int | None = None


def add_file(
    store: Store,
    staged: StagedFile,
    summary: FileSummary,
    *,
    filename: str,
    caller: Caller,
    now: int,
    max_bytes: int,
    max_files: int = MOST_FILES,
    counted: int = 0,
    request: Repeatable | None = None,
    seconds: int | None = None,
) -> StoredFile:
    """Keep admitted bytes under a new id.

    Args:
        store: Store of the service.
        staged: Bytes that were staged.
        summary: Summary of the content.
        filename: Name that the client gives it.
        caller: Caller that becomes the owner.
        now: Present Unix time, s.
        max_bytes: Most bytes of a tenant without a quota of its own.
        max_files: Most files of a tenant.
        counted: Bytes of it that the tenant has already, as parts of an upload.
        request: Marks of a request that may come again; then the file of the first time is the answer.
        seconds: Time for which it is kept, s; None keeps it until it is deleted.

    Raises:
        QuotaError: The tenant has too many bytes, or files.
        UsageError: The same idempotency key came with another file.
    """
    manifest = summary.manifest
    file = StoredFile(
        id=f"file-{secrets.token_hex(12)}",
        tenant=caller.tenant,
        filename=filename,
        purpose=PURPOSE,
        bytes=staged.bytes,
        sha256=staged.sha256,
        created_at=now,
        vocabulary_hash=manifest.vocabulary_hash,
        mechanism=dump_mechanism(manifest.mechanism),
        insecure_seed=manifest.randomness.insecure_seed is not None,
        records=manifest.records,
        tokens=manifest.tokens,
        longest=summary.longest,
        plain_tokens=manifest.plain_tokens.count,
        labels=len(manifest.labels or ()),
        expires_at=None if seconds is None else now + seconds,
    )
    with store.database.read() as connection:
        if (before := find_made_before(connection, caller, request)) is not None:
            return make_value(find(connection, FILES, before, tenant=caller.tenant), StoredFile)
        check_files(connection, caller.tenant, limit=max_files)
        check_bytes(connection, caller.tenant, more=file.bytes - counted, limit=max_bytes)
    with naming(store, staged), store.database.write() as connection:
        # The same request may have come twice at once: the second finds what the first has made meanwhile.
        if (before := find_made_before(connection, caller, request)) is not None:
            return make_value(find(connection, FILES, before, tenant=caller.tenant), StoredFile)
        check_tenant(connection, caller.tenant)
        check_files(connection, caller.tenant, limit=max_files)
        check_bytes(connection, caller.tenant, more=file.bytes - counted, limit=max_bytes)
        connection.execute(insert(FILES).values(vars(file)))
        note(connection, caller, request, file.id, now=now)
        record(connection, caller, "file.create", file.id)
    return file


def get_file(store: Store, file_id: str, *, tenant: str) -> StoredFile:
    """The file of an id. Raises `NotFoundError`."""
    with store.database.read() as connection:
        return make_value(find(connection, FILES, file_id, tenant=tenant), StoredFile)


def list_files(store: Store, cursor: Cursor, *, tenant: str, sha256: str | None = None) -> Page[StoredFile]:
    """One page of files, those of one digest alone where it is given. Raises `NotFoundError` for an unknown cursor."""
    where = FILES.c.tenant == tenant
    with store.database.read() as connection:
        rows, has_more = read_page(
            connection, FILES, cursor, where=where if sha256 is None else where & (FILES.c.sha256 == sha256)
        )
    return Page(tuple(make_value(row, StoredFile) for row in rows), has_more)


def open_file(store: Store, file: StoredFile) -> BinaryIO:
    """The bytes of a file as a stream, which raises `DamagedError` before its end if they are others.

    Raises:
        NotFoundError: The file was deleted meanwhile.
        DamagedError: The bytes that were kept are not there any more, or not all of them.
        UnavailableError: The store of the blobs cannot be reached.
    """
    try:
        return open_blob(store.blobs, file.sha256, size=file.bytes)
    except FileNotFoundError:
        get_file(store, file.id, tenant=file.tenant)
        raise DamagedError("the bytes of a file must be where they were kept; tell the provider") from None


def delete_file(store: Store, file_id: str, *, caller: Caller) -> None:
    """Delete a file, and its bytes if no other upload has the same.

    Raises:
        NotFoundError: There is no such file.
        UsageError: A job that has not ended needs it.
    """
    with store.database.write() as connection:
        file = make_value(find(connection, FILES, file_id, tenant=caller.tenant), StoredFile)
        if connection.execute(select(FILES.c.id).where(FILES.c.id == file_id, _is_needed())).first() is not None:
            raise UsageError("a file must not be deleted while a job needs it; cancel the job first")
        connection.execute(delete(FILES).where(FILES.c.id == file_id))
        record(connection, caller, "file.delete", file_id)
    store.database.forget_deleted()
    release(store, [file.sha256])


def expire_files(store: Store, *, now: int) -> int:
    """Delete files whose time has come and that no unfinished job needs, at most so many; returns how many."""
    due = select(FILES.c.id, FILES.c.tenant, FILES.c.sha256).where(FILES.c.expires_at <= now, ~_is_needed())
    with store.database.read() as connection:
        if connection.execute(due.limit(1)).first() is None:
            return 0
    with store.database.write() as connection:
        rows = connection.execute(due.limit(_AT_ONCE)).all()
        connection.execute(delete(FILES).where(FILES.c.id.in_([row.id for row in rows])))
        for row in rows:
            record(connection, Caller(tenant=row.tenant, key=_CLOCK, role="tenant"), "file.delete", row.id)
    store.database.forget_deleted()
    release(store, [row.sha256 for row in rows])
    return len(rows)


def _is_needed() -> ColumnElement[bool]:
    """Whether a job that has not ended reads a file."""
    reads = or_(JOBS.c.training_file == FILES.c.id, JOBS.c.validation_file == FILES.c.id)
    return select(JOBS.c.id).where(reads, JOBS.c.status.in_(ACTIVE)).correlate(FILES).exists()
