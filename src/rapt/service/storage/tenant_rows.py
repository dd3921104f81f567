"""Tenants: their quotas, their usage, tokens a minute that machines share, and the deletion of all that they own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, delete, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from rapt.errors import NotFoundError, QuotaError, UsageError
from rapt.service.storage.callers import LOCAL, OPERATOR, Caller, check_tenant_name, record
from rapt.service.storage.database import Cursor, Page, hold_alone, read_page
from rapt.service.storage.store import Store, discard_run_states, release
from rapt.service.storage.tables import (
    BUCKETS,
    COUNTERS,
    FILES,
    JOBS,
    KEYS,
    MODELS,
    PARTS,
    POOLS,
    REQUESTS,
    RUN_STATES,
    TENANTS,
    UPLOADS,
)
from rapt.service.storage.worker_rows import read_clock

# States in which a job takes room in the queue.
ACTIVE: Final = ("queued", "running", "paused")
# Jobs that left nothing, or nothing that is still there.
ENDED_FOR_NOTHING: Final = JOBS.c.status.not_in(ACTIVE) & ~exists().where(MODELS.c.job_id == JOBS.c.id)
MOST_PENDING_UPLOADS: Final = 1000
# Where the settings say nothing else. Small ones are bounded by their number: a row and a file take more than a byte.
MOST_FILES: Final = 100_000
MOST_MODELS: Final = 100_000
# Rows of a tenant that tell of the past alone; `tidying` forgets most of them, and makes room within a minute or two.
MOST_PAST_ROWS: Final = 10_000
_UNTIL_TIDIED: Final = 60.0  # s


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """Quotas of a tenant; None where the service's own setting holds.

    Attributes:
        max_bytes: Most bytes of its files, parts of uploads, models, checkpoints and run states.
        max_jobs: Most jobs that have not ended.
        tokens_per_minute: Most tokens of its predictions a minute.
    """

    max_bytes: int | None = None
    max_jobs: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, kw_only=True)
class StoredTenant:
    """A tenant as it is stored.

    Attributes:
        name: Unique name, never changed: it stands in the names of its models.
        created_at: Time of creation, Unix time, s.
        quotas: Quotas that it has of its own.
    """

    name: str
    created_at: int
    quotas: Quotas


@dataclass(frozen=True, kw_only=True)
class TenantUsage:
    """Amounts that a tenant has now."""

    bytes: int
    jobs: int
    files: int
    models: int


@dataclass(frozen=True, kw_only=True)
class Removed:
    """Names of what a deleted tenant had outside the database. Others may have the same blobs."""

    blobs: tuple[str, ...]
    adapters: tuple[str, ...]
    run_states: tuple[str, ...]
    parts: tuple[str, ...]


def create_tenant(store: Store, name: str, *, quotas: Quotas, caller: Caller, now: int) -> StoredTenant:
    """Create a tenant. Raises `UsageError` for a name that is taken, or that cannot be one."""
    check_tenant_name(name)
    tenant = StoredTenant(name=name, created_at=now, quotas=quotas)
    with store.database.write() as connection:
        if connection.execute(select(TENANTS.c.number).where(TENANTS.c.name == name)).first() is not None:
            raise UsageError("a tenant's name must be new; this one is taken")
        connection.execute(insert(TENANTS).values(name=name, created_at=now, **vars(quotas)))
        record(connection, caller, "tenant.create", name)
    return tenant


def ensure_tenant(store: Store, name: str, *, now: int) -> None:
    """Create the tenant of a service without keys, if it is not there."""
    with store.database.write() as connection:
        if connection.execute(select(TENANTS.c.number).where(TENANTS.c.name == name)).first() is None:
            connection.execute(insert(TENANTS).values(name=name, created_at=now))


def get_tenant(store: Store, name: str) -> StoredTenant:
    """Return the tenant of a name. Raises `NotFoundError`."""

    def look_up() -> StoredTenant:
        with store.database.read() as connection:
            return _read_row(_find(connection, name))

    return store.database.remembered.ask(("tenant", name), look_up, scope=lambda _: f"tenants {name}")


def list_tenants(store: Store, cursor: Cursor) -> Page[StoredTenant]:
    """Return one page of tenants; the cursor is a name. Raises `NotFoundError` for an unknown one."""
    with store.database.read() as connection:
        rows, has_more = read_page(connection, TENANTS, cursor)
    return Page(tuple(_read_row(row) for row in rows), has_more)


def set_quotas(store: Store, name: str, quotas: Quotas, *, caller: Caller) -> StoredTenant:
    """Replace the quotas of a tenant. Raises `NotFoundError`."""
    with store.database.write() as connection:
        _find(connection, name)
        connection.execute(update(TENANTS).where(TENANTS.c.name == name).values(vars(quotas)))
        record(connection, caller, "tenant.quotas", name)
        return _read_row(_find(connection, name))


def check_tenant(connection: Connection, name: str) -> None:
    """Refuse to make something for a tenant that was deleted meanwhile. Raises `NotFoundError`."""
    _find(connection, name)


def get_usage(store: Store, name: str) -> TenantUsage:
    """Return what a tenant has now; of one that is not there, nothing."""
    with store.database.read() as connection:
        pools = select(COUNTERS.c.bytes_room).join(POOLS, POOLS.c.id == COUNTERS.c.pool_id)
        set_aside = pools.where(POOLS.c.tenant == name)  # for contributions that have not come
        return TenantUsage(
            bytes=bytes_of(connection, name) - sum(connection.execute(set_aside).scalars()),
            jobs=count_jobs(connection, name),
            files=_count(connection, FILES, name),
            models=_count(connection, MODELS, name, and_=MODELS.c.step.is_(None)),
        )


def check_bytes(connection: Connection, tenant: str, *, more: int, limit: int) -> None:
    """Refuse bytes beyond a tenant's quota, in the transaction that would add them. Raises `QuotaError`."""
    if more > read_room(connection, tenant, limit=limit):
        most = _bound_bytes(connection, tenant, limit=limit)
        raise QuotaError(
            f"a tenant must have at most {most} bytes of files and models; delete some, or ask the provider",
            retry_after=None,
        )


