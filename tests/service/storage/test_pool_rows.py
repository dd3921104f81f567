"""Pools in the store: many give at once, no bound is passed, nothing is lost between closing and the file."""

import secrets
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from code_material import codes_manifest
from rapt.errors import LimitError, NotFoundError, QuotaError, RaptError, UsageError
from rapt.service.storage import contribution_rows
from rapt.service.storage.callers import OPERATOR, Caller
from rapt.service.storage.contribution_rows import contribute, iterate_lines, take_back
from rapt.service.storage.database import Cursor
from rapt.service.storage.pool_rows import (
    begin_closing,
    begin_second_round,
    delete_pool,
    end_closing,
    get_pool,
    list_pools,
    make_pool_keys,
    open_pool,
)
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tables import CONTRIBUTIONS, COUNTERS, KEYS, POOLS
from rapt.service.storage.tenant_rows import bytes_of, delete_tenant, get_usage
from stored_material import tenant

PLENTY = 10**9
LINE = '{"token_ids":[1],"label":0}\n'


def opened(store, caller, *, most=1000, least=2, **rounds):
    given = {"setting": "aa", "least": least, "most": most, "caller": caller, "now": 1, "max_bytes": PLENTY}
    return open_pool(store, codes_manifest(), **given, **rounds)


def give(store, pool, caller, count=1, *, receipts=None, max_bytes=PLENTY):
    lines = {one: LINE for one in receipts or (secrets.token_hex(12) for _ in range(count))}
    contribute(store, pool.id, lines=lines, setting="aa", caller=caller, max_bytes=max_bytes)
    return len(lines)


def count(store, pool):
    """The contributions that a pool says it has, which must be those that it has."""
    with store.database.read() as connection:
        rows = select(func.count()).select_from(CONTRIBUTIONS).where(CONTRIBUTIONS.c.pool_id == pool.id)
        there = connection.execute(rows).scalar_one()
    assert get_pool(store, pool.id, tenant=pool.tenant).contributions == there
    return there


def at_once(*works):
    """What functions return that begin at the same moment, or their errors."""
    start = threading.Barrier(len(works))

    def run(work):
        start.wait()
        try:
            return work()
        except RaptError as error:
            return error

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(run, works))


def test_a_pool_takes_as_many_as_it_may_and_no_more_however_many_give_at_once(store, ada):
    pool = opened(store, ada, most=60)

    def many(each):
        taken = 0
        for _ in range(12):
            try:
                taken += give(store, pool, ada, each)
            except LimitError:
                pass
        return taken

    taken = sum(at_once(*(lambda each=each: many(each) for each in (1, 2, 3, 5))))
    assert count(store, pool) == taken > 55  # what is left is less than the largest request
    while taken < 60:
        taken += give(store, pool, ada)
    with pytest.raises(LimitError, match="at most 60 contributions"):
        give(store, pool, ada)
    assert count(store, pool) == 60


def test_a_contribution_that_comes_from_many_at_once_is_one_and_is_taken_back_once(store, ada):
    pool = opened(store, ada)
    key = make_pool_keys(store, pool.id, count=1, room=4, caller=ada, now=1)[0][0]
    giver = Caller(tenant="ada", key=key.id, role="contributor", pool=pool.id)
    receipts = [secrets.token_hex(12) for _ in range(3)]
    for turn in range(2):
        orders = (receipts, receipts[::-1], receipts[turn:] + receipts[:turn])
        assert at_once(*(lambda one=one: give(store, pool, giver, receipts=one) for one in orders)) == [3, 3, 3]
        assert count(store, pool) == 3
        for receipt in receipts:
            found = at_once(*[lambda one=receipt: take_back(store, pool.id, receipt=one, caller=giver)] * 3)
            assert sum(isinstance(one, NotFoundError) for one in found) == 2, found
        assert count(store, pool) == 0
    with store.database.read() as connection:
        assert connection.execute(select(KEYS.c.room).where(KEYS.c.id == key.id)).scalar_one() == 4


def test_the_quota_of_a_tenant_is_used_to_the_last_contribution_and_never_passed(store):
    caller = tenant(store, "eve", max_bytes=20_000)
    pool = opened(store, caller)
    empty, taken = get_usage(store, "eve").bytes, 0

    def many():
        found = 0
        while True:
            try:
                found += give(store, pool, caller, 20)
            except QuotaError:
                return found

    taken = sum(at_once(many, many, many))
    with store.database.read() as connection:
        assert bytes_of(connection, "eve") <= 20_000
    assert get_usage(store, "eve").bytes == empty + taken * len(LINE)
    assert 20_000 - empty - taken * len(LINE) < 20 * len(LINE)
    # What is set aside counts until the pool is closed, and not after.
    begin_closing(store, pool.id, caller=caller, now=2)
    end_closing(store, pool.id, file_id="file-1", tenant="eve")
    assert get_usage(store, "eve").bytes == empty


