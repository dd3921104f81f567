"""The job that is next, what becomes of one that rests or whose worker died, and its checkpoints, on a real store."""

from __future__ import annotations

import pytest

from job_material import messages_of
from rapt.errors import LimitError, NotFoundError, QuotaError, UsageError
from rapt.service.storage.callers import OPERATOR, Caller
from rapt.service.storage.database import Cursor
from rapt.service.storage.file_rows import list_files
from rapt.service.storage.job_rows import cancel_job, get_job, list_jobs, pause_job, resume_job
from rapt.service.storage.job_runs import (
    MODEL_NOT_SERVED,
    add_run_state,
    claim_next_job,
    fail_job,
    is_still_mine,
    list_checkpoint_models,
    lose_job,
    make_checkpoint_id,
    name_result,
    others_wait,
    put_back,
    put_back_all,
    read_latest_run_state,
    warn_of_models_not_served,
)
from rapt.service.storage.model_rows import delete_model, get_model, list_models
from rapt.service.storage.recovery import requeue_abandoned_jobs
from rapt.service.storage.tenant_rows import (
    delete_tenant,
    get_usage,
)
from rapt.service.storage.worker_rows import hold_worker_lock, holds_lock
from stored_material import actions, adapters_of, checkpoint, claim, finish, kept_bytes, queue, tenant, upload


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
    store.directory.run_state("state").mkdir()
    assert add_run_state(store, running, step=3, folder="state", now=9)
    assert claim(store) is None
    resume_job(store, running.id, caller=ada, now=10)
    again = claim(store)
    assert (again.id, again.attempt) == (running.id, 2)
    assert read_latest_run_state(store, again).folder == "state"
    with pytest.raises(UsageError, match="to resume, got status=running"):
        resume_job(store, again.id, caller=ada, now=10)
    # Whoever was slow to notice ends nothing.
    assert not finish(store, running)
    assert finish(store, again)
    assert list(store.directory.run_states.iterdir()) == []
    with pytest.raises(UsageError, match="to pause, got status=succeeded"):
        pause_job(store, again.id, caller=ada, now=11)


def test_a_job_is_paused_so_often_and_then_runs_or_is_cancelled(store, ada):
    job = queue(store, ada)
    for _ in range(2):
        pause_job(store, job.id, caller=ada, now=9, most=2)
        resume_job(store, job.id, caller=ada, now=10)
    with pytest.raises(LimitError, match="can be paused 2 times"):
        pause_job(store, job.id, caller=ada, now=11, most=2)
    cancel_job(store, job.id, caller=ada, now=12)
    assert get_job(store, job.id, tenant="ada").status == "cancelled"


def test_only_the_newest_state_is_kept(store, ada):
    queue(store, ada)
    job = claim(store)
    for step in (2, 4):
        store.directory.run_state(f"state-{step}").mkdir()
        assert add_run_state(store, job, step=step, folder=f"state-{step}", now=step)
    assert [path.name for path in store.directory.run_states.iterdir()] == ["state-4"]
    assert read_latest_run_state(store, job).step == 4
    cancel_job(store, job.id, caller=ada, now=9)
    assert list(store.directory.run_states.iterdir()) == []


def test_a_job_of_a_worker_that_died_is_queued_again_and_that_of_a_living_one_is_not(store, ada):
    queue(store, ada)
    queue(store, ada)
    with hold_worker_lock(store.directory) as name:
        assert holds_lock(store.directory, name)
        mine = claim(store, worker=name)
        lost = claim(store, worker="worker-that-was-killed")
        assert requeue_abandoned_jobs(store) == 1
        assert get_job(store, lost.id, tenant="ada").status == "queued"
        assert get_job(store, mine.id, tenant="ada").status == "running"
    assert not holds_lock(store.directory, name)
    assert requeue_abandoned_jobs(store) == 1


def test_jobs_are_found_by_their_metadata(store, ada):
    one = queue(store, ada, metadata={"run": "1", "kind": "a.b"})
    queue(store, ada, metadata={"run": "2", "kind": "a.b"})
    queue(store, ada)
    found = list_jobs(store, Cursor(), tenant="ada", metadata={"run": "1", "kind": "a.b"}).items
    assert [job.id for job in found] == [one.id]
    assert len(list_jobs(store, Cursor(), tenant="ada", metadata={"kind": "a.b"}).items) == 2
    assert list_jobs(store, Cursor(), tenant="ada", metadata={'"; drop table jobs': "1"}).items == ()


