"""Tenants, keys, quotas, the audit log, and the fair queue, on a real store."""

import io
import secrets
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select
from sqlalchemy.exc import DatabaseError

import stored_material
from rapt.errors import NotFoundError, QuotaError, UsageError
from rapt.service.storage.audit_rows import list_audit
from rapt.service.storage.callers import OPERATOR, Caller
from rapt.service.storage.checkpoint_models import add_checkpoint_model, checkpoint_id, list_checkpoint_models
from rapt.service.storage.database import Cursor
from rapt.service.storage.file_rows import add_file, get_file, list_files
from rapt.service.storage.job_rows import cancel_job, get_job, list_jobs, pause_job, resume_job
from rapt.service.storage.job_runs import (
    add_state,
    claim_next_job,
    fail_job,
    is_still_mine,
    latest_state,
    name_of_result,
    record_progress,
)
from rapt.service.storage.key_rows import create_key, digest_of, has_keys, holder_of, list_keys, revoke_key, rotate_key
from rapt.service.storage.migrations import FIRST, migrate
from rapt.service.storage.model_rows import delete_model, get_model, list_models
from rapt.service.storage.recovery import join_store, open_store, requeue_abandoned_jobs
from rapt.service.storage.repeated_requests import repeatable
from rapt.service.storage.tables import METADATA, MODELS
from rapt.service.storage.tenant_rows import (
    Quotas,
    delete_tenant,
    get_tenant,
    list_tenants,
    set_quotas,
    usage_of,
)
from rapt.service.storage.worker_locks import is_alive, living_worker
from stored_material import SUMMARY, finish, kept_bytes, tenant


def upload(store, caller, content=b"some bytes", request=None, max_bytes=10**9):
    with store.directory.stage(io.BytesIO(content), max_bytes=1000) as staged:
        return add_file(
            store, staged, SUMMARY, filename="f", caller=caller, now=7, max_bytes=max_bytes, request=request
        )


def queue(store, caller, file=None, **changes):
    return stored_material.queue(store, caller, file or upload(store, caller), **changes)


def claim(store, worker="worker-1"):
    return claim_next_job(store, worker=worker, models=["toy"], now=8)


def checkpoint(store, job, step, max_bytes=10**9):
    """What came of a checkpoint of a step."""
    with store.directory.stage_bytes(b"cp%d" % step) as staged:
        return add_checkpoint_model(store, job, staged, step=step, metrics={"step": step}, now=9, max_bytes=max_bytes)


def adapters_of(store, tenant):
    """The names in memory of a tenant's models and checkpoints."""
    with store.database.read() as connection:
        return sorted(connection.execute(select(MODELS.c.adapter).where(MODELS.c.tenant == tenant)).scalars())


def actions(store):
    return [(entry.action, entry.object) for entry in list_audit(store, Cursor(limit=1000)).items[::-1]]


def test_a_key_is_shown_once_and_only_its_digest_is_stored(store, ada):
    key, value = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=5)
    assert len(value) == len("rapt-") + 43  # 256 bits in base 64
    assert holder_of(store, value, now=6) == Caller(tenant="ada", key=key.id, role="tenant")
    assert value not in repr(key)
    store.database.forget_deleted()
    assert value.encode() not in store.directory.database.read_bytes()
    assert digest_of(value).encode() in store.directory.database.read_bytes()


def test_a_key_that_was_made_up_or_revoked_or_ended_has_no_holder(store, ada):
    key, value = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=5)
    for other in ("", "rapt-", value[:-1], value + "x", value.upper(), digest_of(value), key.id):
        assert holder_of(store, other, now=6) is None
    new, new_value = rotate_key(store, key.id, grace=10, caller=OPERATOR, now=100)
    assert (new.tenant, new.role) == ("ada", "tenant")
    assert [holder_of(store, value, now=now) is None for now in (109, 110)] == [False, True]
    revoke_key(store, new.id, caller=OPERATOR, now=120)
    assert holder_of(store, new_value, now=120) is None
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
    assert holder_of(store, value, now=7) is not None
    assert list_keys(store, Cursor(), tenant="ada").items == ()


