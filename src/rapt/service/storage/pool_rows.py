"""Pools: what many contributors give to one model, without a trace of who gave what, and when.

A tenant opens a pool with a setting, the manifest by which every contribution is privatized, and with the number of
contributions below which it makes no file. Contributors have keys that add to this pool and do nothing else. A
contribution is a row of two things: the record, and the digest of a receipt that its contributor made up. It has no
number, no time and no key; rows lie in the order of their digests, and the file that a pool becomes has them in a
random order. Whoever has the receipt can take a contribution back until the pool is closed, and the same receipt twice
is one contribution.

*What it does not hide.* A service that wants to can note what comes in beside its tables, with addresses and times: the
protection of a text is the ε that it was privatized with, and this module only keeps an honest service from gathering
more. A log of the database, where the operator keeps one, has the order of changes, and so has PostgreSQL until a pool
is closed: where a row lies in the table, and the number of the transaction that wrote it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.engine import Row

from rapt.errors import LimitError, QuotaError, UsageError
from rapt.service.storage.callers import Caller, record
from rapt.service.storage.contribution_rows import (
    delete_contributions,
    iterate_pages,
    read_contributions,
    require_open,
)
from rapt.service.storage.database import Cursor, Page, find, hold_alone, make_value, read_page
from rapt.service.storage.key_rows import StoredKey, create_pool_keys, revoke_pool_keys
from rapt.service.storage.store import Store
from rapt.service.storage.tables import CONTRIBUTIONS, COUNTERS, POOLS
from rapt.service.storage.tenant_rows import check_bytes, check_tenant
from rapt.wire.manifest import Manifest, dump_manifest, parse_manifest
from rapt.wire.strict_json import dump_line

MOST_CONTRIBUTIONS: Final = 1_000_000
MOST_MANIFEST_BYTES: Final = 65_536  # it is read for each contribution
_MOST_POOLS: Final = 100  # of a tenant
Status = Literal["open", "closing", "closed"]


@dataclass(frozen=True, kw_only=True)
class StoredPool:
    """One pool as the database has it.

    Attributes:
        id: `pool-...`.
        tenant: Tenant that opened it.
        manifest: Manifest of its contributions as JSON values, without counts.
        setting: Hex digest of the manifest, which a contribution names.
        least: Number of contributions below which no file is made.
        most: Number of contributions that it takes.
        status: `open`, `closing` or `closed`.
        contributions: Number of contributions that are in it, or in the file that it became.
        bytes: Size of the manifest, and of records that the tenant's quota has room for while the pool is open.
        created_at: Time of creation, Unix time, s.
        file_id: Id of the file that it became; None until it is closed.
        rounds: Plan of a pool of two rounds: `first`, the number of contributions that the first one needs, and
            `manifest`, that of the second one before its centre is known, None once it is. None for one round.
    """

    id: str
    tenant: str
    manifest: dict[str, Any]
    setting: str
    least: int
    most: int
    status: Status
    contributions: int
    bytes: int
    created_at: int
    file_id: str | None = None
    rounds: dict[str, Any] | None = None

    @property
    def is_first_round(self) -> bool:
        """Whether what is contributed now gives the centre of the code, and is in no file."""
        return self.rounds is not None and self.rounds["manifest"] is not None


def open_pool(
    store: Store,
    manifest: Manifest,
    *,
    setting: str,
    least: int,
    most: int,
    caller: Caller,
    now: int,
    max_bytes: int,
    second: Manifest | None = None,
    first: int = 0,
) -> StoredPool:
    """Open a pool for contributions.

    Args:
        store: Store of the service.
        manifest: Manifest that contributions are privatized by, without counts.
        setting: Digest of the setting.
        least: Number of contributions below which no file is made.
        most: Number of contributions that it takes.
        caller: Caller that becomes the owner.
        now: Present Unix time, s.
        max_bytes: Most bytes of a tenant without a quota of its own.
        second: Manifest of a second round, without the centre that the first one is for; None for one round.
        first: Contributions that the first of two rounds needs.

    Raises:
        NotFoundError: The tenant was deleted meanwhile.
        QuotaError: The tenant has too many pools, or too many bytes.
        LimitError: The manifest is too long.
    """
    dumped = dump_manifest(manifest)
    size = len(dump_line(dumped))
    if size > MOST_MANIFEST_BYTES:
        raise LimitError(
            f"the manifest of a pool must have at most {MOST_MANIFEST_BYTES} bytes, got {size}; use fewer labels or "
            "plain tokens"
        )
    pool = StoredPool(
        id=f"pool-{secrets.token_hex(12)}",
        tenant=caller.tenant,
        manifest=dumped,
        setting=setting,
        least=least,
        most=most,
        status="open",
        contributions=0,
        bytes=size,
        created_at=now,
        rounds=None if second is None else {"first": first, "manifest": dump_manifest(second)},
    )
    with store.database.write() as connection:
        check_tenant(connection, caller.tenant)
        own = select(func.count()).select_from(POOLS).where(POOLS.c.tenant == caller.tenant)
        if connection.execute(own).scalar_one() >= _MOST_POOLS:
            raise QuotaError(f"a tenant must have at most {_MOST_POOLS} pools; delete some", retry_after=None)
        check_bytes(connection, caller.tenant, more=size, limit=max_bytes)
        connection.execute(insert(POOLS).values(vars(pool)))
        record(connection, caller, "pool.create", pool.id)
    return pool


def get_pool(store: Store, pool_id: str, *, tenant: str) -> StoredPool:
    """The pool of an id. Raises `NotFoundError`."""
    with store.database.read() as connection:
        return _find(connection, pool_id, tenant=tenant)


def list_pools(store: Store, cursor: Cursor, *, tenant: str) -> Page[StoredPool]:
    """One page of pools. Raises `NotFoundError` for an unknown cursor."""
    with store.database.read() as connection:
        rows, has_more = read_page(connection, POOLS, cursor, where=POOLS.c.tenant == tenant)
        return Page(tuple(_make_pool(connection, row) for row in rows), has_more)


def make_pool_keys(
    store: Store, pool_id: str, *, count: int, room: int, caller: Caller, now: int
) -> list[tuple[StoredKey, str]]:
    """Return new keys of contributors, the only sight of them there will ever be.

    Args:
        store: Store of the service.
        pool_id: Id of the pool.
        count: Number of keys.
        room: Number of contributions that each may add.
        caller: Caller that owns the pool.
        now: Present Unix time, s.

    Raises:
        NotFoundError: There is no such pool.
        UsageError: It takes no more contributions.
        QuotaError: The tenant has as many keys of contributors as it may have.
    """
    with store.database.write() as connection:
        require_open(find(connection, POOLS, pool_id, tenant=caller.tenant).status)
        return create_pool_keys(connection, pool=pool_id, count=count, room=room, caller=caller, now=now)


def begin_second_round(
    store: Store,
    pool_id: str,
    *,
    center: Callable[[StoredPool, Iterable[str]], Manifest],
    setting: Callable[[Manifest], str],
    caller: Caller,
) -> StoredPool:
    """Turn the contributions of a first round into the manifest of the second, and delete them.

    Nothing is contributed or taken back meanwhile. Keys stay, with as many contributions as each may still add: whoever
    gave to the first round has given.

    Args:
        store: Store of the service.
        pool_id: Id of the pool.
        center: Finds the manifest of the second round from the pool and the records of the first.
        setting: Finds the digest of a manifest, as contributors name it.
        caller: Caller that owns the pool.

    Raises:
        NotFoundError: There is no such pool.
        UsageError: It is closed, has one round, or fewer contributions than its first one needs; or `center` says so.
    """
    with store.database.write() as connection:
        hold_alone(connection, pool_id)
        pool = _find(connection, pool_id, tenant=caller.tenant)
        require_open(pool.status)
        if pool.rounds is None or not pool.is_first_round:
            raise UsageError("the pool must be in the first of two rounds to go on; close it instead")
        if pool.contributions < pool.rounds["first"]:
            raise UsageError(
                f"a first round must have at least {pool.rounds['first']} contributions, got {pool.contributions}; "
                "wait for more, or delete the pool"
            )
        manifest = center(pool, iterate_pages(lambda after: read_contributions(connection, pool_id, after)))
        dumped = dump_manifest(manifest)
        values = {
            "manifest": dumped,
            "setting": setting(manifest),
            "contributions": 0,
            "bytes": len(dump_line(dumped)),
            "rounds": {**pool.rounds, "manifest": None},
        }
        connection.execute(update(POOLS).where(POOLS.c.id == pool_id).values(values))
        for table in (CONTRIBUTIONS, COUNTERS):
            connection.execute(delete(table).where(table.c.pool_id == pool_id))
        record(connection, caller, "pool.advance", pool_id)
        pool = _find(connection, pool_id, tenant=caller.tenant)
    store.database.forget_deleted()
    return pool


def begin_closing(store: Store, pool_id: str, *, caller: Caller, now: int) -> StoredPool:
    """Take nothing more into a pool, which is now read and becomes a file; of one that is closed nothing changes.

    Raises:
        NotFoundError: There is no such pool.
        UsageError: It has fewer contributions than it must have, or is in the first of two rounds.
    """
    with store.database.write() as connection:
        hold_alone(connection, pool_id)
        pool = _find(connection, pool_id, tenant=caller.tenant)
        if pool.is_first_round:
            raise UsageError("a pool in the first of two rounds must go on to the second before it is closed")
        if pool.contributions < pool.least:
            raise UsageError(
                f"a pool must have at least {pool.least} contributions to be closed, got {pool.contributions}; "
                "wait for more, or delete it"
            )
        if pool.status != "open":
            return pool
        _end(connection, pool, status="closing", now=now)
        record(connection, caller, "pool.close", pool_id)
    return replace(pool, status="closing")


def end_closing(store: Store, pool_id: str, *, file_id: str, tenant: str) -> StoredPool:
    """Note the file that a pool became, and delete its rows, which are in the file now. Raises `NotFoundError`.

    The file comes first: what a crash leaves of the rows is never made into another one.
    """
    own = POOLS.c.id == pool_id
    with store.database.write() as connection:
        size = len(dump_line(find(connection, POOLS, pool_id, tenant=tenant).manifest))
        connection.execute(update(POOLS).where(own).values(file_id=file_id, bytes=size))
    delete_contributions(store, pool_id)
    with store.database.write() as connection:
        connection.execute(update(POOLS).where(own).values(status="closed"))
        pool = _find(connection, pool_id, tenant=tenant)
    store.database.forget_deleted()
    return pool


def delete_pool(store: Store, pool_id: str, *, caller: Caller, now: int) -> None:
    """Delete a pool with all contributions and keys; the file that it became stays. Raises `NotFoundError`."""
    with store.database.write() as connection:
        hold_alone(connection, pool_id)
        # Closed, so that what a crash leaves of it neither takes more nor becomes a file.
        _end(connection, _find(connection, pool_id, tenant=caller.tenant), status="closed", now=now)
    delete_contributions(store, pool_id)
    with store.database.write() as connection:
        find(connection, POOLS, pool_id, tenant=caller.tenant)
        connection.execute(delete(POOLS).where(POOLS.c.id == pool_id))
        record(connection, caller, "pool.delete", pool_id)
    store.database.forget_deleted()


def _end(connection: Connection, pool: StoredPool, *, status: Status, now: int) -> None:
    """Let a pool take no more, and count what it has for the last time."""
    values = {"status": status, "contributions": pool.contributions}
    connection.execute(update(POOLS).where(POOLS.c.id == pool.id).values(values))
    connection.execute(delete(COUNTERS).where(COUNTERS.c.pool_id == pool.id))
    revoke_pool_keys(connection, pool.id, now=now)


def _find(connection: Connection, pool_id: str, *, tenant: str) -> StoredPool:
    return _make_pool(connection, find(connection, POOLS, pool_id, tenant=tenant))


def _make_pool(connection: Connection, row: Row[Any]) -> StoredPool:
    """The value of a row, with the contributions that its counters have."""
    counted = select(COUNTERS.c.contributions).where(COUNTERS.c.pool_id == row.id)
    pool = make_value(row, StoredPool)
    return replace(pool, contributions=pool.contributions + sum(connection.execute(counted).scalars()))


def read_pool_manifest(pool: StoredPool) -> Manifest:
    """The manifest that contributions of a pool are privatized by."""
    return parse_manifest(pool.manifest)
