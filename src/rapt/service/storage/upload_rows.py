"""Uploads in parts: rows that name parts, until they are put together to a file."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from rapt.errors import LimitError, NotFoundError, UsageError
from rapt.service.storage.callers import Caller, record
from rapt.service.storage.data_directory import StagedFile
from rapt.service.storage.database import find, make_value
from rapt.service.storage.store import Store
from rapt.service.storage.tables import PARTS, UPLOADS
from rapt.service.storage.tenant_rows import check_bytes, check_parts, check_tenant, check_uploads

LIFETIME: Final = 24 * 3600  # s; parts of an upload that was given up must not stay for ever
# Of one upload, and of all pending ones of a tenant: each takes a block of the disk, however few bytes it has.
MOST_PARTS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class StoredUpload:
    """One upload in parts as the database has it.

    Attributes:
        id: `upload-...`.
        tenant: Tenant that owns it.
        filename: Name that the client gave it; shown, never used.
        purpose: `fine-tune`.
        bytes: Number of bytes that it is going to have.
        status: `pending`, `completed`, `cancelled` or `expired`.
        created_at: Time of creation, Unix time, s.
        expires_at: Unix time, s, after which nothing more is taken.
        file_id: Id of the file that it became; None until it is completed.
        file_seconds: Time for which that file is kept, s; None keeps it.
    """

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    status: str
    created_at: int
    expires_at: int
    file_id: str | None = None
    file_seconds: int | None = None


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """A part of an upload; its id is also its name on the disk."""

    id: str
    upload_id: str
    bytes: int
    sha256: str
    created_at: int


def add_upload(
    store: Store,
    *,
    filename: str,
    purpose: str,
    size: int,
    caller: Caller,
    now: int,
    file_seconds: int | None = None,
) -> StoredUpload:
    """Begin an upload in parts, of a file that is kept so many seconds, or until it is deleted.

    Raises:
        NotFoundError: The tenant was deleted meanwhile.
        QuotaError: It has begun too many.
    """
    upload = StoredUpload(
        id=f"upload-{secrets.token_hex(12)}",
        tenant=caller.tenant,
        filename=filename,
        purpose=purpose,
        bytes=size,
        status="pending",
        created_at=now,
        expires_at=now + LIFETIME,
        file_seconds=file_seconds,
    )
    with store.database.write() as connection:
        check_tenant(connection, caller.tenant)
        check_uploads(connection, caller.tenant)
        connection.execute(insert(UPLOADS).values(vars(upload)))
        record(connection, caller, "upload.create", upload.id)
    return upload


def get_upload(store: Store, upload_id: str, *, tenant: str) -> StoredUpload:
    """The upload of an id. Raises `NotFoundError`."""
    with store.database.read() as connection:
        return make_value(find(connection, UPLOADS, upload_id, tenant=tenant), StoredUpload)


def add_part(
    store: Store, upload_id: str, staged: StagedFile, *, caller: Caller, now: int, max_bytes: int
) -> StoredPart:
    """Keep a part of an upload.

    Args:
        store: Store of the service.
        upload_id: Id of the upload.
        staged: Bytes of the part.
        caller: Caller that owns the upload.
        now: Present Unix time, s.
        max_bytes: Most bytes of a tenant without a quota of its own.

    Raises:
        NotFoundError: There is no such upload.
        UsageError: It takes no more parts, or the part is empty.
        LimitError: The parts are more than the upload was going to have.
        QuotaError: The tenant has too many bytes, or too many parts.
    """
    if not staged.bytes:
        raise UsageError("a part of an upload must have at least one byte; leave it out")
    part = StoredPart(
        id=f"part-{secrets.token_hex(12)}",
        upload_id=upload_id,
        bytes=staged.bytes,
        sha256=staged.sha256,
        created_at=now,
    )
    store.directory.keep_part(staged, name=part.id)
    try:
        with store.database.write() as connection:
            upload = _require_pending(connection, upload_id, caller=caller, now=now)
            totals = select(func.count(), func.coalesce(func.sum(PARTS.c.bytes), 0)).where(
                PARTS.c.upload_id == upload_id
            )
            count, size = connection.execute(totals).one()
            if size + part.bytes > upload.bytes or count >= MOST_PARTS:
                raise LimitError(f"the parts must have {upload.bytes} bytes together, in at most {MOST_PARTS} parts")
            check_parts(connection, caller.tenant, most=MOST_PARTS)
            check_bytes(connection, caller.tenant, more=part.bytes, limit=max_bytes)
            connection.execute(insert(PARTS).values(vars(part)))
    except BaseException:
        store.directory.remove_part(part.id)
        raise
    return part


def find_parts_to_join(
    store: Store, upload_id: str, part_ids: Sequence[str], *, caller: Caller, now: int
) -> tuple[StoredUpload, list[Path]]:
    """An upload that can be completed, and its parts in order.

    Raises:
        NotFoundError: There is no such upload, or not all the parts in it.
        UsageError: It is not pending, or the parts have not the announced number of bytes.
    """
    with store.database.read() as connection:
        upload = _require_pending(connection, upload_id, caller=caller, now=now)
        rows = connection.execute(select(PARTS.c.id, PARTS.c.bytes).where(PARTS.c.upload_id == upload_id))
        found = {row.id: row.bytes for row in rows}
    if not set(part_ids) <= set(found):
        raise NotFoundError("every part must be one of this upload; send the ids that adding the parts gave")
    size = sum(found[part] for part in part_ids)
    if size != upload.bytes or len(set(part_ids)) != len(part_ids):
        raise UsageError(f"the parts must have {upload.bytes} bytes together and each come once, got bytes={size}")
    return upload, [store.directory.part(part) for part in part_ids]


def end_upload(
    store: Store, upload_id: str, *, status: str, caller: Caller, now: int, file_id: str | None = None
) -> StoredUpload:
    """Complete or cancel an upload; its parts are deleted.

    Raises:
        NotFoundError: There is no such upload.
        UsageError: It is not pending.
    """
    with store.database.write() as connection:
        _require_pending(connection, upload_id, caller=caller, now=now)
        change = update(UPLOADS).where(UPLOADS.c.id == upload_id)
        connection.execute(change.values(status=status, file_id=file_id))
        doomed = _drop_parts(connection, upload_id)
        record(connection, caller, "upload.complete" if file_id else "upload.cancel", upload_id)
        upload = make_value(find(connection, UPLOADS, upload_id, tenant=caller.tenant), StoredUpload)
    _remove(store, doomed)
    return upload


class JoinedParts:
    """Files read one after the other, as if they were one."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Keep the paths; the first read opens the first part."""
        self._paths = iter(paths)
        self._open: IO[bytes] | None = None

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes; none at the end."""
        while True:
            if self._open is None:
                path = next(self._paths, None)
                if path is None:
                    return b""
                self._open = path.open("rb")
            if chunk := self._open.read(size):
                return chunk
            self.close()

    def __enter__(self) -> JoinedParts:
        """Return the parts, to be read as one stream."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close what is open."""
        self.close()

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _require_pending(connection: Connection, upload_id: str, *, caller: Caller, now: int) -> StoredUpload:
    upload = make_value(find(connection, UPLOADS, upload_id, tenant=caller.tenant), StoredUpload)
    if upload.status != "pending" or upload.expires_at <= now:
        status = upload.status if upload.status != "pending" else "expired"
        raise UsageError(f"an upload must be pending, got status={status}; begin another")
    return upload


def _drop_parts(connection: Connection, upload_id: str) -> list[str]:
    parts = list(connection.execute(select(PARTS.c.id).where(PARTS.c.upload_id == upload_id)).scalars())
    connection.execute(delete(PARTS).where(PARTS.c.upload_id == upload_id))
    return parts


def _remove(store: Store, parts: Iterable[str]) -> None:
    for part in parts:
        store.directory.remove_part(part)
