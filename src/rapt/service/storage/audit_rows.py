"""The audit log: who did what to which object, and when. Rows are added with the change itself and never altered.

It holds ids that the service made, names of tenants and of actions. What a user wrote is not in it: a model is named by
the last part of its name, without the suffix that its user chose.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, or_, select

from rapt.service.storage.callers import Caller
from rapt.service.storage.database import Cursor, Page, page_of, value_of
from rapt.service.storage.store import Store
from rapt.service.storage.tables import AUDIT, KEYS


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One change.

    Attributes:
        id: `audit-...`.
        created_at: Unix time, s.
        tenant: Of whoever did it.
        key: Id of the key it was done with.
        action: Such as `file.create`.
        object: Id of what it was done to, or a tenant's name.
    """

    id: str
    created_at: int
    tenant: str
    key: str
    action: str
    object: str


def record(connection: Connection, caller: Caller, action: str, object_: str) -> None:
    """Note a change in the transaction that makes it: both are there, or neither."""
    entry = AuditEntry(
        id=f"audit-{secrets.token_hex(12)}",
        created_at=int(time.time()),
        tenant=caller.tenant,
        key=caller.key,
        action=action,
        object=object_,
    )
    connection.execute(insert(AUDIT).values(vars(entry)))


def list_audit(store: Store, cursor: Cursor, *, about: str | None = None) -> Page[AuditEntry]:
    """One page of the log of all tenants, or of what is about one.

    What is about a tenant is what was done with its keys to its objects, and what anybody did to its keys, its quotas
    and itself: so it sees that an admin made a key for it. What a deleted tenant of the same name left is not.

    Raises:
        NotFoundError: The cursor names none of these entries.
    """
    where = None
    if about is not None:
        is_admins = or_(AUDIT.c.action.startswith("key."), AUDIT.c.action.startswith("tenant."))
        keys = select(KEYS.c.id).where(KEYS.c.tenant == about)
        ended = select(func.coalesce(func.max(AUDIT.c.number), 0)).where(
            AUDIT.c.action == "tenant.delete", AUDIT.c.object == about
        )
        where = (AUDIT.c.number > ended.scalar_subquery()) & or_(
            (AUDIT.c.tenant == about) & ~is_admins,
            AUDIT.c.action.startswith("key.") & AUDIT.c.object.in_(keys),
            AUDIT.c.action.startswith("tenant.") & (AUDIT.c.object == about),
        )
    with store.database.read() as connection:
        rows, has_more = page_of(connection, AUDIT, cursor, where=where)
    return Page(tuple(value_of(row, AuditEntry) for row in rows), has_more)
