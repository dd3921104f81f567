"""Tuned models: rows that name adapters. Base models have no row; they are in the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, insert

from rapt.service.storage.audit_rows import record
from rapt.service.storage.callers import Caller
from rapt.service.storage.database import Cursor, Page, find, page_of, value_of
from rapt.service.storage.store import Store
from rapt.service.storage.tables import MODELS
from rapt.service.storage.tenant_rows import check_tenant


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """One tuned model.

    Attributes:
        id: `ft:{base}:{tenant}:{suffix}:{number}`.
        tenant: Whose it is.
        base: Name of the base model.
        job_id: The job that made it; None if it was imported.
        adapter: Name of its folder, made by us.
        created_at: Unix time, s.
    """

    id: str
    tenant: str
    base: str
    job_id: str | None
    adapter: str
    created_at: int


def model_name(*, base: str, tenant: str, suffix: str, adapter: str) -> str:
    """The name of a tuned model; the end of it is the start of its adapter's name."""
    return f"ft:{base}:{tenant}:{suffix}:{adapter[:12]}"


def get_model(store: Store, model_id: str, *, tenant: str) -> StoredModel:
    """The tuned model of an id. Raises `NotFoundError`."""

    def look_up() -> StoredModel:
        with store.database.read() as connection:
            return value_of(find(connection, MODELS, model_id, tenant=tenant), StoredModel)

    return store.database.remembered.ask(("model", tenant, model_id), look_up)


def list_models(store: Store, cursor: Cursor, *, tenant: str) -> Page[StoredModel]:
    """One page of tuned models. Raises `NotFoundError` for an unknown cursor."""
    with store.database.read() as connection:
        rows, has_more = page_of(connection, MODELS, cursor, where=MODELS.c.tenant == tenant)
    return Page(tuple(value_of(row, StoredModel) for row in rows), has_more)


def adapter_folder(store: Store, model: StoredModel) -> Path:
    """Where the adapter of a model is."""
    return store.directory.adapter(model.adapter)


def add_imported_model(
    store: Store, *, model_id: str, base: str, adapter: str, caller: Caller, now: int
) -> StoredModel:
    """Name an adapter that came from outside and is on the disk. Raises `NotFoundError` for a tenant that is gone."""
    model = StoredModel(id=model_id, tenant=caller.tenant, base=base, job_id=None, adapter=adapter, created_at=now)
    with store.database.write() as connection:
        check_tenant(connection, caller.tenant)
        insert_model(connection, model)
        record(connection, caller, "model.import", adapter[:12])
    return model


def insert_model(connection: Connection, model: StoredModel) -> None:
    """Add the row of a model."""
    connection.execute(insert(MODELS).values(vars(model)))


def delete_model(store: Store, model_id: str, *, caller: Caller) -> StoredModel:
    """Delete a tuned model and its adapter; returns what it was. Raises `NotFoundError`."""
    with store.database.write() as connection:
        model = value_of(find(connection, MODELS, model_id, tenant=caller.tenant), StoredModel)
        connection.execute(delete(MODELS).where(MODELS.c.id == model_id))
        record(connection, caller, "model.delete", model.adapter[:12])
    store.directory.remove_adapter(model.adapter)
    store.database.forget_deleted()
    return model
