"""The worker: one thread that runs one job at a time.

A deliberate error ends the job with its code and message. Any other ends it with `internal_error` and the name of its
class: the message of an error that nobody foresaw may hold anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Any, Final

from rapt.errors import RaptError, UnavailableError, WireError
from rapt.service.jobs.epoch_checkpoints import EpochCheckpoints
from rapt.service.jobs.hyperparameters import config_from_json
from rapt.service.jobs.patience import patiently
from rapt.service.jobs.progress_events import ProgressEvents
from rapt.service.jobs.run_states import SECONDS_BETWEEN_CHECKPOINTS, STEPS_BETWEEN_CHECKPOINTS, RunStates
from rapt.service.model.adapter import adapter_to_files
from rapt.service.model.backbone import Backbone
from rapt.service.model.tuner import TuningCancelled, tune
from rapt.service.storage.file_rows import get_file, open_file
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.job_runs import (
    claim_next_job,
    fail_job,
    is_still_mine,
    record_progress,
    succeed_job,
)
from rapt.service.storage.recovery import requeue_abandoned_jobs
from rapt.service.storage.store import Store
from rapt.service.storage.worker_locks import living_worker
from rapt.wire.adapter_archive import pack_adapter
from rapt.wire.privatized_file import PrivatizedFile, bounded_lines, read_privatized_lines

log = logging.getLogger(__name__)

_PAUSE_AFTER_AN_ERROR: Final = 5.0  # s; the database may be locked or the disk full
# How often a run asks the store whether it may go on, s: a step of a small model takes milliseconds.
_BETWEEN_QUESTIONS: Final = 0.1
# How often an idle worker looks by itself, s: another process may have queued a job.
_BETWEEN_LOOKS: Final = 1.0
_CHUNK: Final = 1024 * 1024


class ThreadRunner:
    """A `JobRunner` inside the serving process."""

    def __init__(
        self,
        store: Store,
        backbones: Mapping[str, Backbone],
        *,
        between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
        tenant_bytes: int,
    ) -> None:
        """Take the jobs of a store; nothing runs until `start`.

        Args:
            store: Where the jobs are.
            backbones: By name; jobs for others are left to other workers.
            between_checkpoints: How much work a crash may cost, s.
            tenant_bytes: That a tenant without a quota of its own may have stored.
        """
        self._store = store
        self._tenant_bytes = tenant_bytes
        self._between_checkpoints = between_checkpoints
        self._backbones = backbones
        self._closing = Event()
        self._queued = Event()
        self._guard = Lock()
        self._running: str | None = None
        self._stop_running = Event()
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
        """Whether it works."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop within a step, and wait for it."""
        self._closing.set()
        self._queued.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        with living_worker(self._store.directory) as name:
            while not self._closing.is_set():
                self._queued.clear()  # before looking, so that a job queued meanwhile is not slept over
                try:
                    requeue_abandoned_jobs(self._store)
                    job = claim_next_job(self._store, worker=name, models=tuple(self._backbones), now=_now())
                    if job is None:
                        self._queued.wait(_BETWEEN_LOOKS)
                    else:
                        self._run(job)
                except Exception as error:  # of the database or the disk; a worker that ended would leave jobs behind
                    log.error("the worker could not use its store: %s", type(error).__name__)
                    self._closing.wait(_PAUSE_AFTER_AN_ERROR)
        with suppress(UnavailableError):  # then the next start does it
            requeue_abandoned_jobs(self._store)

    def _run(self, job: StoredJob) -> None:
        with self._guard:
            self._stop_running.clear()
            self._running = job.id
        log.info("job %s is running", job.id)
        try:
            run_job(
                self._store,
                job,
                backbones=self._backbones,
                should_stop=self._stop_asked,
                between_checkpoints=self._between_checkpoints,
                tenant_bytes=self._tenant_bytes,
            )
        except TuningCancelled:
            log.info("job %s stopped", job.id)  # by a cancellation, which the store knows, or by `close`
        except RaptError as error:
            log.warning("job %s failed: %s", job.id, error.code)
            self._fail(job, code=error.code, message=str(error))
        except Exception as error:  # it ends this job and not the worker
            log.error("job %s failed: %s", job.id, type(error).__name__)
            message = f"an error that the service did not foresee, {type(error).__name__}; tell the provider the job id"
            self._fail(job, code=RaptError.code, message=message)
        finally:
            with self._guard:
                self._running = None

    def _fail(self, job: StoredJob, *, code: str, message: str) -> None:
        patiently(
            lambda: fail_job(self._store, job, code=code, message=message, now=_now()), should_stop=self._closing.is_set
        )

    def _stop_asked(self) -> bool:
        return self._closing.is_set() or self._stop_running.is_set()


