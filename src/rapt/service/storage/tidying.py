"""Tidying by the clock: files and uploads that expire, and rows that nobody will ask for again, go without a request.

In small transactions, because whoever writes waits for the writer before. Rows of a tenant that only tell what was once
are kept for the newest thousand; `tenant_rows` refuses to make so many more of them in between that they fill the disk.
Entries of the audit log, and idempotency keys, are kept for the newest hundred thousand: every change may leave one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from sqlalchemy import ColumnElement, Connection, Table, delete, func, or_, select, true, update

from rapt.service.storage.callers import KEPT_SECONDS
from rapt.service.storage.file_rows import expire_files
from rapt.service.storage.job_rows import add_event
from rapt.service.storage.store import Store
from rapt.service.storage.tables import AUDIT, EVENTS, JOBS, KEYS, PARTS, REQUESTS, UPLOADS
from rapt.service.storage.tenant_rows import ENDED_FOR_NOTHING

KEPT_ROWS: Final = 1000
# Idempotency keys, and entries of the audit log, of which the database refuses to delete any of the newest so many.
KEPT_ENTRIES: Final = 100_000
_AT_ONCE: Final = 5000


def tidy(store: Store, *, now: int, should_stop: Callable[[], bool] = lambda: False) -> int:
    """End and forget what it is time for. Returns how many rows were changed or deleted.

    Args:
        store: Store of the service.
        now: Present Unix time, s.
        should_stop: Asked between transactions; what was not done yet is done the next time.

    Raises:
        UnavailableError: The database is away; what was not done yet is done the next time.
    """
    done = 0
    for expire in (_expire_uploads, expire_files):
        while not should_stop() and (changed := expire(store, now=now)):
            done += changed
    for table, of_the_past, kept in (
        (UPLOADS, UPLOADS.c.status != "pending", KEPT_ROWS),
        (JOBS, ENDED_FOR_NOTHING, KEPT_ROWS),
        (KEYS, or_(KEYS.c.revoked_at.is_not(None), KEYS.c.expires_at <= now), KEPT_ROWS),
        (AUDIT, true(), KEPT_ENTRIES),
        (REQUESTS, true(), KEPT_ENTRIES),
    ):
        with store.database.read() as connection:
            tenants = _list_with_too_many(connection, table, of_the_past, kept=kept)
        for tenant in tenants:
            own = of_the_past & (table.c.tenant == tenant)
            while not should_stop() and (forgotten := _forget_oldest(store, table, own, kept=kept)):
                done += forgotten
    old = REQUESTS.c.created_at < now - KEPT_SECONDS
    with store.database.read() as connection:
        if connection.execute(select(REQUESTS.c.number).where(old).limit(1)).first() is None:
            return done
    with store.database.write() as connection:
        return done + connection.execute(delete(REQUESTS).where(old)).rowcount


def warn_jobs_without_model(store: Store, *, served: Collection[str], now: int) -> int:
    """Say of queued jobs, once, that no worker has their base model. Returns of how many it was said."""
    waiting = select(JOBS.c.id, JOBS.c.model).where(JOBS.c.status == "queued", JOBS.c.model.not_in(served))

    def unsaid(connection: Connection) -> list[tuple[str, str]]:
        found = []
        for row in connection.execute(waiting.order_by(JOBS.c.number).limit(_AT_ONCE)):
            latest = select(EVENTS.c.message).where(EVENTS.c.job_id == row.id).order_by(EVENTS.c.number.desc()).limit(1)
            message = f"no worker has the base model {row.model} now; the job waits until one has"
            if connection.execute(latest).scalar() != message:
                found.append((row.id, message))
        return found

    with store.database.read() as connection:
        if not unsaid(connection):  # nearly always; a writer would hold up the others
            return 0
    with store.database.write() as connection:
        to_say = unsaid(connection)
        for job_id, message in to_say:
            add_event(connection, job_id, message=message, level="warn", now=now)
    return len(to_say)


def _expire_uploads(store: Store, *, now: int) -> int:
    old = select(UPLOADS.c.id).where(UPLOADS.c.status == "pending", UPLOADS.c.expires_at <= now).limit(_AT_ONCE)
    with store.database.read() as connection:
        if connection.execute(old).first() is None:
            return 0
    with store.database.write() as connection:
        ids = list(connection.execute(old).scalars())
        parts = list(connection.execute(select(PARTS.c.id).where(PARTS.c.upload_id.in_(ids))).scalars())
        connection.execute(delete(PARTS).where(PARTS.c.upload_id.in_(ids)))
        connection.execute(update(UPLOADS).where(UPLOADS.c.id.in_(ids)).values(status="expired"))
    for part in parts:
        store.directory.remove_part(part)
    return len(ids)


def _list_with_too_many(connection: Connection, table: Table, where: ColumnElement[bool], *, kept: int) -> list[str]:
    grouped = select(table.c.tenant).where(where).group_by(table.c.tenant).having(func.count() > kept)
    return list(connection.execute(grouped).scalars())


def _forget_oldest(store: Store, table: Table, where: ColumnElement[bool], *, kept: int) -> int:
    newest = select(table.c.number).where(where).order_by(table.c.number.desc()).limit(1).offset(kept)
    with store.database.write() as connection:
        last = connection.execute(newest).scalar()
        if last is None:
            return 0
        oldest = select(table.c.number).where(where, table.c.number <= last).order_by(table.c.number).limit(_AT_ONCE)
        return connection.execute(delete(table).where(table.c.number.in_(oldest))).rowcount
