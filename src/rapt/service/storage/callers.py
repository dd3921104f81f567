"""Who asks, the log of who did what, and idempotency keys, by which a request that comes twice makes one object.

A caller is a value made at the door and handed to every change of the store. Rows of the audit log are added with the
change itself and never altered. It holds ids that the service made, names of tenants and of actions. What a user wrote
is not in it: a model is named by the last part of its name, without the suffix that its user chose.

An idempotency key is noted in the transaction that makes the object, so a crash between the two cannot be: a client
that got no answer sends the request again and gets the object that was made, or makes it now.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import Connection, func, insert, or_, select

from rapt.errors import UsageError
from rapt.service.storage.database import Cursor, Page, make_value, read_page
from rapt.service.storage.store import Store
from rapt.service.storage.tables import AUDIT, KEYS, REQUESTS

Role = Literal["contributor", "tenant", "admin"]
# Owner of everything in a service without keys, and of what was there before there were tenants.
LOCAL: Final = "local"
# A tenant's name stands between colons in the names of its models, and in URLs.
_TENANT_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
KEPT_SECONDS: Final = 7 * 24 * 3600


@dataclass(frozen=True)
class Caller:
    """The tenant and the key that a request came with.

    Attributes:
        tenant: Name of the tenant that everything made belongs to, and that everything seen must belong to.
        key: Id of the API key, never the key.
        role: Role that says what else it may do.
        pool: Id of the pool that a contributor may add to; None for the others.
    """

    tenant: str
    key: str
    role: Role
    pool: str | None = None


# The one who has the machine: a service on loopback without keys, and the command line on the data directory.
DEVELOPER: Final = Caller(tenant=LOCAL, key="development", role="admin")
OPERATOR: Final = Caller(tenant=LOCAL, key="command-line", role="admin")


def check_tenant_name(name: str) -> None:
    """Refuse a name that could not stand in a model's name. Raises `UsageError`."""
    if not _TENANT_NAME.fullmatch(name):
        raise UsageError(
            "a tenant's name must be 1 to 32 lower-case letters, digits and dashes, without a dash at either end"
        )


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One change that the audit trail keeps.

    Attributes:
        id: `audit-...`.
        created_at: Unix time, s.
        tenant: Tenant of the key that made the change.
        key: Id of the key it was done with.
        action: Name of the action, for example `file.create`.
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
        rows, has_more = read_page(connection, AUDIT, cursor, where=where)
    return Page(tuple(make_value(row, AuditEntry) for row in rows), has_more)


@dataclass(frozen=True)
class Repeatable:
    """A request that may come again: digests of its key and of what it asks, hex."""

    key_digest: str
    content_digest: str


def mark_repeatable(key: str | None, *content: str) -> Repeatable | None:
    """The marks of a request, if it came with a key."""
    if key is None:
        return None
    return Repeatable(_digest(key), _digest(*content))


def find_made_before(connection: Connection, caller: Caller, request: Repeatable | None) -> str | None:
    """Id of what the same request made before; None if it is new.

    Raises:
        UsageError: The key came before with another request.
    """
    if request is None:
        return None
    row = connection.execute(
        select(REQUESTS).where(REQUESTS.c.tenant == caller.tenant, REQUESTS.c.key_digest == request.key_digest)
    ).first()
    if row is None:
        return None
    if row.content_digest != request.content_digest:
        raise UsageError("an idempotency key must come with the same request every time; use a new one")
    return str(row.object)


def note(connection: Connection, caller: Caller, request: Repeatable | None, object_: str, *, now: int) -> None:
    """Remember what a request made, for `KEPT_SECONDS`."""
    if request is None:
        return
    values = {"tenant": caller.tenant, "object": object_, "created_at": now, **vars(request)}
    connection.execute(insert(REQUESTS).values(values))


def _digest(*parts: str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode()
        whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()