def test_a_pool_that_is_closed_is_read_and_emptied_page_by_page_and_ends_once(store, ada, monkeypatch):
    monkeypatch.setattr(contribution_rows, "_READ_AT_ONCE", 3)
    monkeypatch.setattr(contribution_rows, "_DELETED_AT_ONCE", 2)
    pool, other = opened(store, ada), opened(store, ada)
    give(store, pool, ada, 7)
    give(store, other, ada, 2)
    closing = begin_closing(store, pool.id, caller=ada, now=2)
    assert (closing.status, closing.contributions) == ("closing", 7)
    assert list(iterate_lines(store, pool.id)) == [LINE] * 7
    with pytest.raises(RaptError, match="is closed"):
        give(store, pool, ada)
    # A crash after the file was noted: the next one to ask learns of it, and makes no other of the rest.
    with store.database.write() as connection:
        connection.execute(update(POOLS).where(POOLS.c.id == pool.id).values(file_id="file-1"))
    assert begin_closing(store, pool.id, caller=ada, now=3).file_id == "file-1"
    closed = end_closing(store, pool.id, file_id="file-1", tenant="ada")
    assert (closed.status, closed.contributions, list(iterate_lines(store, pool.id))) == ("closed", 7, [])
    assert count(store, other) == 2
    assert [one.contributions for one in list_pools(store, Cursor(), tenant="ada").items] == [2, 7]


def test_a_second_round_begins_once_after_all_of_the_first_are_in_and_with_none_of_them(store, ada, monkeypatch):
    monkeypatch.setattr(contribution_rows, "_READ_AT_ONCE", 3)
    pool = opened(store, ada, second=codes_manifest(), first=10)
    seen = []

    def advance():
        def center(_pool, lines):
            seen.append(len(list(lines)))
            return codes_manifest()

        return begin_second_round(store, pool.id, center=center, setting=lambda manifest: "bb", caller=ada)

    give(store, pool, ada, 9)
    with pytest.raises(UsageError, match="at least 10 contributions, got 9"):
        advance()
    give(store, pool, ada)

    def many():
        for taken in range(200):
            try:
                give(store, pool, ada)
            except UsageError:  # of the setting of the first round, which has ended
                return taken
        return 200

    *taken, first, second = at_once(many, many, advance, advance)
    assert sorted(isinstance(one, UsageError) for one in (first, second)) == [False, True]
    assert seen == [10 + sum(taken)]
    found = get_pool(store, pool.id, tenant="ada")
    assert (count(store, found), found.setting, found.is_first_round, found.status) == (0, "bb", False, "open")
    with pytest.raises(UsageError, match="must have the setting of the pool"):
        give(store, pool, ada)


def test_a_pool_or_a_tenant_that_is_deleted_leaves_nothing(store, ada):
    pool, other = opened(store, ada), opened(store, ada)
    for one in (pool, other):
        give(store, one, ada, 3)
    delete_pool(store, pool.id, caller=ada, now=2)
    with pytest.raises(NotFoundError):
        give(store, pool, ada)
    assert count(store, other) == 3
    delete_tenant(store, "ada", caller=OPERATOR, now=3)
    with store.database.read() as connection:
        for table in (POOLS, CONTRIBUTIONS, COUNTERS):
            assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0


def test_contributions_of_an_earlier_version_are_counted_on(tmp_path):
    with open_store(tmp_path) as store:
        ada = tenant(store, "ada")
        pool, closed = opened(store, ada, most=5), opened(store, ada)
        for one in (pool, closed):
            give(store, one, ada, 3)
        begin_closing(store, closed.id, caller=ada, now=2)
        end_closing(store, closed.id, file_id="file-1", tenant="ada")
    with sqlite3.connect(tmp_path / "rapt.sqlite3") as connection:
        connection.execute("UPDATE pools SET contributions = 3")
        connection.execute("UPDATE pools SET bytes = ? WHERE id = ?", (pool.bytes + 3 * len(LINE), pool.id))
        connection.execute("DROP TABLE pool_counters")
        connection.execute("UPDATE alembic_version SET version_num = '0.4.0.rounds'")
    connection.close()
    with open_store(tmp_path) as store:
        assert get_pool(store, closed.id, tenant="ada").contributions == count(store, pool) == 3
        give(store, pool, ada, 2)
        assert count(store, pool) == 5
        with pytest.raises(LimitError):
            give(store, pool, ada)
