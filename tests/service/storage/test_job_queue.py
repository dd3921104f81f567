"""Whose job is next, and what becomes of one that rests or whose worker died, on a real store."""

import pytest

from rapt.errors import UsageError
from rapt.service.storage.callers import Caller
from rapt.service.storage.database import Cursor
from rapt.service.storage.job_rows import cancel_job, get_job, list_jobs, pause_job, resume_job
from rapt.service.storage.job_runs import (
    add_state,
    claim_next_job,
    is_still_mine,
    latest_state,
)
from rapt.service.storage.recovery import requeue_abandoned_jobs
from rapt.service.storage.worker_locks import is_alive, living_worker
from stored_material import claim, finish, queue, tenant


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


def test_jobs_are_found_by_their_metadata(store, ada):
    one = queue(store, ada, metadata={"run": "1", "kind": "a.b"})
    queue(store, ada, metadata={"run": "2", "kind": "a.b"})
    queue(store, ada)
    found = list_jobs(store, Cursor(), tenant="ada", metadata={"run": "1", "kind": "a.b"}).items
    assert [job.id for job in found] == [one.id]
    assert len(list_jobs(store, Cursor(), tenant="ada", metadata={"kind": "a.b"}).items) == 2
    assert list_jobs(store, Cursor(), tenant="ada", metadata={'"; drop table jobs': "1"}).items == ()