def test_a_job_whose_worker_dies_is_counted_until_it_gets_further_and_fails_with_the_reason_in_the_end(store, ada):
    queue(store, ada)
    for death in (1, 2):
        job = claim(store)
        assert lose_job(store, job, reason="it was ended by SIGKILL", now=9)
        assert not lose_job(store, job, reason="told twice", now=9)
        assert get_job(store, job.id, tenant="ada").deaths == death
    job = claim(store)
    store.directory.run_state("state").mkdir()
    assert add_run_state(store, job, step=3, folder="state", now=9)
    assert get_job(store, job.id, tenant="ada").deaths == 0  # it got further
    for death in range(3):
        assert lose_job(store, claim(store) if death else job, reason="it was ended by SIGKILL", now=9)
    assert claim(store) is None
    failed = get_job(store, job.id, tenant="ada")
    assert (failed.status, failed.error_code, failed.finished_at) == ("failed", "worker_died", 8)
    assert "died 3 times" in failed.error_message
    assert "SIGKILL" in failed.error_message
    assert list(store.directory.run_states.iterdir()) == []
    messages = messages_of(store, failed)
    assert messages.count("the process that ran the job died: it was ended by SIGKILL; the job is queued again") == 5
    assert messages[-1] == f"the job failed: {failed.error_message}"


def test_a_worker_that_was_killed_counts_and_one_that_stops_or_gives_way_does_not(store, ada):
    queue(store, ada)
    assert put_back(store, claim(store), message="the service stopped; the job is queued again", now=9)
    assert put_back_all(store, worker="worker-1", now=9) == 0
    assert claim(store).deaths == 0
    assert put_back_all(store, worker="worker-1", now=9) == 1
    lost = claim(store, worker="worker-that-was-killed")
    assert lost.deaths == 0
    assert requeue_abandoned_jobs(store) == 1
    assert get_job(store, lost.id, tenant="ada").deaths == 1


def test_a_worker_of_other_models_does_not_begin_a_hopeless_job_either(store, ada):
    job = queue(store, ada)
    assert claim_next_job(store, worker="w", models=["other"], now=8, most_deaths=0) is None
    assert get_job(store, job.id, tenant="ada").status == "failed"


def test_others_wait_only_if_a_job_of_another_tenant_waits_for_a_model_of_the_worker(store, ada, bob):
    queue(store, ada)
    queue(store, ada)
    running = claim(store)
    assert not others_wait(store, running, models=["toy"])
    queue(store, bob)
    assert not others_wait(store, running, models=["other"])
    assert others_wait(store, running, models=["toy"])


def test_a_job_for_a_model_that_is_not_served_any_more_says_so_and_is_taken_when_it_is_back(store, ada):
    job, other = queue(store, ada), queue(store, ada, model="other")
    assert warn_of_models_not_served(store, served=["toy", "other"], now=9) == []
    assert warn_of_models_not_served(store, served=["other"], now=9) == [job.id]
    assert messages_of(store, job)[-1] == MODEL_NOT_SERVED
    assert MODEL_NOT_SERVED not in messages_of(store, other)
    assert claim(store).id == job.id


def test_checkpoints_are_models_that_are_listed_with_their_job_alone(store, ada, bob):
    queue(store, ada)
    job = claim(store)
    assert [checkpoint(store, job, step) for step in (2, 4, 6)] == ["kept"] * 3
    listed = list_checkpoint_models(store, job.id, Cursor(), tenant="ada").items
    assert [model.step for model in listed] == [6, 4, 2]
    rest = list_checkpoint_models(store, job.id, Cursor(after=make_checkpoint_id(listed[0]), limit=1), tenant="ada")
    assert ([model.step for model in rest.items], rest.has_more) == ([4], True)
    for unknown in ("ftckpt-x", listed[0].id):
        with pytest.raises(NotFoundError):
            list_checkpoint_models(store, job.id, Cursor(after=unknown), tenant="ada")
    assert listed[0].id == f"{name_result(job)}:ckpt-step-6"
    assert get_model(store, listed[0].id, tenant="ada") == listed[0]
    with pytest.raises(NotFoundError):
        get_model(store, listed[0].id, tenant="bob")
    assert list_models(store, Cursor(), tenant="ada").items == ()
    assert get_usage(store, "ada").models == 0


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
        assert sorted(delete_model(store, name_result(job), caller=ada)) == adapters
    if way == "delete the tenant":
        delete_tenant(store, "ada", caller=OPERATOR, now=9)
    else:
        assert list_checkpoint_models(store, job.id, Cursor(), tenant="ada").items == ()
        assert get_usage(store, "ada").bytes == len(b"some bytes")
    assert len(kept_bytes(store)) == (0 if way == "delete the tenant" else 1)


def test_one_checkpoint_is_deleted_by_its_name_and_those_of_a_failed_job_stay(store, ada):
    queue(store, ada, suffix="written-by-somebody")
    job = claim(store)
    assert [checkpoint(store, job, step) for step in (2, 4)] == ["kept", "kept"]
    fail_job(store, job, code="x", message="y", now=9)
    name = f"{name_result(job)}:ckpt-step-2"
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
    assert get_usage(store, "ada").bytes == 10 + 3
    assert finish(store, job)  # what a run leaves is never lost to a quota
    assert get_usage(store, "ada").bytes == 10 + 3 + 5
    with pytest.raises(QuotaError, match="at most 17 bytes of files and models"):
        queue(store, ada, list_files(store, Cursor(), tenant="ada").items[0], max_bytes=17)
    with pytest.raises(QuotaError):
        upload(store, ada, b"1", max_bytes=18)
