"""A store that is away while a job runs: the run waits where it is, and goes on. No step is made twice."""

import itertools
import os
import resource
import sqlite3
import subprocess
from contextlib import contextmanager
from dataclasses import replace

import pytest

from job_material import queue_job, runner_on
from rapt.errors import UnavailableError
from rapt.service.jobs.run_states import retry_while_away
from rapt.service.storage.blobs import LocalBlobs
from rapt.service.storage.callers import LOCAL
from rapt.service.storage.data_directory import lock_data_directory
from rapt.service.storage.database import Cursor, Database, database_url
from rapt.service.storage.job_rows import get_job, list_events
from rapt.service.storage.job_runs import add_run_state, claim_next_job, read_latest_run_state
from rapt.service.storage.recovery import open_store
from rapt.service.storage.store import Store
from rapt.service.tuning.tuner import ReconstructionConfig, TuningCancelled, TuningConfig
from running_service import wait_until

# Some seconds of work, with an event every ten steps.
LONG = TuningConfig(
    prompt_length=4, epochs=40, batch_size=16, seed=3, reconstruction=ReconstructionConfig(weight=0.1, head_size=8)
)


@contextmanager
def impatient_store(folder):
    """A store on SQLite that does not wait half a minute for a lock, and has no state of before to be put in order."""
    with lock_data_directory(folder) as directory:
        database = Database(database_url(None, file=directory.database), waiting=0.05)
        try:
            yield Store(database, directory, LocalBlobs(directory.blobs))
        finally:
            database.close()


@contextmanager
def running(store, backbones):
    runner = runner_on(store, backbones, seconds_between_run_states=0.0)
    runner.start()
    try:
        yield runner
    finally:
        runner.close()


def messages(store, job):
    page = list_events(store, job.id, Cursor(limit=1000, newest_first=False), tenant=LOCAL)
    return [event.message for event in page.items]


def steps(store, job):
    return [message for message in messages(store, job) if message.startswith("step ")]


def check_that_it_never_stopped(store, job):
    """One attempt, each tenth step once: what was computed before the store was away was not computed again."""
    wait_until(lambda: get_job(store, job.id, tenant=LOCAL).status not in ("queued", "running"))
    done = get_job(store, job.id, tenant=LOCAL)
    assert (done.status, done.error_message, done.attempt) == ("succeeded", None, 1)
    # Of 160 steps every tenth is an event.
    assert [int(message.split("/")[0][5:]) for message in steps(store, job)] == list(range(10, 161, 10))


def test_a_lock_on_the_database_that_lasts_is_waited_for(tmp_path, backbones, training_path, caplog):
    with impatient_store(tmp_path) as store:
        job = queue_job(store, backbones, training_path, LONG)
        with running(store, backbones):
            wait_until(lambda: steps(store, job))
            other = sqlite3.connect(store.directory.database, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            wait_until(lambda: "a job waits for its store" in caplog.text)
            other.execute("ROLLBACK")
            other.close()
            check_that_it_never_stopped(store, job)


def test_a_disk_that_takes_no_more_is_waited_for(tmp_path, backbones, training_path, caplog):
    with impatient_store(tmp_path) as store:
        job = queue_job(store, backbones, training_path, LONG)
        with running(store, backbones):
            wait_until(lambda: steps(store, job))
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            try:
                # No file of this process may grow beyond a byte, those of the database included.
                resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
                wait_until(lambda: "a job waits for its store" in caplog.text or "no state of step" in caplog.text)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            check_that_it_never_stopped(store, job)
        assert not list(store.directory.incoming.iterdir())
        assert not list(store.directory.run_states.iterdir())


def fill_up(filler):
    with filler.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space left"):
        stream.writelines(itertools.repeat(b"0" * 4096))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "rapt", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a file system")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_full_disk_is_waited_for(small_disk, backbones, training_path, caplog):
    with open_store(small_disk / "data") as store:
        job = queue_job(store, backbones, training_path, LONG)
        with running(store, backbones):
            wait_until(lambda: steps(store, job))
            filler = small_disk / "filler"
            fill_up(filler)
            wait_until(lambda: "a job waits for its store" in caplog.text or "no state of step" in caplog.text)
            filler.unlink()
            check_that_it_never_stopped(store, job)


def test_a_worker_that_is_closed_while_its_store_is_away_ends(tmp_path, backbones, training_path, caplog):
    with impatient_store(tmp_path) as store:
        job = queue_job(store, backbones, training_path, LONG)
        with running(store, backbones):
            wait_until(lambda: read_latest_run_state(store, job) is not None and steps(store, job))
            other = sqlite3.connect(store.directory.database, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            wait_until(lambda: "a job waits for its store" in caplog.text)
        other.execute("ROLLBACK")
        other.close()
    with open_store(tmp_path) as store:  # the next start takes it up again
        assert get_job(store, job.id, tenant=LOCAL).status == "queued"
        assert read_latest_run_state(store, job) is not None
        with running(store, backbones):
            wait_until(lambda: get_job(store, job.id, tenant=LOCAL).status == "succeeded")


def test_work_on_a_store_is_done_again_until_it_passes_or_it_is_time_to_stop():
    answers = iter([UnavailableError("away"), UnavailableError("away"), "done"])

    def work():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry_while_away(work, should_stop=lambda: False) == "done"
    answers = iter([UnavailableError("away")])
    with pytest.raises(TuningCancelled):
        retry_while_away(work, should_stop=lambda: True)


def test_a_state_that_was_added_before_its_answer_was_lost_is_still_there(tmp_path, backbones, training_path):
    with open_store(tmp_path) as store:
        queue_job(store, backbones, training_path, replace(LONG, epochs=1))
        job = claim_next_job(store, worker="worker-of-a-test", models=["bert-tiny"], now=3)
        store.directory.run_state("aa").mkdir()
        for _ in range(2):
            assert add_run_state(store, job, step=4, folder="aa", now=4)
        assert store.directory.run_state("aa").is_dir()
        assert read_latest_run_state(store, job).folder == "aa"
