"""Contributions of pools: taken in by many at once, taken back by their receipts, read and deleted page by page.

They are counted in one of several rows, drawn at random, each of which has a part of the pool's room. Where that part
is used up, one writer shares the room that is left out anew, and asks the tenant's quota for more. So on PostgreSQL
contributions wait for no writer and for no row in common, and no bound is passed; on SQLite they wait for each other
and touch no wide row.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Select, delete, func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError

from rapt.errors import LimitError, NotFoundError, QuotaError, UsageError
from rapt.service.storage.callers import Caller
from rapt.service.storage.database import hold_alone
from rapt.service.storage.store import Store
from rapt.service.storage.tables import CONTRIBUTIONS, COUNTERS, KEYS, POOLS
from rapt.service.storage.tenant_rows import check_bytes, read_room

LONGEST_LINE: Final = 65_536  # bytes of a record: 10,000 tokens
# Of a pool: a million codes have 45 MB.
MOST_BYTES: Final = 256 * 2**20
_COUNTERS: Final = 16
# Bytes that the tenant's quota is asked for at once, at least; a pool asks for an eighth of what it has.
_AHEAD: Final = 16_384
_READ_AT_ONCE: Final = 1_000
_DELETED_AT_ONCE: Final = 10_000  # while others wait to write: a tenth of a second


def contribute(
    store: Store, pool_id: str, *, lines: Mapping[str, str], setting: str, caller: Caller, max_bytes: int
) -> None:
    """Take contributions, all or none; one that is there already, under the same receipt, is not taken twice.

    Args:
        store: Store of the service.
        pool_id: Id of the pool.
        lines: Records, checked against the pool's manifest, by the secrets of the contributor that take them back.
        setting: Digest of the manifest that the contributor privatized by.
        caller: Contributor, or a key of the tenant.
        max_bytes: Most bytes of a tenant without a quota of its own.

    Raises:
        NotFoundError: There is no such pool.
        UsageError: The pool takes no more, has another setting, or the receipt was used for another record.
        QuotaError: The key has added as many as it may, or the tenant has too many bytes.
        LimitError: The pool is full, or the record is too long.
    """
    longest = max(map(len, lines.values()))
    if longest > LONGEST_LINE:
        raise LimitError(f"a contribution must have at most {LONGEST_LINE} bytes, got {longest}; shorten the text")
    # In the order of digests, in which others who add the same at this moment wait for each other as well.
    given = dict(sorted((_digest(receipt), line) for receipt, line in lines.items()))

    def add(connection: Connection, pool: Row[Any], spend: Callable[[int, int], None], *, alone: bool) -> None:
        if setting != pool.setting:
            raise UsageError("a contribution must have the setting of the pool; ask for the pool, and privatize by it")
        own, new = CONTRIBUTIONS.c.receipt_digest.in_(given), dict(given)
        for row in connection.execute(select(CONTRIBUTIONS).where(CONTRIBUTIONS.c.pool_id == pool_id, own)):
            if row.line != new.pop(row.receipt_digest):
                raise UsageError("a receipt must be of one contribution; take the first one back, or make another")
        if not new:
            return
        if alone:
            spend(len(new), sum(map(len, new.values())))
        rows = [{"pool_id": pool_id, "receipt_digest": digest, "line": line} for digest, line in new.items()]
        connection.execute(insert(CONTRIBUTIONS), rows)
        if not alone:  # another request may bring the same: it waits above, before it has spent anything
            spend(len(new), sum(map(len, new.values())))

    _change(store, pool_id, add, caller=caller, max_bytes=max_bytes)


def take_back(store: Store, pool_id: str, *, receipt: str, caller: Caller) -> None:
    """Take a contribution out of an open pool.

    Raises:
        NotFoundError: There is no such pool, or no contribution of this receipt in it.
        UsageError: The pool is closed: its file may be in use.
    """
    own = (CONTRIBUTIONS.c.pool_id == pool_id) & (CONTRIBUTIONS.c.receipt_digest == _digest(receipt))

    def remove(connection: Connection, pool: Row[Any], spend: Callable[[int, int], None], *, alone: bool) -> None:
        line = connection.execute(select(CONTRIBUTIONS.c.line).where(own)).scalar()
        # Another request may take it back at the same moment.
        if line is None or connection.execute(delete(CONTRIBUTIONS).where(own)).rowcount != 1:
            raise NotFoundError("no contribution of this receipt is in the pool")
        spend(-1, -len(line))

    _change(store, pool_id, remove, caller=caller, max_bytes=0)
    store.database.forget_deleted()


class _Work(Protocol):
    """Changes contributions, given the pool's row and what spends a number and bytes of the room of key and pool.

    Beside others it locks contributions, a key and a counter, in this order, so that nobody waits in a circle.
    """

    def __call__(
        self, connection: Connection, pool: Row[Any], spend: Callable[[int, int], None], *, alone: bool
    ) -> None: ...


class _NoRoomAtHand(Exception):
    """A counter has too little of the pool's room; all of them together may have enough."""


