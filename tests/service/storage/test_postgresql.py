"""The tests of the store once more, on PostgreSQL: what holds on SQLite holds there. Run with `make test-postgres`."""

import inspect
import os
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import test_job_runs
import test_named_blobs
import test_pool_rows
import test_store
import test_tenants
import test_tidying
import torch
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, update

import stored_material
from blob_stores import object_store
from own_postgresql import own_postgresql
from rapt.errors import QuotaError
from rapt.service.http.quotas import TokenQuotas
from rapt.service.jobs.run_states import RunStates
from rapt.service.storage.database import Database, database_url
from rapt.service.storage.job_runs import fail_job, is_still_mine
from rapt.service.storage.pool_rows import begin_closing
from rapt.service.storage.recovery import join_store, open_store, requeue_abandoned_jobs
from rapt.service.storage.store import release
from rapt.service.storage.tables import METADATA, WORKERS
from rapt.service.storage.worker_rows import BELIEVED, list_models_of_living, live_as_worker
from rapt.service.tuning.run_state import RunIdentity, RunState
from running_service import wait_until

pytestmark = pytest.mark.skipif(
    "RAPT_TEST_POSTGRESQL" not in os.environ, reason="needs a PostgreSQL server; run make test-postgres"
)
# What is about SQLite's file.
_OF_SQLITE = {
    "test_a_key_is_shown_once_and_only_its_digest_is_stored",
    "test_a_reader_goes_on_while_a_writer_holds_the_lock",
}


@pytest.fixture(scope="session")
def server():
    with own_postgresql() as running:
        yield running


