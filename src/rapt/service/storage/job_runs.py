"""Changes that workers make to jobs: take one, tell of it, end it. Any number of them, in any number of processes.

The queue is fair: it serves the tenant that it has not served for longest, and of that tenant the job of the highest
priority, and of those the oldest. So one tenant's thousand jobs delay another's one by no more than the job that runs.

A worker that takes a job writes its name and a new number of the attempt into the row, and every later change asks for
both. A worker that was thought dead, or that missed a pause, changes nothing any more: no job ends twice.

A job that kills what runs it is not begun for ever: each death is counted until a state is kept, and after some the job
fails with the reason of the last one.

A checkpoint that can be asked is what a run would have left at the end of an epoch, as a model with a step.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from rapt.errors import NotFoundError, QuotaError
from rapt.service.storage.data_directory import StagedFile
from rapt.service.storage.database import Cursor, Page, find, make_value, read_page
from rapt.service.storage.job_rows import StoredJob, add_event, delete_run_states
from rapt.service.storage.model_rows import StoredModel, insert_model, make_adapter_name, model_name
from rapt.service.storage.store import Store, discard_run_states, naming, release
from rapt.service.storage.tables import JOBS, MODELS, RUN_STATES, TENANTS
from rapt.service.storage.tenant_rows import check_bytes

DEFAULT_SUFFIX: Final = "rapt"
MOST_DEATHS: Final = 3
# The code of a job that failed because whatever ran it died too often.
WORKER_DIED: Final = "worker_died"
MODEL_NOT_SERVED: Final = "the base model is not served any more; the job waits until it is again, or can be cancelled"


@dataclass(frozen=True, kw_only=True)
class StoredRunState:
    """A state that a run can go on from.

    Attributes:
        step: Number of steps made.
        folder: Name of what is on the disk, made by us; or digest of a blob.
        bytes: Size of it.
    """

    step: int
    folder: str
    bytes: int


def claim_next_job(
    store: Store, *, worker: str, models: Collection[str], now: int, most_deaths: int = MOST_DEATHS
) -> StoredJob | None:
    """The job whose turn it is, now running; None when none waits for one of these models.

    Args:
        store: Store of the service.
        worker: Name of the worker that takes it.
        models: Names of the base models that the worker has.
        now: Present Unix time, s.
        most_deaths: A job that has had so many without getting any further fails in place of being begun again.
    """
    with store.database.write() as connection:
        folders = _give_up(connection, most_deaths=most_deaths, now=now)
        claimed = _claim(connection, worker=worker, models=models, now=now)
    discard_run_states(store, folders)
    return claimed


def _give_up(connection: Connection, *, most_deaths: int, now: int) -> list[str]:
    hopeless = select(JOBS.c.id, JOBS.c.deaths, JOBS.c.last_death).where(
        JOBS.c.status == "queued", JOBS.c.deaths >= most_deaths
    )
    folders: list[str] = []
    for row in connection.execute(hopeless).all():
        message = (
            f"the process that ran the job died {row.deaths} times without getting any further, at last: "
            f"{row.last_death}; ask for a smaller batch_size or shorter records, or tell the provider the job id"
        )
        values = {"status": "failed", "finished_at": now, "error_code": WORKER_DIED, "error_message": message}
        connection.execute(update(JOBS).where(JOBS.c.id == row.id).values(values))
        add_event(connection, row.id, message=f"the job failed: {message}", level="error", now=now)
        folders += delete_run_states(connection, row.id)
    return folders


def _claim(connection: Connection, *, worker: str, models: Collection[str], now: int) -> StoredJob | None:
    turn = (
        select(JOBS.c.id, JOBS.c.tenant, JOBS.c.attempt)
        .join(TENANTS, TENANTS.c.name == JOBS.c.tenant)
        .where(JOBS.c.status == "queued", JOBS.c.model.in_(models))
        .order_by(TENANTS.c.served, JOBS.c.priority.desc(), JOBS.c.number)
        .limit(1)
    )
    row = connection.execute(turn).first()
    if row is None:
        return None
    latest = connection.execute(select(func.max(TENANTS.c.served))).scalar_one()
    connection.execute(update(TENANTS).where(TENANTS.c.name == row.tenant).values(served=latest + 1))
    taken = {"status": "running", "worker": worker, "attempt": row.attempt + 1}
    connection.execute(update(JOBS).where(JOBS.c.id == row.id).values(taken))
    add_event(connection, row.id, message="the job is running", now=now)
    return make_value(find(connection, JOBS, row.id, tenant=row.tenant), StoredJob)


def warn_of_models_not_served(store: Store, *, served: Collection[str], now: int) -> list[str]:
    """Add an event to each job that waits for a base model that is not served any more; returns their ids.

    Such a job is neither failed nor forgotten: it goes on when the model is back.
    """
    waiting = select(JOBS.c.id).where(JOBS.c.status.in_(("queued", "paused")), JOBS.c.model.not_in(served))
    with store.database.read() as connection:
        if connection.execute(waiting.limit(1)).first() is None:
            return []
    with store.database.write() as connection:
        ids = list(connection.execute(waiting).scalars())
        for job_id in ids:
            add_event(connection, job_id, message=MODEL_NOT_SERVED, level="warn", now=now)
    return ids


def others_wait(store: Store, job: StoredJob, *, models: Collection[str]) -> bool:
    """Whether a job of another tenant waits for one of these models."""
    waiting = select(JOBS.c.number).where(
        JOBS.c.status == "queued", JOBS.c.model.in_(models), JOBS.c.tenant != job.tenant
    )
    with store.database.read() as connection:
        return connection.execute(waiting.limit(1)).first() is not None


def put_back(store: Store, job: StoredJob, *, message: str, now: int) -> bool:
    """The job waits again, in its place, and goes on from its last state; False when it is not this worker's any more.

    Nothing has gone wrong with it: no death is counted.
    """
    with store.database.write() as connection:
        change = update(JOBS).where(_select_mine(job), JOBS.c.status == "running").values(status="queued")
        if connection.execute(change).rowcount != 1:
            return False
        add_event(connection, job.id, message=message, now=now)
        return True


def put_back_all(store: Store, *, worker: str, now: int) -> int:
    """Queue again what a worker that runs nothing is said to run: it could not say how it ended. Returns how many."""
    running = select(JOBS.c.id).where(JOBS.c.status == "running", JOBS.c.worker == worker)
    with store.database.read() as connection:
        if connection.execute(running).first() is None:  # nearly always; a writer would hold up the others
            return 0
    message = "the service could not use its database or its disk; the job goes on from its last state"
    with store.database.write() as connection:
        left = connection.execute(running).scalars().all()
        for job_id in left:
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(status="queued"))
            add_event(connection, job_id, message=message, level="warn", now=now)
    return len(left)


def lose_job(store: Store, job: StoredJob, *, reason: str, now: int) -> bool:
    """Put a job whose process has died back into the queue, and count the death.

    Args:
        store: Store of the service.
        job: The claimed job.
        reason: Kind of the death; words of ours, which the tenant reads.
        now: Present Unix time, s.

    Returns:
        False when the job is not this worker's any more.
    """
    with store.database.write() as connection:
        if not is_mine(connection, job):
            return False
        _count_death(connection, job.id, reason=reason, now=now)
        return True


def _count_death(connection: Connection, job_id: str, *, reason: str, now: int) -> None:
    values = {"status": "queued", "deaths": JOBS.c.deaths + 1, "last_death": reason}
    connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(values))
    message = f"the process that ran the job died: {reason}; the job is queued again"
    add_event(connection, job_id, message=message, level="warn", now=now)


def is_still_mine(store: Store, job: StoredJob) -> bool:
    """Whether a job still runs, and here: neither cancelled nor paused, nor deleted, nor taken by another."""
    with store.database.read() as connection:
        return is_mine(connection, job)


def record_progress(store: Store, job: StoredJob, *, message: str, data: Mapping[str, Any], now: int) -> bool:
    """Add an event of type `metrics`; False when the job is not this worker's any more."""
    with store.database.write() as connection:
        if not is_mine(connection, job):
            return False
        add_event(connection, job.id, message=message, data=data, now=now)
        return True


