"""Tuning jobs as their tenant sees them, and their events: rows that change state, each change in one transaction.

    queued -> running -> succeeded | failed | cancelled
    queued | running -> paused -> queued
    running -> queued               when its worker stops or dies, or gives way to another tenant's job
    queued -> failed                when whatever ran it has died too often
    queued | paused -> cancelled

A change that the present state does not allow does not happen: a job that was cancelled while it ran cannot succeed.
What a worker does to a job stands in `job_runs`. An event is added in the transaction of the change that it tells of.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, delete, func, insert, select, update

from rapt.errors import LimitError, UsageError
from rapt.service.storage.callers import Caller, Repeatable, find_made_before, note, record
from rapt.service.storage.database import Cursor, Page, find, make_value, read_page
from rapt.service.storage.model_rows import delete_models_of, release_adapters
from rapt.service.storage.store import Store, discard_run_states
from rapt.service.storage.tables import EVENTS, FILES, JOBS, RUN_STATES
from rapt.service.storage.tenant_rows import MOST_MODELS, check_bytes, check_jobs, check_models, check_tenant

Level = Literal["info", "warn", "error"]
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
# Each pause and each resumption leaves an event and an entry of the audit log.
MOST_PAUSES: Final = 1000


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


def list_events(store: Store, job_id: str, cursor: Cursor, *, tenant: str) -> Page[StoredEvent]:
    """One page of a job's events. Raises `NotFoundError` for an unknown job or cursor."""
    with store.database.read() as connection:
        find(connection, JOBS, job_id, tenant=tenant)
        rows, has_more = read_page(connection, EVENTS, cursor, where=EVENTS.c.job_id == job_id)
    return Page(tuple(make_value(row, StoredEvent) for row in rows), has_more)


