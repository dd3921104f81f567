"""API keys: shown once, stored as a digest.

A key is 256 random bits of the operating system. Its SHA-256 is all that is stored, without salt and without a slow
hash, and that is enough: salts and slow hashes protect secrets that people choose, because somebody with the table can
try the likely ones. Nobody can try 2^256 keys, so the digest of a random key gives nothing away, and a slow hash would
only slow down every request. A key is looked up by its digest: what the time of that look-up shows is about a digest
that the asker cannot steer.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, exists, func, insert, or_, select, update

from rapt.errors import ForbiddenError, NotFoundError, QuotaError, UsageError
from rapt.service.storage.callers import OPERATOR, Caller, Role, record
from rapt.service.storage.database import Cursor, Page, make_value, read_page
from rapt.service.storage.store import Store
from rapt.service.storage.tables import KEYS, TENANTS

_PREFIX: Final = "rapt-"
_BYTES: Final = 32  # 256 bits
# Rotating with a grace leaves the old key good, so a tenant could make keys without end.
_MOST_GOOD: Final = 100
_MOST_GOOD_OF_POOLS: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class StoredKey:
    """Description of a key: all but the key.

    Attributes:
        id: `key-...`; may be shown, and stands in the audit log.
        tenant: Tenant that owns the key.
        role: Role that says what it may do.
        created_at: Time of creation, Unix time, s.
        expires_at: Unix time, s, from which on the key is refused; None if it has no end yet.
        revoked_at: Time of its revocation, Unix time, s; None while it is valid.
        pool: Id of the pool that the key of a contributor adds to; None for other roles.
    """

    id: str
    tenant: str
    role: Role
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    pool: str | None = None


def digest_key(key: str) -> str:
    """Return the digest that is stored of a key, hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(store: Store, *, tenant: str, role: Role, caller: Caller, now: int) -> tuple[StoredKey, str]:
    """A new key, and the only sight of it there will ever be.

    Raises:
        NotFoundError: There is no such tenant.
        ForbiddenError: The key would have a higher role than the caller.
        QuotaError: The tenant has as many good keys as it may have.
    """
    with store.database.write() as connection:
        return _create(connection, tenant=tenant, role=role, caller=caller, now=now)


def rotate_key(
    store: Store, key_id: str, *, grace: int, caller: Caller, now: int, tenant: str | None = None
) -> tuple[StoredKey, str]:
    """A new key in place of an old one, which is refused after `grace` seconds.

    Args:
        store: Store of the service.
        key_id: The old one.
        grace: s in which both are good, to change over without a gap.
        caller: Sender of the request.
        now: Present Unix time, s.
        tenant: Tenant that must own the key; None for an admin.

    Raises:
        NotFoundError: There is no such key that is good and that the caller may touch.
        QuotaError: The tenant has as many good keys as it may have.
        UsageError: It is the key of a contributor.
    """
    with store.database.write() as connection:
        old = _require_good(connection, key_id, tenant=tenant, caller=caller, now=now)
        if old.pool is not None:
            raise UsageError("the key of a contributor must be revoked and not rotated; make new ones for the pool")
        ends = now + grace if old.expires_at is None else min(old.expires_at, now + grace)
        connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(expires_at=ends))
        record(connection, caller, "key.rotate", key_id)
        return _create(connection, tenant=old.tenant, role=old.role, caller=caller, now=now)


def revoke_key(store: Store, key_id: str, *, caller: Caller, now: int, tenant: str | None = None) -> StoredKey:
    """Refuse a key from now on. Raises `NotFoundError` as `rotate_key`."""
    with store.database.write() as connection:
        _require_good(connection, key_id, tenant=tenant, caller=caller, now=now)
        connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(revoked_at=now))
        record(connection, caller, "key.revoke", key_id)
        return make_value(connection.execute(select(KEYS).where(KEYS.c.id == key_id)).one(), StoredKey)


def list_keys(store: Store, cursor: Cursor, *, caller: Caller = OPERATOR, tenant: str | None = None) -> Page[StoredKey]:
    """One page of the keys that the caller may touch, of one tenant or of all.

    Raises:
        NotFoundError: The cursor names none of them.
    """
    with store.database.read() as connection:
        where: ColumnElement[bool] = KEYS.c.role.in_(_list_roles_below(caller))
        if tenant is not None:
            where &= KEYS.c.tenant == tenant
        rows, has_more = read_page(connection, KEYS, cursor, where=where)
    return Page(tuple(make_value(row, StoredKey) for row in rows), has_more)


def find_holder(store: Store, key: str, *, now: int) -> Caller | None:
    """Find who sends a key; None if it is none of ours, or no longer good."""
    digest = digest_key(key)
    found = store.database.remembered.ask(
        ("holder", digest), lambda: _find_holder(store, digest), scope=lambda one: f"api_keys {one[0].tenant}"
    )
    if found is None or (found[1] is not None and found[1] <= now):
        return None
    return found[0]