def count_room(store: Store, tenant: str, *, limit: int) -> int:
    """Bytes that a tenant may store beside what it has; negative if it has too many. `limit` is as in `check_bytes`."""
    with store.database.read() as connection:
        return read_room(connection, tenant, limit=limit)


def read_room(connection: Connection, tenant: str, *, limit: int) -> int:
    """Bytes that a tenant may store, as `count_room`, in a transaction."""
    return _bound_bytes(connection, tenant, limit=limit) - bytes_of(connection, tenant)


def check_files(connection: Connection, tenant: str, *, limit: int) -> None:
    """Refuse one more file than a tenant may have, in the transaction that would add it. Raises `QuotaError`."""
    _check_count(connection, FILES, tenant, limit=limit)


def check_models(connection: Connection, tenant: str, *, limit: int) -> None:
    """Refuse a model, or a job that would leave one, as `check_files`."""
    _check_count(connection, MODELS, tenant, limit=limit)


def check_jobs(connection: Connection, tenant: str, *, limit: int) -> None:
    """Refuse a job beyond a tenant's quota, in the transaction that would queue it. Raises `QuotaError`.

    Jobs that were cancelled leave rows, which count on their own.
    """
    _check_past(connection, JOBS, (JOBS.c.tenant == tenant) & ENDED_FOR_NOTHING)
    most = connection.execute(select(TENANTS.c.max_jobs).where(TENANTS.c.name == tenant)).scalar()
    most = limit if most is None else most
    if count_jobs(connection, tenant) >= most:
        raise QuotaError(
            f"a tenant must have at most {most} jobs that have not ended; wait for one to end", retry_after=30.0
        )


