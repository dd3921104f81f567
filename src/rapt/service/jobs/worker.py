"""The worker: one thread that takes one job at a time, and says in the store how each of them ended.

Where a job runs is not its business: in a process of its own (`tuning_process`), which may die without taking anything
along, or right here (`job_run.in_this_process`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from threading import Event, Lock, Thread
from typing import Final

from rapt.errors import UnavailableError
from rapt.service.jobs.job_run import Outcome, RunsAJob, read_clock
from rapt.service.jobs.run_states import retry_while_away
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.job_runs import MOST_DEATHS, claim_next_job, fail_job, lose_job, put_back, put_back_all
from rapt.service.storage.recovery import requeue_abandoned_jobs
from rapt.service.storage.store import Store
from rapt.service.storage.worker_rows import live_as_worker
from rapt.service.traces import log_unforeseen

log = logging.getLogger(__name__)

# While the database is locked or the disk full, the worker looks again after so long, s, and then ever later.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
# How often an idle worker looks by itself, s: another process may have queued a job.
_BETWEEN_LOOKS: Final = 1.0


class JobRunner:
    """Runs queued jobs in a thread of this process, in the order of the queue, which is in the store."""

    def __init__(
        self,
        store: Store,
        *,
        models: Collection[str],
        run: RunsAJob,
        most_deaths: int = MOST_DEATHS,
        on_idle: Callable[[], None] = lambda: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the jobs of a store; nothing runs until `start`.

        Args:
            store: Store of the jobs.
            models: Names of base models; jobs for others are left to other workers.
            run: Function that runs one job.
            most_deaths: A job that has had so many without getting any further fails.
            on_idle: Called now and then while no job waits.
            on_close: Called once no job runs any more.
        """
        self._store, self._models, self._run_job = store, tuple(models), run
        self._most_deaths = most_deaths
        self._on_idle, self._on_close = on_idle, on_close
        self._closing = Event()
        self._queued = Event()
        self._guard = Lock()
        self._running: str | None = None
        self._stop_running = Event()
        self._pause = _FIRST_PAUSE
        self._thread = Thread(target=self._loop, name="rapt-worker", daemon=True)

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    def wake(self) -> None:
        """Look for a job now."""
        self._queued.set()

    def cancel(self, job_id: str) -> None:
        """Stop a job if it is the one that runs here; one that runs elsewhere finds out by itself."""
        with self._guard:
            if self._running == job_id:
                self._stop_running.set()

    def is_alive(self) -> bool:
        """Whether the worker's thread is alive."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more jobs, and stop the one that runs within a step; does not wait for it."""
        self._closing.set()
        self._queued.set()

    def close(self) -> None:
        """Stop, and wait for it."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._on_close()

    def _loop(self) -> None:
        while not self._closing.is_set():
            try:
                with live_as_worker(self._store, models=self._models) as name:
                    self._work(name)
            except (OSError, UnavailableError) as error:  # the disk has no room for its lock, or the database is away
                log_unforeseen(log, "the worker's lock", error)
                self._wait_for_the_store()

    def _work(self, name: str) -> None:
        while not self._closing.is_set():
            self._queued.clear()  # before looking, so that a job queued meanwhile is not slept over
            try:
                self._look(name)
            except Exception as error:  # of the database or the disk; a worker that ended would leave jobs behind
                log_unforeseen(log, "the worker's use of its store", error)
                self._wait_for_the_store()
        try:
            put_back_all(self._store, worker=name, now=read_clock())
        except Exception as error:  # whoever starts next finds the jobs of a worker that is gone
            log_unforeseen(log, "the worker's last use of its store", error)

    def _look(self, name: str) -> None:
        """Run the next job, or wait a moment for one."""
        put_back_all(self._store, worker=name, now=read_clock())
        requeue_abandoned_jobs(self._store)
        job = claim_next_job(
            self._store, worker=name, models=self._models, now=read_clock(), most_deaths=self._most_deaths
        )
        if job is None:
            self._pause = _FIRST_PAUSE
            self._on_idle()
            self._queued.wait(_BETWEEN_LOOKS)
            return
        log.info("job %s is running", job.id)
        with self._guard:
            self._stop_running.clear()
            self._running = job.id
        try:
            outcome = self._run_job(job, self._stop_asked)
        finally:
            with self._guard:
                self._running = None
        self._pause = _FIRST_PAUSE
        if outcome.kind == "away":
            self._wait_for_the_store()
        retry_while_away(lambda: self._say(job, outcome), should_stop=self._closing.is_set)

    def _say(self, job: StoredJob, outcome: Outcome) -> None:
        """Write into the store how a run ended; one that is done has said so itself."""
        if outcome.kind != "done":
            log.info("job %s: %s", job.id, outcome.kind)
        if outcome.kind == "failed":
            fail_job(self._store, job, code=outcome.code, message=outcome.message, now=read_clock())
        elif outcome.kind == "died":
            lose_job(self._store, job, reason=outcome.message, now=read_clock())
        elif outcome.kind == "gave way":
            message = "the job gives way to one of another tenant; it goes on from here when its turn comes"
            put_back(self._store, job, message=message, now=read_clock())
        elif outcome.kind == "away":
            message = "the service could not use its database or its disk; the job goes on from its last state"
            put_back(self._store, job, message=message, now=read_clock())
        elif outcome.kind == "stopped":  # a job that was cancelled or paused is not ours any more, and stays as it is
            put_back(self._store, job, message="the service stopped; the job is queued again", now=read_clock())

    def _wait_for_the_store(self) -> None:
        self._closing.wait(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _stop_asked(self) -> bool:
        return self._closing.is_set() or self._stop_running.is_set()


class JobRunners:
    """Several runners as one: each has a job of its own."""

    def __init__(self, runners: Sequence[JobRunner]) -> None:
        """Take several runners together as one."""
        self._runners = tuple(runners)

    def start(self) -> None:
        """Begin to run jobs."""
        for runner in self._runners:
            runner.start()

    def wake(self) -> None:
        """Look for jobs now."""
        for runner in self._runners:
            runner.wake()

    def cancel(self, job_id: str) -> None:
        """Stop a job if it runs here."""
        for runner in self._runners:
            runner.cancel(job_id)

    def is_alive(self) -> bool:
        """Whether the threads of all are alive."""
        return all(runner.is_alive() for runner in self._runners)

    def stop(self) -> None:
        """Take no more jobs, and stop those that run; does not wait for it."""
        for runner in self._runners:
            runner.stop()

    def close(self) -> None:
        """Stop, and wait for it."""
        self.stop()
        for runner in self._runners:
            runner.close()