def test_a_service_that_had_a_key_never_forgets_it(store, ada):
    assert not has_keys(store)
    key, value = create_key(store, tenant="ada", role="admin", caller=OPERATOR, now=5)
    revoke_key(store, key.id, caller=OPERATOR, now=6)
    delete_tenant(store, "ada", caller=OPERATOR, now=7)
    assert has_keys(store)
    assert holder_of(store, value, now=8) is None


@pytest.mark.parametrize("name", ["", "-a", "a-", "Ada", "a:b", "a b", "ä", "a" * 33, "a\n"])
def test_a_tenant_has_a_name_that_can_stand_in_a_models_name(store, name):
    with pytest.raises(UsageError, match="tenant's name must be"):
        tenant(store, name)


def test_a_tenants_name_is_taken_once(store, ada):
    with pytest.raises(UsageError, match="taken"):
        tenant(store, "ada")
    assert [item.name for item in list_tenants(store, Cursor(newest_first=False)).items] == ["local", "ada"]


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
    store.directory.checkpoint("state").mkdir()
    assert add_state(store, stopped, step=1, metrics={}, folder="state", now=9)
    assert checkpoint(store, stopped, 1) == "kept"
    adapters = adapters_of(store, "ada")
    assert (len(adapters), len(kept_bytes(store))) == (2, 3)
    removed = delete_tenant(store, "ada", caller=OPERATOR, now=10)
    assert (sorted(removed.adapters), removed.checkpoints) == (adapters, ("state",))
    assert not is_still_mine(store, stopped)
    assert not record_progress(store, stopped, message="x", data={}, now=11)
    assert not add_state(store, stopped, step=2, metrics={}, folder="late", now=11)
    assert checkpoint(store, stopped, 2) == "not mine"
    assert not finish(store, stopped)
    assert kept_bytes(store) == []
    store.database.close()
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path.name
    for folder in (store.directory.incoming, store.directory.checkpoints, store.directory.parts):
        assert list(folder.iterdir()) == []


def test_a_quota_of_bytes_holds_for_all_files_together(store, ada):
    set_quotas(store, "ada", Quotas(max_bytes=10), caller=OPERATOR)
    file = upload(store, ada, b"123456")
    with pytest.raises(QuotaError, match="at most 10 bytes") as error:
        upload(store, ada, b"12345")
    assert error.value.retry_after is None
    upload(store, ada, b"1234")
    assert usage_of(store, "ada").bytes == 10
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


def test_the_queue_takes_turns_between_tenants_whatever_they_have_queued(store, ada, bob):
    for _ in range(4):
        queue(store, ada)
    for _ in range(2):
        queue(store, bob)
    assert [claim(store).tenant for _ in range(6)] == ["ada", "bob", "ada", "bob", "ada", "ada"]
    tenant(store, "eve")  # who comes later does not have to wait for those who were served before
    queue(store, ada)
    queue(store, Caller(tenant="eve", key="k", role="tenant"))
    assert claim(store).tenant == "eve"


def test_priority_orders_the_jobs_of_one_tenant_and_does_not_touch_others(store, ada, bob):
    first, urgent = queue(store, ada), queue(store, ada, priority=5)
    queue(store, bob)
    assert [claim(store).id for _ in range(3)][0::2] == [urgent.id, first.id]


def test_a_job_is_taken_only_by_a_worker_that_has_its_model(store, ada):
    queue(store, ada)
    assert claim_next_job(store, worker="w", models=["other"], now=8) is None
    assert claim(store) is not None


def test_a_paused_job_rests_and_goes_on_from_its_state(store, ada):
    queue(store, ada)
    running = claim(store)
    pause_job(store, running.id, caller=ada, now=9)
    assert not is_still_mine(store, running)
    # The worker finds out at its next step and keeps the state that it has reached.
    store.directory.checkpoint("state").mkdir()
    assert add_state(store, running, step=3, metrics={"train_loss": 1.0}, folder="state", now=9)
    assert claim(store) is None
    resume_job(store, running.id, caller=ada, now=10)
    again = claim(store)
    assert (again.id, again.attempt) == (running.id, 2)
    assert latest_state(store, again).folder == "state"
    with pytest.raises(UsageError, match="to resume, got status=running"):
        resume_job(store, again.id, caller=ada, now=10)
    # Whoever was slow to notice ends nothing.
    assert not finish(store, running)
    assert finish(store, again)
    assert list(store.directory.checkpoints.iterdir()) == []
    with pytest.raises(UsageError, match="to pause, got status=succeeded"):
        pause_job(store, again.id, caller=ada, now=11)


