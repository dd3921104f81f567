"""Buckets of tokens that all serving processes share, on PostgreSQL: one statement takes, or leaves all as it is."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from rapt.service.storage.store import Store
from rapt.service.storage.tables import BUCKETS
from rapt.service.storage.worker_rows import read_clock


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
        insert(BUCKETS)
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
