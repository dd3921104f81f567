"""What happened to a job: messages and figures, added in the transaction of the change that they tell of."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, insert

from rapt.service.storage.database import Cursor, Page, find, page_of, value_of
from rapt.service.storage.store import Store
from rapt.service.storage.tables import EVENTS, JOBS

Level = Literal["info", "warn", "error"]


@dataclass(frozen=True, kw_only=True)
class StoredEvent:
    """Something that happened to a job; `data` holds numbers only."""

    id: str
    job_id: str
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


def list_events(store: Store, job_id: str, cursor: Cursor, *, tenant: str) -> Page[StoredEvent]:
    """One page of a job's events. Raises `NotFoundError` for an unknown job or cursor."""
    with store.database.read() as connection:
        find(connection, JOBS, job_id, tenant=tenant)
        rows, has_more = page_of(connection, EVENTS, cursor, where=EVENTS.c.job_id == job_id)
    return Page(tuple(value_of(row, StoredEvent) for row in rows), has_more)


def add_event(
    connection: Connection,
    job_id: str,
    *,
    message: str,
    now: int,
    level: Level = "info",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Add one; of type `metrics` if it has figures."""
    event = StoredEvent(
        id=f"ftevent-{secrets.token_hex(12)}",
        job_id=job_id,
        created_at=now,
        level=level,
        type="message" if data is None else "metrics",
        message=message,
        data=None if data is None else dict(data),
    )
    connection.execute(insert(EVENTS).values(vars(event)))