def test_only_the_newest_state_is_kept(store, ada):
    queue(store, ada)
    job = claim(store)
    for step in (2, 4):
        store.directory.checkpoint(f"state-{step}").mkdir()
        assert add_state(store, job, step=step, metrics={"step": step}, folder=f"state-{step}", now=step)
    assert [path.name for path in store.directory.checkpoints.iterdir()] == ["state-4"]
    assert latest_state(store, job).step == 4
    cancel_job(store, job.id, caller=ada, now=9)
    assert list(store.directory.checkpoints.iterdir()) == []


def test_checkpoints_are_models_that_are_listed_with_their_job_alone(store, ada, bob):
    queue(store, ada)
    job = claim(store)
    assert [checkpoint(store, job, step) for step in (2, 4, 6)] == ["kept"] * 3
    listed = list_checkpoint_models(store, job.id, Cursor(), tenant="ada").items
    assert [model.step for model in listed] == [6, 4, 2]
    rest = list_checkpoint_models(store, job.id, Cursor(after=checkpoint_id(listed[0]), limit=1), tenant="ada")
    assert ([model.step for model in rest.items], rest.has_more) == ([4], True)
    for unknown in ("ftckpt-x", listed[0].id):
        with pytest.raises(NotFoundError):
            list_checkpoint_models(store, job.id, Cursor(after=unknown), tenant="ada")
    assert listed[0].id == f"{name_of_result(job)}:ckpt-step-6"
    assert get_model(store, listed[0].id, tenant="ada") == listed[0]
    with pytest.raises(NotFoundError):
        get_model(store, listed[0].id, tenant="bob")
    assert list_models(store, Cursor(), tenant="ada").items == ()
    assert usage_of(store, "ada").models == 0


def test_an_attempt_that_repeats_steps_keeps_the_checkpoints_of_the_one_before(store, ada):
    queue(store, ada)
    job = claim(store)
    assert checkpoint(store, job, 2) == "kept"
    assert requeue_abandoned_jobs(store) == 1
    again = claim(store)
    assert checkpoint(store, job, 4) == "not mine"
    assert [checkpoint(store, again, step) for step in (2, 4)] == ["known", "kept"]


@pytest.mark.parametrize("way", ["cancel the job", "delete the model", "delete the tenant"])
def test_checkpoints_go_with_their_job_their_model_and_their_tenant(store, ada, way):
    queue(store, ada)
    job = claim(store)
    assert [checkpoint(store, job, step) for step in (2, 4)] == ["kept", "kept"]
    if way == "cancel the job":
        adapters = adapters_of(store, "ada")
        assert sorted(cancel_job(store, job.id, caller=ada, now=9)[1]) == adapters
    else:
        assert finish(store, job)
        adapters = adapters_of(store, "ada")
        assert len(kept_bytes(store)) == 1 + 3
    if way == "delete the model":
        assert sorted(delete_model(store, name_of_result(job), caller=ada)) == adapters
    if way == "delete the tenant":
        delete_tenant(store, "ada", caller=OPERATOR, now=9)
    else:
        assert list_checkpoint_models(store, job.id, Cursor(), tenant="ada").items == ()
        assert usage_of(store, "ada").bytes == len(b"some bytes")
    assert len(kept_bytes(store)) == (0 if way == "delete the tenant" else 1)


def test_one_checkpoint_is_deleted_by_its_name_and_those_of_a_failed_job_stay(store, ada):
    queue(store, ada, suffix="written-by-somebody")
    job = claim(store)
    assert [checkpoint(store, job, step) for step in (2, 4)] == ["kept", "kept"]
    fail_job(store, job, code="x", message="y", now=9)
    name = f"{name_of_result(job)}:ckpt-step-2"
    model = get_model(store, name, tenant="ada")
    assert delete_model(store, name, caller=ada) == (model.adapter,)
    assert model.sha256 not in kept_bytes(store)
    assert actions(store)[-1] == ("model.delete", f"{job.id[6:18]}:ckpt-step-2")
    assert [model.step for model in list_checkpoint_models(store, job.id, Cursor(), tenant="ada").items] == [4]