def has_keys(store: Store) -> bool:
    """Whether there ever was a key, revoked ones included: then the service never lets anybody in without one."""

    def look_up() -> bool:
        with store.database.read() as connection:
            return bool(connection.execute(select(exists().select_from(KEYS))).scalar())

    return store.database.remembered.ask("has keys", look_up, scope=lambda _: "api_keys")


def _find_holder(store: Store, digest: str) -> tuple[Caller, int | None] | None:
    """Look up who has a key that is not revoked, and when it ends."""
    with store.database.read() as connection:
        row = connection.execute(
            select(KEYS.c.id, KEYS.c.tenant, KEYS.c.role, KEYS.c.expires_at, KEYS.c.pool).where(
                KEYS.c.digest == digest, KEYS.c.revoked_at.is_(None)
            )
        ).first()
    if row is None:
        return None
    return Caller(tenant=row.tenant, key=row.id, role=row.role, pool=row.pool), row.expires_at


def _create(connection: Connection, *, tenant: str, role: Role, caller: Caller, now: int) -> tuple[StoredKey, str]:
    if connection.execute(select(TENANTS.c.number).where(TENANTS.c.name == tenant)).first() is None:
        raise NotFoundError("there is no such tenant; list them, or create it first")
    if role not in _list_roles_below(caller):
        raise ForbiddenError("a key must have the role of the key that it is asked with, or a lower one")
    good = select(func.count()).where(KEYS.c.tenant == tenant, KEYS.c.pool.is_(None), _is_good(now))
    if connection.execute(good).scalar_one() >= _MOST_GOOD:
        raise QuotaError(f"a tenant must have at most {_MOST_GOOD} good keys; revoke some", retry_after=None)
    return _add(connection, tenant=tenant, role=role, caller=caller, now=now)


def create_pool_keys(
    connection: Connection, *, pool: str, count: int, room: int, caller: Caller, now: int
) -> list[tuple[StoredKey, str]]:
    """Return new keys that may add so many contributions each to a pool of the caller's tenant, and nothing else.

    Raises:
        QuotaError: The tenant has as many good keys of contributors as it may have.
    """
    good = select(func.count()).where(KEYS.c.tenant == caller.tenant, KEYS.c.pool.is_not(None), _is_good(now))
    if connection.execute(good).scalar_one() + count > _MOST_GOOD_OF_POOLS:
        raise QuotaError(
            f"a tenant must have at most {_MOST_GOOD_OF_POOLS} good keys of contributors; close or delete a pool",
            retry_after=None,
        )
    return [
        _add(connection, tenant=caller.tenant, role="contributor", caller=caller, now=now, pool=pool, room=room)
        for _ in range(count)
    ]


def revoke_pool_keys(connection: Connection, pool: str, *, now: int) -> None:
    """Refuse all keys of a pool from now on."""
    connection.execute(update(KEYS).where(KEYS.c.pool == pool, KEYS.c.revoked_at.is_(None)).values(revoked_at=now))


def _add(
    connection: Connection,
    *,
    tenant: str,
    role: Role,
    caller: Caller,
    now: int,
    pool: str | None = None,
    room: int | None = None,
) -> tuple[StoredKey, str]:
    shown = _PREFIX + secrets.token_urlsafe(_BYTES)
    key = StoredKey(id=f"key-{secrets.token_hex(12)}", tenant=tenant, role=role, created_at=now, pool=pool)
    connection.execute(insert(KEYS).values({**vars(key), "digest": digest_key(shown), "room": room}))
    record(connection, caller, "key.create", key.id)
    return key, shown


def _require_good(connection: Connection, key_id: str, *, tenant: str | None, caller: Caller, now: int) -> StoredKey:
    query = select(KEYS).where(KEYS.c.id == key_id, KEYS.c.role.in_(_list_roles_below(caller)), _is_good(now))
    if tenant is not None:
        query = query.where(KEYS.c.tenant == tenant)
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError("no such key is good; list them to see what there is")
    return make_value(row, StoredKey)


def _is_good(now: int) -> ColumnElement[bool]:
    return KEYS.c.revoked_at.is_(None) & or_(KEYS.c.expires_at.is_(None), KEYS.c.expires_at > now)


def _list_roles_below(caller: Caller) -> tuple[Role, ...]:
    """The roles of the keys that a caller may see, change and make: its own, and those that may do less."""
    below: dict[Role, tuple[Role, ...]] = {
        "admin": ("contributor", "tenant", "admin"),
        "tenant": ("contributor", "tenant"),
        "contributor": (),
    }
    return below[caller.role]
