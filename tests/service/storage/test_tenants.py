"""Tenants, keys, quotas, the audit log and migrations, on a real store."""

import secrets
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import DatabaseError

from rapt.errors import NotFoundError, QuotaError, UsageError
from rapt.service.storage.callers import OPERATOR, Caller, list_audit, mark_repeatable
from rapt.service.storage.database import Cursor
from rapt.service.storage.file_rows import get_file, list_files
from rapt.service.storage.job_rows import cancel_job, get_job, list_jobs, pause_job, resume_job
from rapt.service.storage.job_runs import (
    add_run_state,
    is_still_mine,
    list_checkpoint_models,
    record_progress,
)
from rapt.service.storage.key_rows import (
    create_key,
    digest_key,
    find_holder,
    has_keys,
    list_keys,
    revoke_key,
    rotate_key,
)
from rapt.service.storage.model_rows import get_model, list_models
from rapt.service.storage.recovery import join_store, open_store
from rapt.service.storage.tables import METADATA
from rapt.service.storage.tenant_rows import (
    Quotas,
    delete_tenant,
    get_tenant,
    get_usage,
    list_tenants,
    set_quotas,
)
from stored_material import actions, adapters_of, checkpoint, claim, finish, kept_bytes, queue, tenant, upload


def test_a_key_is_shown_once_and_only_its_digest_is_stored(store, ada):
    key, value = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=5)
    assert len(value) == len("rapt-") + 43  # 256 bits in base 64
    assert find_holder(store, value, now=6) == Caller(tenant="ada", key=key.id, role="tenant")
    assert value not in repr(key)
    store.database.forget_deleted()
    assert value.encode() not in store.directory.database.read_bytes()
    assert digest_key(value).encode() in store.directory.database.read_bytes()


def test_a_key_that_was_made_up_or_revoked_or_ended_has_no_holder(store, ada):
    key, value = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=5)
    for other in ("", "rapt-", value[:-1], value + "x", value.upper(), digest_key(value), key.id):
        assert find_holder(store, other, now=6) is None
    new, new_value = rotate_key(store, key.id, grace=10, caller=OPERATOR, now=100)
    assert (new.tenant, new.role) == ("ada", "tenant")
    assert [find_holder(store, value, now=now) is None for now in (109, 110)] == [False, True]
    revoke_key(store, new.id, caller=OPERATOR, now=120)
    assert find_holder(store, new_value, now=120) is None
    for gone in (key.id, new.id, "key-none"):
        with pytest.raises(NotFoundError):
            rotate_key(store, gone, grace=0, caller=OPERATOR, now=121)


def test_a_tenant_cannot_rotate_or_revoke_the_key_of_another(store, ada, bob):
    key, value = create_key(store, tenant="bob", role="tenant", caller=OPERATOR, now=5)
    for change in (
        lambda: rotate_key(store, key.id, grace=0, caller=ada, now=6, tenant="ada"),
        lambda: revoke_key(store, key.id, caller=ada, now=6, tenant="ada"),
    ):
        with pytest.raises(NotFoundError):
            change()
    assert find_holder(store, value, now=7) is not None
    assert list_keys(store, Cursor(), tenant="ada").items == ()


def test_a_service_that_had_a_key_never_forgets_it(store, ada):
    assert not has_keys(store)
    key, value = create_key(store, tenant="ada", role="admin", caller=OPERATOR, now=5)
    revoke_key(store, key.id, caller=OPERATOR, now=6)
    delete_tenant(store, "ada", caller=OPERATOR, now=7)
    assert has_keys(store)
    assert find_holder(store, value, now=8) is None


@pytest.mark.parametrize("name", ["", "-a", "a-", "Ada", "a:b", "a b", "ä", "a" * 33, "a\n"])
def test_a_tenant_has_a_name_that_can_stand_in_a_models_name(store, name):
    with pytest.raises(UsageError, match="tenant's name must be"):
        tenant(store, name)


def test_a_tenants_name_is_taken_once(store, ada):
    with pytest.raises(UsageError, match="taken"):
        tenant(store, "ada")
    assert [item.name for item in list_tenants(store, Cursor(newest_first=False)).items] == ["local", "ada"]