def check_uploads(connection: Connection, tenant: str) -> None:
    """Refuse an upload beyond those that a tenant may have begun, where it would be. Raises `QuotaError`."""
    own = UPLOADS.c.tenant == tenant
    pending = select(func.count()).where(own, UPLOADS.c.status == "pending")
    if connection.execute(pending).scalar_one() >= MOST_PENDING_UPLOADS:
        raise QuotaError(
            f"a tenant must have at most {MOST_PENDING_UPLOADS} uploads that are pending; complete or cancel some",
            retry_after=None,
        )
    _check_past(connection, UPLOADS, own & (UPLOADS.c.status != "pending"))


def check_parts(connection: Connection, tenant: str, *, most: int) -> None:
    """Refuse a part beyond those that a tenant's pending uploads may have together. Raises `QuotaError`."""
    own = select(func.count()).select_from(PARTS.join(UPLOADS, UPLOADS.c.id == PARTS.c.upload_id))
    if connection.execute(own.where(UPLOADS.c.tenant == tenant)).scalar_one() >= most:
        raise QuotaError(
            f"a tenant must have at most {most} parts of uploads that are pending; complete or cancel some, and send "
            "larger parts",
            retry_after=None,
        )


def delete_tenant(store: Store, name: str, *, caller: Caller, now: int) -> Removed:
    """Delete a tenant and everything it has: keys, jobs with their states, models, files, uploads.

    A job that runs at this moment finds its row gone at its next step, and keeps nothing.

    Returns:
        What it had; it is gone from the disk, and a cache in memory has to forget it.

    Raises:
        NotFoundError: There is no such tenant.
        UsageError: It is the caller's own, or the one that a running service cannot be without. Whoever has the data
            directory may delete both, because the next start makes the latter again.
    """
    if caller != OPERATOR and name in (LOCAL, caller.tenant):
        raise UsageError(
            f"the tenant to delete must be neither {LOCAL!r} nor the one of the key that asks; stop the service and "
            "use `rapt admin delete-tenant`"
        )
    with store.database.write() as connection:
        _find(connection, name)
        removed = _delete_rows(connection, name, now=now)
        record(connection, caller, "tenant.delete", name)
    store.database.forget_deleted()
    discard_run_states(store, removed.run_states)
    for part in removed.parts:
        store.directory.remove_part(part)
    release(store, removed.blobs)
    return removed


def bytes_of(connection: Connection, tenant: str) -> int:
    """Bytes of a tenant's files, parts and models, of what its pools may take, and of what its jobs can go on from."""
    files = select(func.coalesce(func.sum(FILES.c.bytes), 0)).where(FILES.c.tenant == tenant)
    parts = (
        select(func.coalesce(func.sum(PARTS.c.bytes), 0))
        .join(UPLOADS, UPLOADS.c.id == PARTS.c.upload_id)
        .where(UPLOADS.c.tenant == tenant)
    )
    models = select(func.coalesce(func.sum(MODELS.c.bytes), 0)).where(MODELS.c.tenant == tenant)
    states = (
        select(func.coalesce(func.sum(RUN_STATES.c.bytes), 0))
        .join(JOBS, JOBS.c.id == RUN_STATES.c.job_id)
        .where(JOBS.c.tenant == tenant)
    )
    pools = select(func.coalesce(func.sum(POOLS.c.bytes), 0)).where(POOLS.c.tenant == tenant)
    return sum(int(connection.execute(query).scalar_one()) for query in (files, parts, models, states, pools))


def count_jobs(connection: Connection, tenant: str) -> int:
    """Number of a tenant's jobs that have not ended."""
    active = select(func.count()).where(JOBS.c.tenant == tenant, JOBS.c.status.in_(ACTIVE))
    return connection.execute(active).scalar_one()


def _bound_bytes(connection: Connection, tenant: str, *, limit: int) -> int:
    own = connection.execute(select(TENANTS.c.max_bytes).where(TENANTS.c.name == tenant)).scalar()
    return limit if own is None else own


def _check_count(connection: Connection, table: Table, tenant: str, *, limit: int) -> None:
    if _count(connection, table, tenant) >= limit:
        raise QuotaError(
            f"a tenant must have at most {limit} {table.name}, however small; delete some, or ask the provider",
            retry_after=None,
        )


