"""The worker: one thread that runs one job at a time.

A deliberate error ends the job with its code and message. Any other ends it with `internal_error` and the name of its
class: the message of an error that nobody foresaw may hold anything.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import Final

from rapt.errors import RaptError
from rapt.service.jobs.hyperparameters import config_from_json
from rapt.service.jobs.progress_events import ProgressEvents
from rapt.service.model.adapter import save_adapter
from rapt.service.model.backbone import Backbone
from rapt.service.model.tuner import TuningCancelled, tune
from rapt.service.storage.data_directory import sync_folder
from rapt.service.storage.file_rows import file_path, get_file
from rapt.service.storage.job_rows import (
    StoredJob,
    claim_next_job,
    fail_job,
    record_progress,
    requeue_running_jobs,
    succeed_job,
)
from rapt.service.storage.store import Store
from rapt.wire.privatized_file import read_privatized_file

log = logging.getLogger(__name__)

DEFAULT_SUFFIX: Final = "rapt"
_PAUSE_AFTER_AN_ERROR: Final = 5.0  # s; the database may be locked or the disk full


class ThreadRunner:
    """A `JobRunner` inside the serving process."""

    def __init__(self, store: Store, backbones: Mapping[str, Backbone]) -> None:
        """Take the jobs of a store; nothing runs until `start`."""
        self._store = store
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
        """Stop a job if it is the one that runs."""
        with self._guard:
            if self._running == job_id:
                self._stop_running.set()

    def close(self) -> None:
        """Stop within a step, and wait for it."""
        self._closing.set()
        self._queued.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._closing.is_set():
            self._queued.clear()  # before looking, so that a job queued meanwhile is not slept over
            try:
                job = claim_next_job(self._store, now=_now())
                if job is None:
                    self._queued.wait()
                else:
                    self._run(job)
            except Exception as error:
                log.error("the worker could not use its store: %s", type(error).__name__)
                self._closing.wait(_PAUSE_AFTER_AN_ERROR)
        requeue_running_jobs(self._store, now=_now())

    def _run(self, job: StoredJob) -> None:
        with self._guard:
            self._stop_running.clear()
            self._running = job.id
        log.info("job %s is running", job.id)
        try:
            run_job(self._store, job, backbones=self._backbones, should_stop=self._should_stop)
        except TuningCancelled:
            log.info("job %s stopped", job.id)  # by a cancellation, which the store knows, or by `close`
        except RaptError as error:
            log.warning("job %s failed: %s", job.id, error.code)
            fail_job(self._store, job.id, code=error.code, message=str(error), now=_now())
        except Exception as error:
            log.error("job %s failed: %s", job.id, type(error).__name__)
            message = f"an error that the service did not foresee, {type(error).__name__}; tell the provider the job id"
            fail_job(self._store, job.id, code=RaptError.code, message=message, now=_now())
        finally:
            with self._guard:
                self._running = None

    def _should_stop(self) -> bool:
        return self._closing.is_set() or self._stop_running.is_set()


def run_job(
    store: Store, job: StoredJob, *, backbones: Mapping[str, Backbone], should_stop: Callable[[], bool]
) -> None:
    """Tune, save the adapter, and publish it as a model, unless the job was cancelled meanwhile.

    Raises:
        RaptError: The job cannot be done.
        TuningCancelled: `should_stop` said yes.
    """
    backbone = backbones[job.model]
    training = read_privatized_file(file_path(store, get_file(store, job.training_file)))
    # The hash says that it is the same vocabulary; the name is whatever the client called it.
    training = replace(training, manifest=replace(training.manifest, model=backbone.model))
    config = config_from_json(job.method, seed=job.seed)
    progress = ProgressEvents(
        lambda message, data: record_progress(store, job.id, message=message, data=data, now=_now())
    )
    adapter = tune(backbone, training, config=config, on_progress=progress.add, should_stop=should_stop)
    name = secrets.token_hex(12)
    save_adapter(adapter, store.directory.adapter(name))
    sync_folder(store.directory.adapters)
    published = succeed_job(
        store,
        job,
        fine_tuned_model=f"ft:{job.model}:{job.suffix or DEFAULT_SUFFIX}:{name[:12]}",
        adapter=name,
        trained_tokens=training.manifest.tokens * config.epochs,
        now=_now(),
    )
    if not published:
        store.directory.remove_adapter(name)


def _now() -> int:
    return int(time.time())