def _change(store: Store, pool_id: str, work: _Work, *, caller: Caller, max_bytes: int) -> None:
    """Change the contributions of an open pool beside others who do, or alone where that does not go."""
    wanted = (POOLS.c.id, POOLS.c.status, POOLS.c.setting, POOLS.c.most, POOLS.c.bytes)
    row: Select[Any] = select(*wanted).where(POOLS.c.id == pool_id, POOLS.c.tenant == caller.tenant)

    def run(connection: Connection, book: Callable[[Row[Any], int, int], None], *, alone: bool) -> None:
        pool = connection.execute(row).first()
        if pool is None:
            raise NotFoundError("no such object among the pools; list them to see what there is")
        require_open(pool.status)

        def spend(count: int, size: int) -> None:
            _use_room(connection, caller, count=count)
            book(pool, count, size)

        work(connection, pool, spend, alone=alone)

    try:
        with store.database.add_beside(pool_id) as connection:
            run(
                connection,
                lambda pool, count, size: _book(connection, pool.id, count=count, size=size),
                alone=store.database.is_sqlite,
            )
            return
    except (_NoRoomAtHand, IntegrityError):  # or another request has brought the same contribution meanwhile
        pass
    with store.database.write() as connection:
        hold_alone(connection, pool_id)

        def share_out(pool: Row[Any], count: int, size: int) -> None:
            _share_out(connection, pool, tenant=caller.tenant, count=count, size=size, max_bytes=max_bytes)

        run(connection, share_out, alone=True)


def _book(connection: Connection, pool_id: str, *, count: int, size: int) -> None:
    """Count contributions in one of the counters. Raises `_NoRoomAtHand`."""
    own = (COUNTERS.c.pool_id == pool_id) & (COUNTERS.c.number == secrets.randbelow(_COUNTERS))
    booked = connection.execute(
        update(COUNTERS)
        .where(own, COUNTERS.c.room >= count, COUNTERS.c.bytes_room >= size)
        .values(
            contributions=COUNTERS.c.contributions + count,
            bytes=COUNTERS.c.bytes + size,
            room=COUNTERS.c.room - count,
            bytes_room=COUNTERS.c.bytes_room - size,
        )
    )
    if booked.rowcount != 1:
        raise _NoRoomAtHand