def add_run_state(store: Store, job: StoredJob, *, step: int, folder: str, now: int, size: int | None = None) -> bool:
    """A state that is kept becomes the one to go on from; the one before is deleted.

    Args:
        store: Store of the service.
        job: The claimed job.
        step: Number of steps made.
        folder: Name of the folder, or digest of the blob.
        now: Present Unix time, s.
        size: Bytes of the blob; None for a folder.

    Returns:
        False when the caller must delete the folder: the job was cancelled, deleted, or taken by another worker.
    """
    if size is None:
        size = store.directory.run_state_bytes(folder)
    with store.database.write() as connection:
        # A paused job keeps its state: that is what it will go on from.
        if not is_mine(connection, job, status=("running", "paused")):
            return False
        doomed = delete_run_states(connection, job.id)
        values = {"id": f"ftstate-{secrets.token_hex(12)}", "job_id": job.id, "created_at": now, "step": step}
        values |= {"folder": folder, "bytes": size}
        connection.execute(insert(RUN_STATES).values(values))
        # It got further: what killed it before does not count any more.
        connection.execute(update(JOBS).where(_select_mine(job)).values(deaths=0, last_death=None))
    # It is its own predecessor if it was added before, and the word that it was never came.
    discard_run_states(store, [name for name in doomed if name != folder])
    return True