def _check_past(connection: Connection, table: Table, where: ColumnElement[bool]) -> None:
    if connection.execute(select(func.count()).select_from(table).where(where)).scalar_one() >= MOST_PAST_ROWS:
        raise QuotaError(
            f"a tenant must have at most {MOST_PAST_ROWS} {table.name} that have ended; wait until they are forgotten",
            retry_after=_UNTIL_TIDIED,
        )


def _delete_rows(connection: Connection, name: str, *, now: int) -> Removed:
    own_jobs = select(JOBS.c.id).where(JOBS.c.tenant == name)
    own_uploads = select(UPLOADS.c.id).where(UPLOADS.c.tenant == name)
    held = select(RUN_STATES.c.folder).where(RUN_STATES.c.job_id.in_(own_jobs))

    def all_of(query: Select[Any]) -> tuple[str, ...]:
        return tuple(str(row[0]) for row in connection.execute(query))

    for pool in all_of(select(POOLS.c.id).where(POOLS.c.tenant == name)):
        hold_alone(connection, pool)
    removed = Removed(
        blobs=tuple(digest for table in (FILES, MODELS) for digest in all_of(_select_digests(table, name))),
        adapters=all_of(select(MODELS.c.adapter).where(MODELS.c.tenant == name)),
        run_states=all_of(held),
        parts=all_of(select(PARTS.c.id).where(PARTS.c.upload_id.in_(own_uploads))),
    )
    # Events, run states, parts and contributions go with their owners.
    for table in (MODELS, JOBS, FILES, UPLOADS, REQUESTS, POOLS):
        connection.execute(delete(table).where(table.c.tenant == name))
    connection.execute(
        update(KEYS)
        .where(KEYS.c.tenant == name)
        # The rows stay, so that deleting the last tenant does not open the service; the keys fit nothing any more.
        .values(revoked_at=func.coalesce(KEYS.c.revoked_at, now), digest="deleted " + KEYS.c.id)
    )
    connection.execute(delete(TENANTS).where(TENANTS.c.name == name))
    return removed


def _select_digests(table: Any, tenant: str) -> Select[Any]:
    return select(table.c.sha256).where(table.c.tenant == tenant)


def _count(connection: Connection, table: Any, tenant: str, *, and_: ColumnElement[bool] | None = None) -> int:
    within = table.c.tenant == tenant if and_ is None else (table.c.tenant == tenant) & and_
    return int(connection.execute(select(func.count()).select_from(table).where(within)).scalar_one())


def _find(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(select(TENANTS).where(TENANTS.c.name == name)).first()
    if row is None:
        raise NotFoundError("there is no such tenant; list them, or create it first")
    return row


def _read_row(row: Row[Any]) -> StoredTenant:
    return StoredTenant(
        name=row.name,
        created_at=row.created_at,
        quotas=Quotas(max_bytes=row.max_bytes, max_jobs=row.max_jobs, tokens_per_minute=row.tokens_per_minute),
    )


def spend_tokens(store: Store, tenant: str, count: int, *, limit: int, given_back: int = 0) -> float | None:
    """Take tokens from a tenant's bucket, which fills by `limit` in a minute and holds as many.

    Args:
        store: Store of the service, on PostgreSQL.
        tenant: Name of the tenant.
        count: Number of tokens, at most `limit`.
        limit: Tokens a minute.
        given_back: Tokens that were taken before and not used.

    Returns:
        None; or how many are missing, and then none were taken.
    """
    now = read_clock()
    filled = func.least(limit, BUCKETS.c.level + given_back + (limit / 60.0) * (now - BUCKETS.c.at))
    take = (
        insert_or_update(BUCKETS)
        .values(tenant=tenant, level=limit - count, at=now)
        .on_conflict_do_update(
            index_elements=["tenant"], set_={"level": filled - count, "at": now}, where=filled >= count
        )
        .returning(BUCKETS.c.level)
    )
    with store.database.change_alone() as connection:
        if connection.execute(take).first() is not None:
            return None
        level = connection.execute(select(filled).where(BUCKETS.c.tenant == tenant)).scalar()
        return max(0.0, count - float(count if level is None else level))