def test_models_and_checkpoints_count_against_the_bytes_of_a_tenant(store, ada):
    queue(store, ada)
    job = claim(store)
    assert checkpoint(store, job, 2, max_bytes=13) == "kept"
    assert checkpoint(store, job, 4, max_bytes=13) == "no room"
    assert usage_of(store, "ada").bytes == 10 + 3
    assert finish(store, job)  # what a run leaves is never lost to a quota
    assert usage_of(store, "ada").bytes == 10 + 3 + 5
    with pytest.raises(QuotaError, match="at most 17 bytes of files and models"):
        queue(store, ada, list_files(store, Cursor(), tenant="ada").items[0], max_bytes=17)
    with pytest.raises(QuotaError):
        upload(store, ada, b"1", max_bytes=18)


def test_a_job_of_a_worker_that_died_is_queued_again_and_that_of_a_living_one_is_not(store, ada):
    queue(store, ada)
    queue(store, ada)
    with living_worker(store.directory) as name:
        assert is_alive(store.directory, name)
        mine = claim(store, worker=name)
        lost = claim(store, worker="worker-that-was-killed")
        assert requeue_abandoned_jobs(store) == 1
        assert get_job(store, lost.id, tenant="ada").status == "queued"
        assert get_job(store, mine.id, tenant="ada").status == "running"
    assert not is_alive(store.directory, name)
    assert requeue_abandoned_jobs(store) == 1


def test_a_request_that_comes_twice_makes_one_object(store, ada, bob):
    request = repeatable("my key", "the request")
    file = upload(store, ada, request=request)
    assert upload(store, ada, b"whatever", request=request) == file
    assert upload(store, bob, request=request).id != file.id  # keys of two tenants have nothing to do with each other
    with pytest.raises(UsageError, match="same request every time"):
        upload(store, ada, request=repeatable("my key", "another request"))
    wanted = repeatable("another", "job")
    job = queue(store, ada, file, request=wanted)
    cancelled, _ = cancel_job(store, job.id, caller=ada, now=9)
    assert queue(store, ada, file, request=wanted) == cancelled
    assert len(list_jobs(store, Cursor(), tenant="ada").items) == 1


def test_jobs_are_found_by_their_metadata(store, ada):
    one = queue(store, ada, metadata={"run": "1", "kind": "a.b"})
    queue(store, ada, metadata={"run": "2", "kind": "a.b"})
    queue(store, ada)
    found = list_jobs(store, Cursor(), tenant="ada", metadata={"run": "1", "kind": "a.b"}).items
    assert [job.id for job in found] == [one.id]
    assert len(list_jobs(store, Cursor(), tenant="ada", metadata={"kind": "a.b"}).items) == 2
    assert list_jobs(store, Cursor(), tenant="ada", metadata={'"; drop table jobs': "1"}).items == ()


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


def test_keys_are_made_while_a_service_runs(store, tmp_path):
    with join_store(tmp_path / "data") as other:
        _, value = create_key(other, tenant="local", role="admin", caller=OPERATOR, now=5)
    assert holder_of(store, value, now=6).role == "admin"


def test_the_database_of_before_there_were_tenants_is_brought_along(tmp_path):
    old = tmp_path / "data" / "rapt.sqlite3"
    old.parent.mkdir()
    engine = create_engine(f"sqlite:///{old}")
    with engine.begin() as first:
        migrate(first, to=FIRST)
    engine.dispose()
    # What the first migration makes is what there was before there were migrations, but for the mark.
    with sqlite3.connect(old) as connection:
        connection.execute("DROP TABLE alembic_version")
        connection.execute("PRAGMA user_version = 1")
        connection.execute(
            "INSERT INTO jobs (id, model, training_file, status, method, seed, created_at) "
            "VALUES ('ftjob-old', 'toy', 'file-old', 'running', '{}', 1, 1)"
        )
        connection.execute(
            "INSERT INTO events (id, job_id, created_at, level, type, message) VALUES "
            "('ftevent-old', 'ftjob-old', 1, 'info', 'message', 'the job is running')"
        )
    connection.close()
    with open_store(tmp_path / "data") as store:
        job = get_job(store, "ftjob-old", tenant="local")
        assert (job.status, job.attempt) == ("queued", 0)
        assert claim(store).id == "ftjob-old"