@pytest.fixture
def url(server):
    """An empty database."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return server.url


@pytest.fixture
def machines(url, tmp_path):
    """Two stores of one service, on disks of their own."""
    with (
        object_store("memory://") as blobs,
        open_store(tmp_path / "one", url=url, blobs=blobs) as one,
        join_store(tmp_path / "two", url=url, blobs=blobs) as two,
    ):
        yield one, two


@pytest.fixture
def store(url, tmp_path):
    with open_store(tmp_path / "data", url=url) as opened:
        yield opened


def _shared():
    for module in (
        test_job_runs,
        test_named_blobs,
        test_pool_rows,
        test_store,
        test_tenants,
        test_tidying,
    ):
        for name, function in vars(module).items():
            if name.startswith("test_") and callable(function) and name not in _OF_SQLITE:
                wanted = inspect.signature(function).parameters
                if "store" in wanted and "tmp_path" not in wanted:
                    yield f"{name}_on_postgresql", function


globals().update(_shared())


def test_the_migrations_make_the_tables_that_the_code_knows(store):
    with store.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_numbers_become_visible_in_order_however_many_write(store, url):
    other = Database(database_url(url, file=store.directory.database))
    caller = stored_material.tenant(store, "ada")
    file = stored_material.upload(store, caller)
    seen = []

    def write(_):
        job = stored_material.queue(store, caller, file, max_jobs=1000)
        with other.read() as connection:
            seen.append([row[0] for row in connection.exec_driver_sql("SELECT number FROM jobs ORDER BY number")])
        return job.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(write, range(40)))) == 40
    other.close()
    # Without gaps: whoever has seen a number has seen all the lower ones.
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seen)


def test_contributions_wait_for_no_writer_and_a_pool_is_closed_when_all_are_in(store):
    caller = stored_material.tenant(store, "ada")
    pool = test_pool_rows.opened(store, caller)
    test_pool_rows.give(store, pool, caller)  # shares the room out, by the writer
    with ThreadPoolExecutor(2) as threads:
        with store.database.write():
            assert threads.submit(test_pool_rows.give, store, pool, caller).result(20) == 1
        with store.database.add_beside(pool.id):
            closing = threads.submit(begin_closing, store, pool.id, caller=caller, now=2)
            with pytest.raises(TimeoutError):
                closing.result(0.5)
        assert closing.result(20).contributions == 2


def test_jobs_are_claimed_once_by_many_workers(store):
    caller = stored_material.tenant(store, "ada")
    file = stored_material.upload(store, caller)
    jobs = [stored_material.queue(store, caller, file).id for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        claimed = list(pool.map(lambda number: stored_material.claim(store, f"worker-{number}"), range(14)))
    assert sorted(job.id for job in claimed if job) == sorted(jobs)


def test_a_worker_on_another_disk_keeps_its_job_while_it_says_that_it_lives(machines):
    here, there = machines
    caller = stored_material.tenant(here, "ada")
    stored_material.queue(here, caller, stored_material.upload(here, caller))
    with live_as_worker(there, models=["toy"]) as name:
        job = stored_material.claim(there, name)
        assert list_models_of_living(here) == {"toy"}
        assert requeue_abandoned_jobs(here) == 0
        with here.database.write() as connection:  # as after a minute without a word
            connection.execute(update(WORKERS).values(seen_at=WORKERS.c.seen_at - BELIEVED - 1))
        assert requeue_abandoned_jobs(here) == 1
        assert not is_still_mine(there, job)
    assert list_models_of_living(here) == set()


def test_a_worker_that_the_others_forgot_meanwhile_is_believed_again(machines, monkeypatch):
    here, there = machines
    monkeypatch.setattr("rapt.service.storage.worker_rows._BETWEEN_WORDS", 0.05)
    with live_as_worker(there, models=["toy"]):
        with here.database.write() as connection:  # as after a day without a word
            connection.execute(delete(WORKERS))
        wait_until(lambda: list_models_of_living(here) == {"toy"})


def test_a_worker_that_died_on_this_disk_is_known_at_once_whatever_it_said_before(machines):
    here, _ = machines
    caller = stored_material.tenant(here, "ada")
    stored_material.queue(here, caller, stored_material.upload(here, caller))
    with live_as_worker(here) as name:
        stored_material.claim(here, name)
        (here.directory.workers / name).unlink()  # the system lets go of the lock of one that is killed
        assert requeue_abandoned_jobs(here) == 1


def test_the_tokens_of_a_minute_are_one_bucket_for_all_serving_processes(machines):
    stored_material.tenant(machines[0], "ada")
    one, two = (TokenQuotas(store, default=1_000_000) for store in machines)
    one.spend_tokens("ada", 700_000)
    with pytest.raises(QuotaError, match="at most 1000000 tokens of predictions a minute") as caught:
        two.spend_tokens("ada", 700_000)
    assert 0 < caught.value.retry_after < 24.1
    two.give_back("ada", 600_000)  # not used after all: it may be spent by this process at once, and then by all
    two.spend_tokens("ada", 700_000)
    with pytest.raises(QuotaError):
        one.spend_tokens("ada", 900_000)


def test_tokens_are_never_spent_twice_by_processes_that_ask_at_once(machines):
    stored_material.tenant(machines[0], "ada")
    quotas = [TokenQuotas(store, default=6_000) for store in machines]

    def spend(number):
        try:
            quotas[number % 2].spend_tokens("ada", 1_000)
        except QuotaError:
            return False
        return True

    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        taken = sum(pool.map(spend, range(30)))
    assert 6 <= taken <= 6 + (time.monotonic() - started) / 10  # 100 of 1,000 more flow in each second


def test_a_state_of_a_run_goes_on_on_another_disk_and_is_gone_with_its_job(machines):
    here, there = machines
    caller = stored_material.tenant(here, "ada")
    stored_material.queue(here, caller, stored_material.upload(here, caller))
    job = stored_material.claim(here)
    tensors = {"parameter/prompt": torch.arange(6.0).reshape(2, 3)}
    run = RunIdentity(model="m", vocabulary_hash="v", precision="float32", training="t", validation="", settings="s")
    losses = {"loss": 1.0}
    for step in (10, 20):
        kept = RunState(
            run=run,
            step=step,
            micro_batch_size=4,
            tensors=tensors,
            best_losses=losses,
            best_step=step,
            evaluations_since=0,
            losses=losses,
        )
        RunStates(here, job, between=0.0, should_stop=lambda: False).keep(kept)
    found = RunStates(there, job, between=0.0, should_stop=lambda: False).latest()
    assert (found.step, list(here.directory.run_states.iterdir())) == (20, [])
    assert torch.equal(found.tensors["parameter/prompt"], tensors["parameter/prompt"])
    held = set(there.blobs.list())
    fail_job(there, job, code="x", message="y", now=9)
    assert len(held - set(here.blobs.list())) == 1


def test_a_blob_is_not_deleted_while_another_process_names_it(machines):
    here, there = machines
    with here.database.hold_name("a" * 64, shared=True), there.database.hold_name("a" * 64, shared=True):
        pass
    with ThreadPoolExecutor(1) as pool, here.database.hold_name("a" * 64, shared=True):
        deleted = pool.submit(release, there, ["a" * 64])
        with pytest.raises(TimeoutError):
            deleted.result(timeout=0.3)
    assert deleted.result(timeout=30) == 1