def test_the_state_of_a_job_that_rests_counts_until_it_is_gone(store, ada):
    file = upload(store, ada)
    queue(store, ada, file)
    job = claim(store)
    before = get_usage(store, "ada").bytes
    store.directory.run_state("state").mkdir()
    (store.directory.run_state("state") / "tensors").write_bytes(b"0" * 1000)
    assert add_run_state(store, job, step=1, folder="state", now=9)
    pause_job(store, job.id, caller=ada, now=10)
    assert get_usage(store, "ada").bytes == before + 1000
    with pytest.raises(QuotaError):
        upload(store, ada, b"others", max_bytes=before + 1005)
    cancel_job(store, job.id, caller=ada, now=11)
    assert get_usage(store, "ada").bytes == before


def test_what_belongs_to_another_is_not_found_by_anything(store, ada, bob):
    file = upload(store, ada)
    job = queue(store, ada, file)
    assert finish(store, claim(store))
    missing = [
        lambda: get_file(store, file.id, tenant="bob"),
        lambda: get_job(store, job.id, tenant="bob"),
        lambda: get_model(store, "ft:abc", tenant="bob"),
        lambda: cancel_job(store, job.id, caller=bob, now=9),
        lambda: pause_job(store, job.id, caller=bob, now=9),
        lambda: resume_job(store, job.id, caller=bob, now=9),
        lambda: list_checkpoint_models(store, job.id, Cursor(), tenant="bob"),
        lambda: queue(store, bob, file),
        lambda: list_files(store, Cursor(after=file.id), tenant="bob"),
        lambda: list_jobs(store, Cursor(after=job.id), tenant="bob"),
    ]
    for ask in missing:
        with pytest.raises(NotFoundError):
            ask()
    for listed in (list_files, list_jobs, list_models):
        assert listed(store, Cursor(), tenant="bob").items == ()
        assert len(listed(store, Cursor(), tenant="ada").items) == 1


def test_the_same_bytes_of_two_tenants_are_deleted_with_the_second(store, ada, bob):
    mine, theirs = upload(store, ada), upload(store, bob)
    delete_tenant(store, "ada", caller=OPERATOR, now=9)
    assert kept_bytes(store) == [mine.sha256] == [theirs.sha256]
    assert get_file(store, theirs.id, tenant="bob") == theirs
    delete_tenant(store, "bob", caller=OPERATOR, now=9)
    assert kept_bytes(store) == []


def test_a_deleted_tenant_leaves_nothing_but_the_log_of_what_was_done(store, ada, tmp_path):
    secret = secrets.token_hex(8)
    file = upload(store, ada, secret.encode())
    queue(store, ada, file, suffix=f"suffix-{secret}", metadata={"note": secret})
    running = claim(store)
    finish(store, running, f"adapter with {secret}".encode())
    stopped = queue(store, ada, file, suffix=f"suffix-{secret}")
    stopped = claim(store)
    store.directory.run_state("state").mkdir()
    assert add_run_state(store, stopped, step=1, folder="state", now=9)
    assert checkpoint(store, stopped, 1) == "kept"
    adapters = adapters_of(store, "ada")
    assert (len(adapters), len(kept_bytes(store))) == (2, 3)
    removed = delete_tenant(store, "ada", caller=OPERATOR, now=10)
    assert (sorted(removed.adapters), removed.run_states) == (adapters, ("state",))
    assert not is_still_mine(store, stopped)
    assert not record_progress(store, stopped, message="x", data={}, now=11)
    assert not add_run_state(store, stopped, step=2, folder="late", now=11)
    assert checkpoint(store, stopped, 2) == "not mine"
    assert not finish(store, stopped)
    assert kept_bytes(store) == []
    store.database.close()
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path.name
    for folder in (store.directory.incoming, store.directory.run_states, store.directory.parts):
        assert list(folder.iterdir()) == []


def test_a_quota_of_bytes_holds_for_all_files_together(store, ada):
    set_quotas(store, "ada", Quotas(max_bytes=10), caller=OPERATOR)
    file = upload(store, ada, b"123456")
    with pytest.raises(QuotaError, match="at most 10 bytes") as error:
        upload(store, ada, b"12345")
    assert error.value.retry_after is None
    upload(store, ada, b"1234")
    assert get_usage(store, "ada").bytes == 10
    assert len(kept_bytes(store)) == 2
    assert get_file(store, file.id, tenant="ada") == file
    assert get_tenant(store, "ada").quotas == Quotas(max_bytes=10)


