"""One job from its claim to its model, whatever process it runs in, with its events and checkpoints, and how it ended.

A deliberate error ends the job with its code and message. Any other ends it with `internal_error` and the name of its
class: the message of an error that nobody foresaw may hold anything. A database or a disk that cannot be used at the
moment ends nothing: the run waits for it, with all that it has reached in memory.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from rapt.errors import RaptError, UnavailableError, WireError
from rapt.service.adapter.adapter import Adapter, adapter_to_files
from rapt.service.backbone.backbone import Backbone
from rapt.service.jobs.hyperparameters import config_from_json
from rapt.service.jobs.job_limits import JobSettings, check_cost
from rapt.service.jobs.job_log import JobLog
from rapt.service.jobs.run_states import STEPS_BETWEEN_RUN_STATES, RunStates, retry_while_away
from rapt.service.storage.file_rows import StoredFile, get_file, open_file
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.job_runs import add_checkpoint_model, is_still_mine, others_wait, record_progress, succeed_job
from rapt.service.storage.store import Store
from rapt.service.traces import log_unforeseen
from rapt.service.tuning.tuner import Progress, TuningCancelled, TuningConfig, batches_per_epoch, tune
from rapt.wire.adapter_files import pack_adapter
from rapt.wire.privatized_file import PrivatizedFile, read_bounded_lines, read_privatized_lines

STEPS_BETWEEN_EVENTS: Final = 10
# A long run has its events further apart, so that no job fills the database.
MOST_EVENTS: Final = 500
log = logging.getLogger(__name__)

# A run of more epochs has its checkpoints further apart, so that no job fills the disk. The last epoch has one always,
# also where a run stops early; then the one of its last step that was planned is missing, so there are no more of them.
MOST_CHECKPOINTS: Final = 10
# How often a run asks the store whether it may go on, s: a step of a small model takes milliseconds.
BETWEEN_QUESTIONS: Final = 0.1
_CHUNK: Final = 1024 * 1024
T = TypeVar("T")


class ProgressEvents:
    """Takes every step; reports the means since the last report, every few steps and at the last one."""

    def __init__(self, report: Callable[[str, dict[str, Any]], None]) -> None:
        """Report to `report(message, data)`."""
        self._report = report
        self._since: list[Progress] = []

    def add(self, progress: Progress) -> None:
        """One step was made."""
        self._since.append(progress)
        every = max(STEPS_BETWEEN_EVENTS, math.ceil(progress.steps / MOST_EVENTS))
        if progress.step % every and not progress.last and not _shows_validation(progress):
            return
        means = {name: sum(item.losses[name] for item in self._since) / len(self._since) for name in progress.losses}
        place = {"step": progress.step, "total_steps": progress.steps, "epoch": progress.epoch + 1}
        self._since.clear()
        message = f"step {progress.step}/{progress.steps}: training loss={means['train_loss']:.4f}"
        self._report(message, {**place, **means, **progress.validation})


def _shows_validation(progress: Progress) -> bool:
    """Whether a step was validated after; of a run of very many epochs, only some."""
    epochs = progress.steps * (progress.epoch + 1) // progress.step
    return bool(progress.validation) and not (progress.epoch + 1) % math.ceil(epochs / MOST_EVENTS)


class EpochCheckpoints:
    """The checkpoints of one job."""

    def __init__(self, store: Store, job: StoredJob, *, epochs: int, max_bytes: int) -> None:
        """Keep at most `MOST_CHECKPOINTS` of a run of so many epochs, as long as the tenant's bytes have room."""
        self._store = store
        self._job = job
        self._epochs = epochs
        self._every = math.ceil(epochs / MOST_CHECKPOINTS)
        self._max_bytes = max_bytes

    def keep(self, progress: Progress, adapter: Adapter) -> None:
        """An epoch has ended with this step."""
        epoch = progress.epoch + 1
        # Counted from the last one back.
        if (self._epochs - epoch) % self._every and not progress.last:
            return
        with self._store.directory.stage_bytes(pack_adapter(adapter_to_files(adapter))) as staged:
            outcome = add_checkpoint_model(
                self._store,
                self._job,
                staged,
                step=progress.step,
                metrics={"step": progress.step, **progress.losses, **progress.validation},
                now=int(time.time()),
                max_bytes=self._max_bytes,
            )
        if outcome == "no room":
            log.warning("job %s: no room for the checkpoint of step %d", self._job.id, progress.step)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the run of a job ended.

    Attributes:
        kind: `done`; `stopped` by a wish, with its state kept; `gave way` to another tenant's job, likewise; `away`,
            because the store cannot be used; `failed` for good; or `died`, with the process that it ran in.
        code: Code of the error of a job that failed, from the error tree.
        message: Reason why it failed or died; one line for its tenant.
    """

    kind: Literal["done", "stopped", "gave way", "away", "failed", "died"]
    code: str = ""
    message: str = ""


# Runs a claimed job until it has ended, or until the function says that it shall stop.
RunsAJob = Callable[[StoredJob, Callable[[], bool]], Outcome]


class GaveWay(Exception):
    """The job of another tenant has waited long enough."""


def make_runner_here(store: Store, backbones: Mapping[str, Backbone], settings: JobSettings) -> RunsAJob:
    """Runs jobs in the thread that asks for it, on models that are loaded here."""

    def run(job: StoredJob, should_stop: Callable[[], bool]) -> Outcome:
        return run_to_outcome(
            job,
            lambda: run_job(
                store,
                job,
                backbone=backbones[job.model],
                models=tuple(backbones),
                should_stop=should_stop,
                settings=settings,
            ),
        )

    return run


def run_to_outcome(job: StoredJob, run: Callable[[], None]) -> Outcome:
    """How a run ended, errors and all; what nobody foresaw is in the log with its place."""
    try:
        run()
    except TuningCancelled:
        return Outcome(kind="stopped")
    except GaveWay:
        return Outcome(kind="gave way")
    except UnavailableError as error:
        log.warning("job %s waits: %s", job.id, error.code)
        return Outcome(kind="away")
    except RaptError as error:
        log.warning("job %s failed: %s", job.id, error.code)
        return Outcome(kind="failed", code=error.code, message=str(error))
    except Exception as error:  # it ends this job and not the worker
        log_unforeseen(log, f"job {job.id}", error)
        message = f"internal error, {type(error).__name__}; tell the provider the job id"
        return Outcome(kind="failed", code=RaptError.code, message=message)
    return Outcome(kind="done")


def run_job(
    store: Store,
    job: StoredJob,
    *,
    backbone: Backbone,
    models: Collection[str],
    should_stop: Callable[[], bool],
    settings: JobSettings,
    between_questions: float = BETWEEN_QUESTIONS,
) -> None:
    """Tune, keep the adapter, and publish it as a model, unless the job was cancelled meanwhile.

    Args:
        store: Store of the service.
        job: A claimed job.
        backbone: Backbone of the job's model.
        models: Names of all models that this worker takes jobs of: for one of them, another tenant's may wait.
        should_stop: Asked before each step.
        settings: Limits of a job.
        between_questions: Time between two questions to the store, s.

    Raises:
        RaptError: The job cannot be done.
        TuningCancelled: `should_stop` said yes, or the job was paused or cancelled.
        GaveWay: The slice of the job is over and another tenant's job waits.
    """

    def waiting(work: Callable[[], T]) -> T:
        return retry_while_away(work, should_stop=should_stop)

    config = config_from_json(job.method, seed=job.seed)
    names = [job.training_file] if job.validation_file is None else [job.training_file, job.validation_file]
    rows = waiting(lambda: [get_file(store, name, tenant=job.tenant) for name in names])
    check_cost(config, files=rows, manifest=None, backbone=backbone, limits=settings.limits)
    training, *others = waiting(lambda: [_read(store, row) for row in rows])
    targets = (len(record.target_ids or ()) for file in (training, *others) for record in file.records)
    recompute = check_cost(
        config,
        files=rows,
        manifest=training.manifest,
        backbone=backbone,
        limits=settings.limits,
        longest_target=max(targets, default=0),
    )
    turn = _Turn(store, job, should_stop, waiting, models=models, settings=settings, between=between_questions)
    states = RunStates(store, job, between=settings.seconds_between_run_states, should_stop=should_stop)

    figures = JobLog(settings.log_folder, tenant=job.tenant, job_id=job.id, logger=settings.logger)

    def report(message: str, data: dict[str, Any]) -> None:
        waiting(lambda: record_progress(store, job, message=message, data=data, now=read_clock()))
        figures.add(data)

    warnings: list[str] = []

    def warn(message: str) -> None:
        log.warning("job %s: %s", job.id, message)
        warnings.append(message)

    progress = ProgressEvents(report)
    checkpoints = EpochCheckpoints(store, job, epochs=config.epochs, max_bytes=settings.tenant_bytes)
    try:
        adapter = tune(
            backbone,
            training,
            config=config,
            validation=others[0] if others else None,
            on_progress=progress.add,
            should_stop=lambda: states.stops(turn.over()),
            on_run_state=lambda state, _adapter: states.keep(state),
            run_state_every=STEPS_BETWEEN_RUN_STATES,
            on_epoch=lambda step, adapter: waiting(lambda: checkpoints.keep(step, adapter)),
            resume_from=waiting(states.latest),
            on_warning=warn,
            recompute=recompute,
        )
    except TuningCancelled:
        if turn.gives_way:
            raise GaveWay from None
        raise
    finally:
        figures.close()
    made, packed = _Made.of(adapter, training, config=config), pack_adapter(adapter_to_files(adapter))

    def publish() -> None:
        with store.directory.stage_bytes(packed) as staged:
            succeed_job(
                store, job, staged, trained_tokens=made.tokens, notes=(*made.notes, *warnings), now=read_clock()
            )

    waiting(publish)


@dataclass(frozen=True)
class _Made:
    """Outcome of a run that has ended: what it had read, and what is to be said of its end."""

    tokens: int
    notes: tuple[str, ...]

    @classmethod
    def of(cls, adapter: Adapter, training: PrivatizedFile, *, config: TuningConfig) -> _Made:
        """From the figures on the card. A run ends with the last step of an epoch, early or not."""
        figures = adapter.card.metrics
        epochs = int(figures["step"]) // batches_per_epoch(len(training.records), size=config.batch_size)
        notes: tuple[str, ...] = ()
        if epochs < config.epochs:
            notes = (
                f"training stopped early after epoch {epochs} of {config.epochs}, at step {figures['step']}: the "
                f"validation loss was lowest at step {figures['best_step']}, {figures['full_valid_loss']:.4f}, and not "
                f"lower in patience={config.patience} epochs since; the model is the one of that step",
            )
        return cls(training.manifest.tokens * epochs, notes)


class _Turn:
    """Asks whether a run may go on: whoever started it, the store, and the jobs of other tenants.

    The store is asked before each step, but not more often than makes sense.
    """

    def __init__(
        self,
        store: Store,
        job: StoredJob,
        should_stop: Callable[[], bool],
        waiting: Callable[[Callable[[], bool]], bool],
        *,
        models: Collection[str],
        settings: JobSettings,
        between: float,
    ) -> None:
        self._store, self._job, self._should_stop, self._models = store, job, should_stop, models
        self._waiting = waiting
        self._slice, self._between = settings.slice_seconds, between
        self._begun = self._asked = time.monotonic()
        self._made = 0
        self.gives_way = False

    def over(self) -> bool:
        """Whether the run shall stop before its next step."""
        if self._should_stop():
            return True
        self._made += 1
        now = time.monotonic()
        if now - self._asked < self._between:
            return False
        self._asked = now
        if not self._waiting(lambda: is_still_mine(self._store, self._job)):
            return True
        # A run whose single step is longer than a slice gets further all the same.
        late = self._slice > 0 and now - self._begun >= self._slice and self._made > 1
        self.gives_way = late and self._waiting(lambda: others_wait(self._store, self._job, models=self._models))
        return self.gives_way


def _read(store: Store, file: StoredFile) -> PrivatizedFile:
    with open_file(store, file) as stream:
        try:
            return read_privatized_lines(read_bounded_lines(stream))
        except WireError:
            # If these are not the bytes that were uploaded, that is what has to be said.
            while stream.read(_CHUNK):
                pass
            raise


def read_clock() -> int:
    """Return the seconds since 1970."""
    return int(time.time())