def _share_out(connection: Connection, pool: Row[Any], *, tenant: str, count: int, size: int, max_bytes: int) -> None:
    """Count contributions, and give each counter an even part of the room that is left; for whoever holds the pool.

    Raises:
        LimitError: The pool is full.
        QuotaError: The tenant has too many bytes.
    """
    own = COUNTERS.c.pool_id == pool.id
    columns = (COUNTERS.c.contributions, COUNTERS.c.bytes, COUNTERS.c.bytes_room)
    sums = connection.execute(select(*(func.coalesce(func.sum(column), 0) for column in columns)).where(own)).one()
    taken, taken_bytes, bytes_room = map(int, sums)
    granted = int(pool.bytes)
    if granted - bytes_room + size > MOST_BYTES:
        raise LimitError(f"a pool must have at most {MOST_BYTES} bytes, and has them; open another")
    if taken + count > pool.most:
        raise LimitError(f"a pool must have at most {pool.most} contributions, and has them; thank you")
    if size > bytes_room:
        check_bytes(connection, tenant, more=size - bytes_room, limit=max_bytes)
        left = min(read_room(connection, tenant, limit=max_bytes), MOST_BYTES - granted)
        more = min(left, size - bytes_room + max(_AHEAD, taken_bytes // 8))
        bytes_room += more
        connection.execute(update(POOLS).where(POOLS.c.id == pool.id).values(bytes=granted + more))
    connection.execute(delete(COUNTERS).where(own))
    rooms, byte_rooms = (_split(whole) for whole in (pool.most - taken - count, bytes_room - size))
    totals = [(taken + count, taken_bytes + size), *[(0, 0)] * (_COUNTERS - 1)]
    rows = [
        {"pool_id": pool.id, "number": number, "contributions": each, "bytes": each_bytes, "room": a, "bytes_room": b}
        for number, ((each, each_bytes), a, b) in enumerate(zip(totals, rooms, byte_rooms, strict=True))
    ]
    connection.execute(insert(COUNTERS), rows)


def _split(whole: int) -> list[int]:
    each, rest = divmod(whole, _COUNTERS)
    return [each + (number < rest) for number in range(_COUNTERS)]


def iterate_lines(store: Store, pool_id: str) -> Iterator[str]:
    """Yield the records of a pool that takes no more, in the order of the digests of their receipts."""

    def read(after: str) -> list[Row[Any]]:
        with store.database.read() as connection:  # for each page, so that nothing waits for a slow reader
            return read_contributions(connection, pool_id, after)

    return iterate_pages(read)


def read_contributions(connection: Connection, pool_id: str, after: str) -> list[Row[Any]]:
    """Read one page of contributions, digests of receipts and records, behind that of a digest."""
    page = select(CONTRIBUTIONS.c.receipt_digest, CONTRIBUTIONS.c.line).where(
        CONTRIBUTIONS.c.pool_id == pool_id, CONTRIBUTIONS.c.receipt_digest > after
    )
    return list(connection.execute(page.order_by(CONTRIBUTIONS.c.receipt_digest).limit(_READ_AT_ONCE)))


def iterate_pages(read: Callable[[str], list[Row[Any]]]) -> Iterator[str]:
    """Yield the records of one page after the other; `read` gives the page behind a digest."""
    after = ""
    while rows := read(after):
        yield from (row.line for row in rows)
        after = rows[-1].receipt_digest


def delete_contributions(store: Store, pool_id: str) -> None:
    """Delete the contributions of a pool that takes no more, some at a time: others write meanwhile."""
    own, digest = CONTRIBUTIONS.c.pool_id == pool_id, CONTRIBUTIONS.c.receipt_digest
    after: str | None = ""
    while after is not None:
        due = own & (digest > after)
        with store.database.write() as connection:
            page = select(digest).where(due).order_by(digest).offset(_DELETED_AT_ONCE - 1).limit(1)
            after = connection.execute(page).scalar()
            connection.execute(delete(CONTRIBUTIONS).where(due if after is None else due & (digest <= after)))


def require_open(status: str) -> None:
    """Refuse to change a pool that is closed (`UsageError`)."""
    if status != "open":
        raise UsageError("the pool must be open, and is closed; ask who opened it for another")


def _use_room(connection: Connection, caller: Caller, *, count: int) -> None:
    """Count what a contributor's key adds or takes back: all that is known of it is how many more it may add."""
    if caller.role != "contributor":
        return
    taken = connection.execute(
        update(KEYS).where(KEYS.c.id == caller.key, KEYS.c.room >= count).values(room=KEYS.c.room - count)
    )
    if taken.rowcount != 1:
        raise QuotaError("the key has added as many contributions as it may; ask for another", retry_after=None)


def _digest(receipt: str) -> str:
    return hashlib.sha256(receipt.encode()).hexdigest()