def read_latest_run_state(store: Store, job: StoredJob) -> StoredRunState | None:
    """The state to go on from; None when there is none."""
    with store.database.read() as connection:
        row = connection.execute(select(RUN_STATES).where(RUN_STATES.c.job_id == job.id)).first()
    return None if row is None else make_value(row, StoredRunState)


def succeed_job(
    store: Store, job: StoredJob, staged: StagedFile, *, trained_tokens: int, now: int, notes: Sequence[str] = ()
) -> bool:
    """Keep an adapter and publish it: the job has succeeded and its model exists, both or neither.

    Args:
        store: Store of the service.
        job: The claimed job.
        staged: The archive of the adapter.
        trained_tokens: Text tokens seen, over all epochs.
        now: Present Unix time, s.
        notes: Events to be added before the last one.

    Returns:
        False when nothing was kept: the job is not this worker's any more.
    """
    model = make_result(job, staged, now=now)
    values: dict[str, str | int] = {"fine_tuned_model": model.id, "trained_tokens": trained_tokens}
    folders: list[str] = []
    with naming(store, staged), store.database.write() as connection:
        mine = _end(connection, job, status="succeeded", now=now, values=values)
        if mine:
            insert_model(connection, model)
            for note in notes:
                add_event(connection, job.id, message=note, now=now)
            add_event(connection, job.id, message=f"the model {model.id} is ready", now=now)
            folders = delete_run_states(connection, job.id)
    if not mine:
        release(store, [staged.sha256])
    discard_run_states(store, folders)
    return mine


def fail_job(store: Store, job: StoredJob, *, code: str, message: str, now: int) -> bool:
    """The job has failed; False when it is not this worker's any more."""
    with store.database.write() as connection:
        if not _end(connection, job, status="failed", now=now, values={"error_code": code, "error_message": message}):
            return False
        add_event(connection, job.id, message=f"the job failed: {message}", level="error", now=now)
        folders = delete_run_states(connection, job.id)
    discard_run_states(store, folders)
    return True


def requeue_jobs(store: Store, *, is_alive: Callable[[str], bool], now: int) -> int:
    """Queue again what was run by workers that died; it keeps its place, and the death is counted. Returns how many."""
    running = select(JOBS.c.id, JOBS.c.worker).where(JOBS.c.status == "running")

    def abandoned_of(connection: Connection) -> list[str]:
        return [row.id for row in connection.execute(running) if row.worker is None or not is_alive(row.worker)]

    with store.database.read() as connection:
        if not abandoned_of(connection):  # nearly always; a writer would hold up the others
            return 0
    with store.database.write() as connection:
        abandoned = abandoned_of(connection)
        for job_id in abandoned:
            _count_death(connection, job_id, reason="its worker was killed or the machine stopped", now=now)
    return len(abandoned)