def run_job(
    store: Store,
    job: StoredJob,
    *,
    backbones: Mapping[str, Backbone],
    should_stop: Callable[[], bool],
    tenant_bytes: int,
    between_questions: float = _BETWEEN_QUESTIONS,
    between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
) -> None:
    """Tune, keep the adapter, and publish it as a model, unless the job was cancelled meanwhile.

    While the store is away the run waits where it is.

    Args:
        store: Where.
        job: Claimed.
        backbones: By name.
        should_stop: Asked before each step.
        tenant_bytes: That a tenant without a quota of its own may have stored; beyond it checkpoints are left out.
        between_questions: How often the store is asked as well, s.
        between_checkpoints: How much work a crash may cost, s.

    Raises:
        RaptError: The job cannot be done.
        TuningCancelled: `should_stop` said yes, or the job was paused or cancelled.
    """
    backbone = backbones[job.model]

    def read(file_id: str) -> PrivatizedFile:
        return patiently(lambda: _read(store, job, file_id), should_stop=should_stop)

    training = read(job.training_file)
    validation = None if job.validation_file is None else read(job.validation_file)
    config = config_from_json(job.method, seed=job.seed)

    def report(message: str, data: dict[str, Any]) -> None:
        patiently(lambda: record_progress(store, job, message=message, data=data, now=_now()), should_stop=should_stop)

    progress = ProgressEvents(report)
    stop = _asking(store, job, should_stop, between=between_questions)
    states = RunStates(store, job, between=between_checkpoints, should_stop=should_stop)
    checkpoints = EpochCheckpoints(store, job, epochs=config.epochs, max_bytes=tenant_bytes)
    adapter = tune(
        backbone,
        training,
        config=config,
        validation=validation,
        on_progress=progress.add,
        should_stop=lambda: states.stops(stop()),
        on_checkpoint=lambda checkpoint, _adapter: states.keep(checkpoint),
        checkpoint_every=STEPS_BETWEEN_CHECKPOINTS,
        on_epoch=lambda step, adapter: patiently(lambda: checkpoints.keep(step, adapter), should_stop=should_stop),
        resume_from=patiently(states.latest, should_stop=should_stop),
    )
    packed, tokens = pack_adapter(adapter_to_files(adapter)), training.manifest.tokens * config.epochs

    def publish() -> None:
        with store.directory.stage_bytes(packed) as staged:
            succeed_job(store, job, staged, trained_tokens=tokens, now=_now())

    patiently(publish, should_stop=should_stop)


def _read(store: Store, job: StoredJob, file_id: str) -> PrivatizedFile:
    with open_file(store, get_file(store, file_id, tenant=job.tenant)) as stream:
        try:
            return read_privatized_lines(bounded_lines(stream))
        except WireError:
            # If these are not the bytes that were uploaded, that is what has to be said.
            while stream.read(_CHUNK):
                pass
            raise


def _asking(store: Store, job: StoredJob, should_stop: Callable[[], bool], *, between: float) -> Callable[[], bool]:
    """Also asks the store whether the job is still ours, before each step but not more often than makes sense."""
    asked = time.monotonic()

    def stop() -> bool:
        nonlocal asked
        if should_stop():
            return True
        if time.monotonic() - asked < between:
            return False
        asked = time.monotonic()
        return not patiently(lambda: is_still_mine(store, job), should_stop=should_stop)

    return stop


def _now() -> int:
    return int(time.time())
