"""Checkpoints that can be asked: what a run would have left at the end of an epoch, as a model with a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, select

from rapt.errors import NotFoundError, QuotaError
from rapt.service.storage.data_directory import StagedFile
from rapt.service.storage.database import Cursor, Page, find, make_value, read_page
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.job_runs import is_mine, make_result
from rapt.service.storage.model_rows import StoredModel, insert_model
from rapt.service.storage.store import Store, naming, release
from rapt.service.storage.tables import JOBS, MODELS
from rapt.service.storage.tenant_rows import check_bytes

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
        outcome = _outcome(connection, job, model, max_bytes=max_bytes)
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


def _outcome(connection: Connection, job: StoredJob, model: StoredModel, *, max_bytes: int) -> Kept:
    if not is_mine(connection, job):
        return "not mine"
    if connection.execute(select(MODELS.c.number).where(MODELS.c.id == model.id)).first() is not None:
        return "known"
    try:
        check_bytes(connection, job.tenant, more=model.bytes, limit=max_bytes)
    except QuotaError:
        return "no room"
    return "kept"
