"""Jobs in a process of their own: what a job does to it, the service survives, and nobody else notices."""

import os
import signal
import socket
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from job_material import LIMITS, job_settings, messages_of, queue_job, runner_on, weights_of
from rapt.service.backbone.placement import is_out_of_memory
from rapt.service.jobs.fork_server import ForkServer, fork_on_demand
from rapt.service.jobs.tuning_process import (
    ChildSettings,
    TuningProcess,
    limit_memory,
    measure_resident_bytes,
    run_jobs,
)
from rapt.service.jobs.worker import JobRunner
from rapt.service.storage.callers import DEVELOPER, LOCAL
from rapt.service.storage.job_rows import ENDED, cancel_job, get_job, pause_job, resume_job
from rapt.service.storage.job_runs import read_latest_run_state
from rapt.service.tuning.tuner import ReconstructionConfig, TuningConfig
from running_service import wait_until
from warm_processes import WarmProcess, run_warm

CONFIG = TuningConfig(
    prompt_length=4, epochs=20, batch_size=16, seed=3, reconstruction=ReconstructionConfig(weight=0.1, head_size=8)
)
ENDLESS = replace(CONFIG, epochs=1000)


def fork_jobs(control):
    """As the service does at its start, in a process that has done nothing else."""
    control.send(b"ready")
    fork_on_demand(control, run_jobs)


@pytest.fixture(scope="module")
def fork_server():
    """What forks the processes of these tests, whose own process has threads; the last of them ends it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = WarmProcess(fork_jobs, there)
    there.close()
    assert here.recv(8) == b"ready"
    server = ForkServer(here, process.pid)
    yield server
    server.close()
    process.wait()


def process_for(store, fork_server, **changes):
    settings = job_settings(seconds_between_run_states=0.0, **changes)
    return TuningProcess(
        ChildSettings(
            data_directory=str(store.directory.root),
            database_url=None,
            database_connections=4,
            blobs=None,
            models={"bert-tiny": "bert-tiny"},
            precision="float32",
            device="auto",
            torch_threads=1,
            debug=False,
            jobs=settings,
        ),
        fork_server=fork_server,
    )


@contextmanager
def running(store, process, **changes):
    runner = JobRunner(store, models=["bert-tiny"], run=process.run, on_close=process.close, **changes)
    runner.start()
    try:
        yield runner
    finally:
        runner.close()


def status_of(store, job):
    return get_job(store, job.id, tenant=LOCAL).status


def begins(store, job):
    wait_until(lambda: read_latest_run_state(store, job) is not None)


def test_a_job_in_a_process_is_paused_killed_and_stopped_and_ends_in_the_weights_of_one_in_a_thread(
    store, backbones, training_path, fork_server
):
    control = queue_job(store, backbones, training_path, CONFIG)
    thread = runner_on(store, backbones)
    thread.start()
    wait_until(lambda: status_of(store, control) == "succeeded")
    thread.close()
    process = process_for(store, fork_server)
    job = queue_job(store, backbones, training_path, replace(CONFIG, epochs=20))
    other = queue_job(store, backbones, training_path, ENDLESS)
    with running(store, process) as runner:
        begins(store, job)
        pause_job(store, job.id, caller=DEVELOPER, now=5)
        runner.cancel(job.id)
        begins(store, other)  # the same process runs the next
        first = process.pid
        assert first not in (None, os.getpid())
        cancel_job(store, other.id, caller=DEVELOPER, now=6)
        runner.cancel(other.id)
        before = get_job(store, job.id, tenant=LOCAL).attempt
        resume_job(store, job.id, caller=DEVELOPER, now=7)
        runner.wake()
        wait_until(lambda: get_job(store, job.id, tenant=LOCAL).attempt > before)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: status_of(store, job) in ENDED)
        assert process.pid not in (None, first)
        assert status_of(store, other) == "cancelled"
        # A worker that is stopped keeps the state of its job and ends the process.
        stopped = queue_job(store, backbones, training_path, ENDLESS)
        runner.wake()
        begins(store, stopped)
        last = process.pid
        assert measure_resident_bytes(last) > 0
    done = get_job(store, job.id, tenant=LOCAL)
    assert (done.status, done.error_message) == ("succeeded", None)
    assert weights_of(store, job) == weights_of(store, control)
    assert any("ended by SIGKILL" in message for message in messages_of(store, job))
    assert process.pid is None  # it left with its worker
    kept = get_job(store, stopped.id, tenant=LOCAL)
    assert (kept.status, kept.deaths, read_latest_run_state(store, stopped).step > 0) == ("queued", 0, True)
    wait_until(lambda: not Path(f"/proc/{last}").exists())


def test_a_job_that_kills_its_process_again_and_again_fails_with_a_reason_and_the_next_one_has_its_turn(
    store, backbones, training_path, fork_server
):
    """Killed before any state was kept, at last with what forks it; the next one is refused, it would take too much."""
    process = process_for(store, fork_server, limits=replace(LIMITS, memory_bytes=2**20))
    job = queue_job(store, backbones, training_path, ENDLESS)
    after = queue_job(store, backbones, training_path, replace(CONFIG, epochs=1))
    killed = set()

    def kill_as_soon_as_it_lives():
        if process.pid is not None and process.pid not in killed and len(killed) < 2:
            killed.add(process.pid)
            os.kill(fork_server._pid if len(killed) == 2 else process.pid, signal.SIGKILL)
        return status_of(store, job) in ENDED

    with running(store, process, most_deaths=2):
        wait_until(kill_as_soon_as_it_lives)
        failed = get_job(store, job.id, tenant=LOCAL)
        assert (failed.status, failed.error_code, failed.deaths) == ("failed", "worker_died", 2)
        assert "died 2 times" in failed.error_message
        assert "SIGKILL" in failed.error_message
        # A process that was not forked: what would do it is gone.
        wait_until(lambda: status_of(store, after) in ENDED)
    refused = get_job(store, after.id, tenant=LOCAL)
    assert (refused.status, refused.error_code) == ("failed", "too_large")
    assert "lower batch_size" in refused.error_message


@pytest.mark.skipif(sys.platform != "linux", reason="the limit holds for all memory on Linux alone")
def test_the_system_holds_the_process_to_its_memory_and_a_pass_is_told_so(tmp_path):
    """Were the estimate wrong, the pass would fail with an error of memory, which a run answers with smaller parts."""
    assert run_warm(try_limits, folder=tmp_path) == [True, False, True]


def try_limits():
    limit_memory(64 * 2**20)
    found = [fits(16), fits(256)]
    limit_memory(None)
    return [*found, fits(256)]


def fits(mebibytes):
    try:
        torch.ones(mebibytes * 2**18)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return False
        raise
    return True
