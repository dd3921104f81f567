"""Tuned models: rows that name adapters. Base models have no row; they are in the settings.

A checkpoint is a model with a step: asked, exported and hidden from strangers like any other, but listed with its job
alone, and gone with the model that its job has left.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from rapt.errors import DamagedError
from rapt.service.storage.blobs import read_blob
from rapt.service.storage.callers import Caller, record
from rapt.service.storage.data_directory import StagedFile
from rapt.service.storage.database import Cursor, Page, find, make_value, read_page
from rapt.service.storage.store import Store, naming, release
from rapt.service.storage.tables import MODELS
from rapt.service.storage.tenant_rows import MOST_MODELS, check_bytes, check_models, check_tenant


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """One tuned model as the database has it.

    Attributes:
        id: `ft:{base}:{tenant}:{suffix}:{number}`, of a checkpoint with `:ckpt-step-{step}`.
        tenant: Tenant that owns it.
        base: Name of the base model.
        job_id: The job that made it; None if it was imported.
        adapter: Name of its adapter in memory, made by us and no other model's, whatever bytes they share: how fast an
            answer comes must not tell a tenant what others have.
        created_at: Time of creation, Unix time, s.
        bytes: Size of the archive of its adapter.
        sha256: Hex digest of that, and name of its blob.
        step: Steps that its run had made, of a checkpoint; None for what a run left in the end, or was imported.
        metrics: Figures of its run by then, of a checkpoint.
    """

    id: str
    tenant: str
    base: str
    job_id: str | None
    adapter: str
    created_at: int
    bytes: int
    sha256: str
    step: int | None = None
    metrics: dict[str, Any] | None = None


def model_name(*, base: str, tenant: str, suffix: str, number: str) -> str:
    """The name of a tuned model; `number` is of ours, hexadecimal, and longer than what stands in the name."""
    return f"ft:{base}:{tenant}:{suffix}:{number[:12]}"


def get_model(store: Store, model_id: str, *, tenant: str) -> StoredModel:
    """The tuned model of an id. Raises `NotFoundError`."""

    def look_up() -> StoredModel:
        with store.database.read() as connection:
            return make_value(find(connection, MODELS, model_id, tenant=tenant), StoredModel)

    return store.database.remembered.ask(("model", tenant, model_id), look_up, scope=lambda _: f"models {tenant}")


def list_models(store: Store, cursor: Cursor, *, tenant: str) -> Page[StoredModel]:
    """One page of tuned models, checkpoints left out. Raises `NotFoundError` for an unknown cursor."""
    with store.database.read() as connection:
        where = (MODELS.c.tenant == tenant) & MODELS.c.step.is_(None)
        rows, has_more = read_page(connection, MODELS, cursor, where=where)
    return Page(tuple(make_value(row, StoredModel) for row in rows), has_more)


def read_adapter_archive(store: Store, model: StoredModel) -> bytes:
    """The adapter of a model.

    Raises:
        NotFoundError: The model was deleted meanwhile.
        DamagedError: The bytes that were kept are not there any more, or others are.
        UnavailableError: The store of the blobs cannot be reached.
    """
    try:
        return read_blob(store.blobs, model.sha256, size=model.bytes)
    except FileNotFoundError:
        get_model(store, model.id, tenant=model.tenant)
        raise DamagedError("the adapter of a model must be where it was kept; tell the provider") from None


def make_adapter_name() -> str:
    """A name for an adapter."""
    return secrets.token_hex(12)


def add_imported_model(
    store: Store,
    staged: StagedFile,
    *,
    suffix: str,
    base: str,
    caller: Caller,
    now: int,
    max_bytes: int,
    max_models: int = MOST_MODELS,
) -> StoredModel:
    """Keep an adapter that came from outside.

    Args:
        store: Store of the service.
        staged: Archive of the adapter.
        suffix: Suffix for the name of the model.
        base: Name of the base model.
        caller: Caller that becomes the owner.
        now: Present Unix time, s.
        max_bytes: Most bytes that a tenant without a quota of its own may store.
        max_models: Most models of a tenant, checkpoints counted.

    Raises:
        NotFoundError: The tenant is gone.
        QuotaError: It has too many bytes, or models.
    """
    adapter = make_adapter_name()
    model = StoredModel(
        id=model_name(base=base, tenant=caller.tenant, suffix=suffix, number=adapter),
        tenant=caller.tenant,
        base=base,
        job_id=None,
        adapter=adapter,
        created_at=now,
        bytes=staged.bytes,
        sha256=staged.sha256,
    )
    with naming(store, staged), store.database.write() as connection:
        check_tenant(connection, caller.tenant)
        check_models(connection, caller.tenant, limit=max_models)
        check_bytes(connection, caller.tenant, more=model.bytes, limit=max_bytes)
        insert_model(connection, model)
        record(connection, caller, "model.import", adapter[:12])
    return model


def insert_model(connection: Connection, model: StoredModel) -> None:
    """Add the row of a model."""
    connection.execute(insert(MODELS).values(vars(model)))


def delete_model(store: Store, model_id: str, *, caller: Caller) -> tuple[str, ...]:
    """Delete a tuned model with the checkpoints of its run, or one checkpoint alone.

    Returns:
        Names of the adapters that are gone: a cache in memory has to forget them.

    Raises:
        NotFoundError: There is no such model.
    """
    with store.database.write() as connection:
        model = make_value(find(connection, MODELS, model_id, tenant=caller.tenant), StoredModel)
        connection.execute(delete(MODELS).where(MODELS.c.id == model_id))
        doomed = [model]
        if model.job_id is not None and model.step is None:
            doomed += delete_models_of(connection, model.job_id)
        # Without the suffix, which the user wrote.
        own = model.id.split(":")[-1 if model.step is None else -2 :]
        record(connection, caller, "model.delete", ":".join(own))
    store.database.forget_deleted()
    return release_adapters(store, doomed)


def delete_models_of(connection: Connection, job_id: str) -> list[StoredModel]:
    """Delete the rows of all that a job has made; returns them, to be released after the transaction."""
    doomed = connection.execute(select(MODELS).where(MODELS.c.job_id == job_id)).all()
    connection.execute(delete(MODELS).where(MODELS.c.job_id == job_id))
    return [make_value(row, StoredModel) for row in doomed]


def release_adapters(store: Store, models: Sequence[StoredModel]) -> tuple[str, ...]:
    """Delete the adapters of models whose rows are gone; returns their names in memory."""
    release(store, [model.sha256 for model in models])
    return tuple(model.adapter for model in models)