def test_the_services_own_quota_holds_where_a_tenant_has_none(store, ada):
    with pytest.raises(QuotaError):
        upload(store, ada, b"12345", max_bytes=4)
    assert kept_bytes(store) == []
    file = upload(store, ada)
    job = queue(store, ada, file, max_jobs=1)
    with pytest.raises(QuotaError, match="at most 1 jobs") as error:
        queue(store, ada, file, max_jobs=1)
    assert error.value.retry_after > 0
    cancel_job(store, job.id, caller=ada, now=9)
    queue(store, ada, file, max_jobs=1)


def test_a_request_that_comes_twice_makes_one_object(store, ada, bob):
    request = mark_repeatable("my key", "the request")
    file = upload(store, ada, request=request)
    assert upload(store, ada, b"whatever", request=request) == file
    assert upload(store, bob, request=request).id != file.id  # keys of two tenants have nothing to do with each other
    with pytest.raises(UsageError, match="same request every time"):
        upload(store, ada, request=mark_repeatable("my key", "another request"))
    wanted = mark_repeatable("another", "job")
    job = queue(store, ada, file, request=wanted)
    cancelled, _ = cancel_job(store, job.id, caller=ada, now=9)
    assert queue(store, ada, file, request=wanted) == cancelled
    assert len(list_jobs(store, Cursor(), tenant="ada").items) == 1


def test_every_change_is_in_the_log_and_nothing_that_a_user_wrote(store, ada):
    file = upload(store, ada)
    job = queue(store, ada, file, suffix="a-word-of-mine", metadata={"note": "a word of mine"})
    pause_job(store, job.id, caller=ada, now=8)
    resume_job(store, job.id, caller=ada, now=8)
    cancel_job(store, job.id, caller=ada, now=9)
    key, _ = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=9)
    assert actions(store) == [
        ("tenant.create", "ada"),
        ("file.create", file.id),
        ("job.create", job.id),
        ("job.pause", job.id),
        ("job.resume", job.id),
        ("job.cancel", job.id),
        ("key.create", key.id),
    ]
    assert "mine" not in str(list_audit(store, Cursor(limit=100)))


@pytest.mark.parametrize("change", ["UPDATE audit_log SET tenant = 'x'", "DELETE FROM audit_log"])
def test_the_log_is_only_added_to(store, ada, change):
    with pytest.raises(DatabaseError, match="only added to"), store.database.write() as connection:
        connection.exec_driver_sql(change)
    assert actions(store) == [("tenant.create", "ada")]


def test_the_migrations_make_the_tables_that_the_code_knows(store):
    with store.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_database_of_the_first_release_is_brought_along_with_all_that_is_in_it(tmp_path):
    def schema():
        with sqlite3.connect(tmp_path / "rapt.sqlite3") as connection:
            found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
            for table in ("changes", "workers", "token_buckets", "pool_counters"):
                connection.execute(f"DROP TABLE {table}")
            for name in found:
                if "_notes_" in name:
                    connection.execute(f"DROP TRIGGER {name}")
            connection.execute("DROP INDEX ix_files_expires_at")
            connection.execute("ALTER TABLE files DROP COLUMN expires_at")
            connection.execute("ALTER TABLE uploads DROP COLUMN file_seconds")
            connection.execute("ALTER TABLE pools DROP COLUMN rounds")
            connection.execute("UPDATE alembic_version SET version_num = '0.2.0'")
        connection.close()
        return found

    with open_store(tmp_path) as store:
        _, value = create_key(store, tenant="local", role="admin", caller=OPERATOR, now=5)
    made = schema()
    with open_store(tmp_path) as store:
        assert find_holder(store, value, now=6).role == "admin"
    assert schema() == made
    assert sum("_notes_" in name for name in made) == 12


def test_keys_are_made_while_a_service_runs(store, tmp_path):
    with join_store(tmp_path / "data") as other:
        _, value = create_key(other, tenant="local", role="admin", caller=OPERATOR, now=5)
    assert find_holder(store, value, now=6).role == "admin"


@pytest.mark.parametrize("mark", ["", "CREATE TABLE alembic_version AS SELECT '0006' AS version_num"])
def test_a_database_from_before_the_first_release_is_refused_in_one_line(tmp_path, mark):
    old = tmp_path / "data" / "rapt.sqlite3"
    old.parent.mkdir()
    with sqlite3.connect(old) as connection:
        connection.execute("CREATE TABLE files (number INTEGER PRIMARY KEY)")
        connection.execute(mark)
    connection.close()
    with pytest.raises(UsageError, match=r"before 0\.2\.0; begin with a new data directory$"), open_store(old.parent):
        pass