def name_result(job: StoredJob) -> str:
    """The name of the model that a job makes; it is known before the model is."""
    number = job.id.removeprefix("ftjob-")
    return model_name(base=job.model, tenant=job.tenant, suffix=job.suffix or DEFAULT_SUFFIX, number=number)


def make_result(job: StoredJob, staged: StagedFile, *, now: int) -> StoredModel:
    """Make the row of what a job leaves: `staged` is the archive of its adapter."""
    return StoredModel(
        id=name_result(job),
        tenant=job.tenant,
        base=job.model,
        job_id=job.id,
        adapter=make_adapter_name(),
        created_at=now,
        bytes=staged.bytes,
        sha256=staged.sha256,
    )


def is_mine(connection: Connection, job: StoredJob, *, status: tuple[str, ...] = ("running",)) -> bool:
    """Whether a worker that has claimed a job may still change it."""
    query = select(JOBS.c.number).where(_select_mine(job), JOBS.c.status.in_(status))
    return connection.execute(query).first() is not None


def _select_mine(job: StoredJob) -> ColumnElement[bool]:
    return (JOBS.c.id == job.id) & (JOBS.c.worker == job.worker) & (JOBS.c.attempt == job.attempt)


def _end(connection: Connection, job: StoredJob, *, status: str, now: int, values: Mapping[str, str | int]) -> bool:
    change = update(JOBS).where(_select_mine(job), JOBS.c.status == "running")
    return connection.execute(change.values(status=status, finished_at=now, **values)).rowcount == 1


_ID: Final = "ftckpt-"
Kept = Literal["kept", "no room", "not mine", "known"]


def add_checkpoint_model(
    store: Store,
    job: StoredJob,
    staged: StagedFile,
    *,
    step: int,
    metrics: Mapping[str, Any],
    now: int,
    max_bytes: int,
) -> Kept:
    """Keep an adapter as a checkpoint of a job that runs.

    Args:
        store: Store of the service.
        job: The claimed job.
        staged: The archive of the adapter.
        step: Number of steps made.
        metrics: Losses and accuracy, numbers only.
        now: Present Unix time, s.
        max_bytes: Most bytes that a tenant without a quota of its own may store.

    Returns:
        Whether it is kept. If not, the tenant's quota has no room for it, the job is not this worker's any more, or an
        earlier attempt has kept the same step, to the same weights.
    """
    left = make_result(job, staged, now=now)
    model = replace(left, id=f"{left.id}:ckpt-step-{step}", step=step, metrics=dict(metrics))
    with naming(store, staged), store.database.write() as connection:
        outcome = _read_outcome(connection, job, model, max_bytes=max_bytes)
        if outcome == "kept":
            insert_model(connection, model)
    if outcome != "kept":
        release(store, [staged.sha256])
    return outcome


def make_checkpoint_id(model: StoredModel) -> str:
    """The id of a checkpoint, beside its name as a model."""
    return _ID + model.adapter


def list_checkpoint_models(store: Store, job_id: str, cursor: Cursor, *, tenant: str) -> Page[StoredModel]:
    """One page of a job's checkpoints. Raises `NotFoundError` for an unknown job or cursor."""
    within = (MODELS.c.job_id == job_id) & MODELS.c.step.is_not(None)
    with store.database.read() as connection:
        find(connection, JOBS, job_id, tenant=tenant)
        if cursor.after is not None:
            named = select(MODELS.c.id).where(within, MODELS.c.adapter == cursor.after.removeprefix(_ID))
            start = connection.execute(named).scalar()
            if start is None:
                raise NotFoundError("no such object among the checkpoints for the cursor after; start without it")
            cursor = replace(cursor, after=start)
        rows, has_more = read_page(connection, MODELS, cursor, where=within)
    return Page(tuple(make_value(row, StoredModel) for row in rows), has_more)


def _read_outcome(connection: Connection, job: StoredJob, model: StoredModel, *, max_bytes: int) -> Kept:
    if not is_mine(connection, job):
        return "not mine"
    if connection.execute(select(MODELS.c.number).where(MODELS.c.id == model.id)).first() is not None:
        return "known"
    try:
        check_bytes(connection, job.tenant, more=model.bytes, limit=max_bytes)
    except QuotaError:
        return "no room"
    return "kept"