def add_event(
    connection: Connection,
    job_id: str,
    *,
    message: str,
    now: int,
    level: Level = "info",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Add one; of type `metrics` if it has figures."""
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


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """One tuning job as the database has it.

    Attributes:
        id: `ftjob-...`.
        tenant: Tenant that owns it.
        model: Name of the base model.
        training_file: Id of the privatized file.
        validation_file: Id of another one, to measure on; None without.
        status: State in the drawing of this module.
        method: Method and hyper-parameters, all resolved, in the shape of the API.
        seed: Seed of the training; not a secret.
        suffix: Part of the tuned model's name that the user chose.
        metadata: Pairs that the user chose; None without.
        priority: Rank among the jobs of its tenant; the highest is first.
        created_at: Time of creation, Unix time, s.
        finished_at: Unix time, s; None until it ended.
        fine_tuned_model: Name of the result; None unless it succeeded.
        trained_tokens: Text tokens seen, over all epochs; None unless it succeeded.
        error_code: Code of the error tree; None unless it failed.
        error_message: One line; None unless it failed.
        worker: Name of the worker that runs it, or ran it last; None before.
        attempt: Number of times that it was started.
        deaths: Number of processes that died on it since a state of it was kept last.
        last_death: Kind of the last of these deaths; None before.
    """

    id: str
    tenant: str
    model: str
    training_file: str
    validation_file: str | None = None
    status: str
    method: dict[str, Any]
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None = None
    priority: int = 0
    created_at: int
    finished_at: int | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    worker: str | None = None
    attempt: int = 0
    deaths: int = 0
    last_death: str | None = None


def add_job(
    store: Store,
    *,
    model: str,
    training_file: str,
    method: Mapping[str, Any],
    seed: int,
    suffix: str | None,
    caller: Caller,
    now: int,
    max_jobs: int,
    max_bytes: int,
    max_models: int = MOST_MODELS,
    validation_file: str | None = None,
    metadata: Mapping[str, str] | None = None,
    priority: int = 0,
    request: Repeatable | None = None,
) -> StoredJob:
    """Put a job into the queue.

    Args:
        store: Store of the service.
        model: Name of the base model.
        training_file: A file of the caller's tenant.
        method: Method with every setting resolved.
        seed: Seed of the training.
        suffix: Suffix for the name of the result.
        caller: Caller that becomes the owner.
        now: Present Unix time, s.
        max_jobs: Most jobs that have not ended, of a tenant without a quota of its own.
        max_bytes: Most bytes that such a tenant has stored; what a run leaves is counted, and can only be refused here.
        max_models: Most models of a tenant, checkpoints counted, for the same reason.
        validation_file: A file of the caller's tenant.
        metadata: The user's own.
        priority: Rank among the jobs of the tenant.
        request: Marks of a request that may come again; then the job of the first time is the answer.

    Raises:
        NotFoundError: A file was deleted meanwhile.
        QuotaError: The tenant has too many jobs that have not ended, or too many bytes.
        UsageError: The same idempotency key came with another request.
    """
    job = StoredJob(
        id=f"ftjob-{secrets.token_hex(12)}",
        tenant=caller.tenant,
        model=model,
        training_file=training_file,
        validation_file=validation_file,
        status="queued",
        method=dict(method),
        seed=seed,
        suffix=suffix,
        metadata=None if metadata is None else dict(metadata),
        priority=priority,
        created_at=now,
    )
    with store.database.write() as connection:
        if (before := find_made_before(connection, caller, request)) is not None:
            return make_value(find(connection, JOBS, before, tenant=caller.tenant), StoredJob)
        check_tenant(connection, caller.tenant)
        for file in (training_file, validation_file):
            if file is not None:
                find(connection, FILES, file, tenant=caller.tenant)
        check_jobs(connection, caller.tenant, limit=max_jobs)
        check_models(connection, caller.tenant, limit=max_models)
        check_bytes(connection, caller.tenant, more=0, limit=max_bytes)
        connection.execute(insert(JOBS).values(vars(job)))
        add_event(connection, job.id, message="the job is queued", now=now)
        note(connection, caller, request, job.id, now=now)
        record(connection, caller, "job.create", job.id)
    return job


def get_job(store: Store, job_id: str, *, tenant: str) -> StoredJob:
    """The job of an id. Raises `NotFoundError`."""
    with store.database.read() as connection:
        return make_value(find(connection, JOBS, job_id, tenant=tenant), StoredJob)


def list_jobs(
    store: Store, cursor: Cursor, *, tenant: str, metadata: Mapping[str, str] | None = None
) -> Page[StoredJob]:
    """One page of jobs, of those alone that have all the pairs of `metadata`, if it is given.

    Raises:
        NotFoundError: The cursor is not in the list.
    """
    where = JOBS.c.tenant == tenant
    for name, value in (metadata or {}).items():
        where = where & (JOBS.c.metadata[name].as_string() == value)
    with store.database.read() as connection:
        rows, has_more = read_page(connection, JOBS, cursor, where=where)
    return Page(tuple(make_value(row, StoredJob) for row in rows), has_more)


def cancel_job(store: Store, job_id: str, *, caller: Caller, now: int) -> tuple[StoredJob, tuple[str, ...]]:
    """The job is cancelled, whether it was running yet or not; nothing of it is kept.

    Returns:
        The job, and names of adapters of its checkpoints that are gone: a cache in memory has to forget them.

    Raises:
        NotFoundError: There is no such job.
        UsageError: It has ended.
    """
    with store.database.write() as connection:
        job = make_value(find(connection, JOBS, job_id, tenant=caller.tenant), StoredJob)
        if job.status in ENDED:
            raise UsageError(f"a job must not have ended to be cancelled, got status={job.status}")
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(status="cancelled", finished_at=now))
        add_event(connection, job_id, message="the job was cancelled", level="warn", now=now)
        record(connection, caller, "job.cancel", job_id)
        folders, models = delete_run_states(connection, job_id), delete_models_of(connection, job_id)
        cancelled = make_value(find(connection, JOBS, job_id, tenant=caller.tenant), StoredJob)
    discard_run_states(store, folders)
    return cancelled, release_adapters(store, models)


def pause_job(store: Store, job_id: str, *, caller: Caller, now: int, most: int = MOST_PAUSES) -> StoredJob:
    """The job rests until it is resumed; one that runs stops within a step and can go on from there.

    Args:
        store: The store of the job.
        job_id: The job to pause.
        caller: The holder of the job.
        now: Unix time, s.
        most: Times that a job may be paused: each leaves events and entries of the audit log, which are kept.

    Raises:
        NotFoundError: There is no such job.
        UsageError: It is neither queued nor running.
        LimitError: It was paused so often before.
    """
    return _switch(
        store, job_id, caller=caller, now=now, allowed=("queued", "running"), status="paused", verb="pause", most=most
    )


def resume_job(store: Store, job_id: str, *, caller: Caller, now: int) -> StoredJob:
    """A paused job is queued again; it goes on where it stopped.

    Raises:
        NotFoundError: There is no such job.
        UsageError: It is not paused.
    """
    return _switch(store, job_id, caller=caller, now=now, allowed=("paused",), status="queued", verb="resume")


def delete_run_states(connection: Connection, job_id: str) -> list[str]:
    """Keep no state of a job to go on from; returns the folders, to be deleted after the transaction."""
    held = select(RUN_STATES.c.folder).where(RUN_STATES.c.job_id == job_id)
    folders = [folder for folder in connection.execute(held).scalars() if folder is not None]
    connection.execute(delete(RUN_STATES).where(RUN_STATES.c.job_id == job_id))
    return folders


def _switch(
    store: Store,
    job_id: str,
    *,
    caller: Caller,
    now: int,
    allowed: tuple[str, ...],
    status: str,
    verb: str,
    most: int | None = None,
) -> StoredJob:
    with store.database.write() as connection:
        job = make_value(find(connection, JOBS, job_id, tenant=caller.tenant), StoredJob)
        if job.status not in allowed:
            raise UsageError(f"a job must be {' or '.join(allowed)} to {verb}, got status={job.status}")
        message = f"the job was {verb}d"
        if most is not None:
            before = select(func.count()).where(EVENTS.c.job_id == job_id, EVENTS.c.message == message)
            if connection.execute(before).scalar_one() >= most:
                raise LimitError(f"a job can be {verb}d {most} times; let it run, or cancel it")
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(status=status))
        add_event(connection, job_id, message=message, now=now)
        record(connection, caller, f"job.{verb}", job_id)
        return make_value(find(connection, JOBS, job_id, tenant=caller.tenant), StoredJob)
