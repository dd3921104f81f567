"""Tuning jobs and their events: rows that change state, each change in one transaction.

    queued -> running -> succeeded | failed | cancelled
    running -> queued          when the service stops or restarts
    queued -> cancelled

A change that the present state does not allow does not happen: a job that was cancelled while it ran cannot succeed.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, insert, select, true, update

from rapt.errors import UsageError
from rapt.service.storage.database import EVENTS, FILES, JOBS, MODELS, Cursor, Page, find, page_of
from rapt.service.storage.store import Store

Level = Literal["info", "warn", "error"]
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """One tuning job.

    Attributes:
        id: `ftjob-...`.
        model: Name of the base model.
        training_file: Id of the privatized file.
        status: As in the module's drawing.
        method: Method and hyper-parameters, all resolved, in the shape of the API.
        seed: Of the training; not a secret.
        suffix: What the user wants in the tuned model's name.
        created_at: Unix time, s.
        finished_at: Unix time, s; None until it ended.
        fine_tuned_model: Name of the result; None unless it succeeded.
        trained_tokens: Text tokens seen, over all epochs; None unless it succeeded.
        error_code: From the error tree; None unless it failed.
        error_message: One line; None unless it failed.
    """

    id: str
    model: str
    training_file: str
    status: str
    method: dict[str, Any]
    seed: int
    suffix: str | None
    created_at: int
    finished_at: int | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredEvent:
    """Something that happened to a job; `data` holds numbers only."""

    id: str
    job_id: str
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


def add_job(
    store: Store,
    *,
    model: str,
    training_file: str,
    method: Mapping[str, Any],
    seed: int,
    suffix: str | None,
    now: int,
) -> StoredJob:
    """Queue a job. Raises `NotFoundError` when the file was deleted meanwhile."""
    job = StoredJob(
        id=f"ftjob-{secrets.token_hex(12)}",
        model=model,
        training_file=training_file,
        status="queued",
        method=dict(method),
        seed=seed,
        suffix=suffix,
        created_at=now,
    )
    with store.database.write() as connection:
        find(connection, FILES, training_file)
        connection.execute(insert(JOBS).values(vars(job)))
        _add_event(connection, job.id, message="the job is queued", now=now)
    return job


def get_job(store: Store, job_id: str) -> StoredJob:
    """The job of an id. Raises `NotFoundError`."""
    with store.database.read() as connection:
        return _job(find(connection, JOBS, job_id))


def list_jobs(store: Store, cursor: Cursor) -> Page[StoredJob]:
    """One page of jobs. Raises `NotFoundError` for an unknown cursor."""
    with store.database.read() as connection:
        rows, has_more = page_of(connection, JOBS, cursor, where=true())
    return Page(tuple(_job(row) for row in rows), has_more)


def list_events(store: Store, job_id: str, cursor: Cursor) -> Page[StoredEvent]:
    """One page of a job's events. Raises `NotFoundError` for an unknown job or cursor."""
    with store.database.read() as connection:
        find(connection, JOBS, job_id)
        rows, has_more = page_of(connection, EVENTS, cursor, where=EVENTS.c.job_id == job_id)
    return Page(tuple(_event(row) for row in rows), has_more)


def claim_next_job(store: Store, *, now: int) -> StoredJob | None:
    """The oldest queued job, now running; None when the queue is empty."""
    with store.database.write() as connection:
        oldest = select(JOBS.c.id).where(JOBS.c.status == "queued").order_by(JOBS.c.number).limit(1)
        job_id = connection.execute(oldest).scalar()
        if job_id is None:
            return None
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(status="running"))
        _add_event(connection, job_id, message="the job is running", now=now)
        return _job(find(connection, JOBS, job_id))


def record_progress(store: Store, job_id: str, *, message: str, data: Mapping[str, Any], now: int) -> None:
    """Add an event of type `metrics`."""
    with store.database.write() as connection:
        _add_event(connection, job_id, message=message, data=data, now=now)


def succeed_job(
    store: Store, job: StoredJob, *, fine_tuned_model: str, adapter: str, trained_tokens: int, now: int
) -> bool:
    """Publish the result: the job has succeeded and its model exists, both or neither.

    Returns:
        False when the job is no longer running: it was cancelled, and the caller must delete the adapter.
    """
    with store.database.write() as connection:
        values: dict[str, str | int] = {"fine_tuned_model": fine_tuned_model, "trained_tokens": trained_tokens}
        if not _leave_running(connection, job.id, status="succeeded", now=now, values=values):
            return False
        model = {"id": fine_tuned_model, "base": job.model, "job_id": job.id, "adapter": adapter, "created_at": now}
        connection.execute(insert(MODELS).values(model))
        _add_event(connection, job.id, message=f"the model {fine_tuned_model} is ready", now=now)
        return True


def fail_job(store: Store, job_id: str, *, code: str, message: str, now: int) -> bool:
    """The job has failed; False when it is no longer running."""
    with store.database.write() as connection:
        values = {"error_code": code, "error_message": message}
        if not _leave_running(connection, job_id, status="failed", now=now, values=values):
            return False
        _add_event(connection, job_id, message=f"the job failed: {message}", level="error", now=now)
        return True


def cancel_job(store: Store, job_id: str, *, now: int) -> StoredJob:
    """The job is cancelled, whether it was running yet or not.

    Raises:
        NotFoundError: There is no such job.
        UsageError: It has ended.
    """
    with store.database.write() as connection:
        job = _job(find(connection, JOBS, job_id))
        if job.status in ENDED:
            raise UsageError(f"a job must be queued or running to be cancelled, got status={job.status}")
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(status="cancelled", finished_at=now))
        _add_event(connection, job_id, message="the job was cancelled", level="warn", now=now)
        return _job(find(connection, JOBS, job_id))


def requeue_running_jobs(store: Store, *, now: int) -> int:
    """Queue again what was running when the service stopped; it keeps its place. Returns how many."""
    with store.database.write() as connection:
        running = connection.execute(select(JOBS.c.id).where(JOBS.c.status == "running")).scalars().all()
        for job_id in running:
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(status="queued"))
            _add_event(
                connection, job_id, message="the service stopped; the job is queued again", level="warn", now=now
            )
    return len(running)


def _leave_running(
    connection: Connection, job_id: str, *, status: str, now: int, values: Mapping[str, str | int]
) -> bool:
    change = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == "running")
    return connection.execute(change.values(status=status, finished_at=now, **values)).rowcount == 1


def _add_event(
    connection: Connection,
    job_id: str,
    *,
    message: str,
    now: int,
    level: Level = "info",
    data: Mapping[str, Any] | None = None,
) -> None:
    event = StoredEvent(
        id=f"ftevent-{secrets.token_hex(12)}",
        job_id=job_id,
        created_at=now,
        level=level,
        type="message" if data is None else "metrics",
        message=message,
        data=None if data is None else dict(data),
    )
    connection.execute(insert(EVENTS).values(vars(event)))


def _job(row: Row[Any]) -> StoredJob:
    values = dict(row._mapping)
    del values["number"]
    return StoredJob(**values)


def _event(row: Row[Any]) -> StoredEvent:
    values = dict(row._mapping)
    del values["number"]
    return StoredEvent(**values)
