"""The tests of the store once more, on PostgreSQL: what holds on SQLite holds there. Run with `make test-postgres`."""

import inspect
import os
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import test_checkpoint_models
import test_job_runs
import test_named_blobs
import test_store
import test_tenants
import test_tidying
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import stored_material
from own_postgresql import own_postgresql
from rapt.service.storage.database import Database, database_url
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tables import METADATA

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
def store(url, tmp_path):
    with open_store(tmp_path / "data", url=url) as opened:
        yield opened


def _shared():
    for module in (
        test_checkpoint_models,
        test_job_runs,
        test_named_blobs,
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


def test_jobs_are_claimed_once_by_many_workers(store):
    caller = stored_material.tenant(store, "ada")
    file = stored_material.upload(store, caller)
    jobs = [stored_material.queue(store, caller, file).id for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        claimed = list(pool.map(lambda number: stored_material.claim(store, f"worker-{number}"), range(14)))
    assert sorted(job.id for job in claimed if job) == sorted(jobs)
