"""Tuned models: rows that name adapters. Base models have no row; they are in the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, select

from rapt.service.storage.database import MODELS, find
from rapt.service.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """One tuned model.

    Attributes:
        id: `ft:{base}:{suffix}:{number}`.
        base: Name of the base model.
        job_id: The job that made it.
        adapter: Name of its folder, made by us.
        created_at: Unix time, s.
    """

    id: str
    base: str
    job_id: str
    adapter: str
    created_at: int


def get_model(store: Store, model_id: str) -> StoredModel:
    """The tuned model of an id. Raises `NotFoundError`."""
    with store.database.read() as connection:
        return _from_row(find(connection, MODELS, model_id))


def list_models(store: Store) -> tuple[StoredModel, ...]:
    """All tuned models, oldest first: the API has no pages here."""
    with store.database.read() as connection:
        return tuple(_from_row(row) for row in connection.execute(select(MODELS).order_by(MODELS.c.number)))


def adapter_folder(store: Store, model: StoredModel) -> Path:
    """Where the adapter of a model is."""
    return store.directory.adapter(model.adapter)


def delete_model(store: Store, model_id: str) -> StoredModel:
    """Delete a tuned model and its adapter; returns what it was. Raises `NotFoundError`."""
    with store.database.write() as connection:
        model = _from_row(find(connection, MODELS, model_id))
        connection.execute(delete(MODELS).where(MODELS.c.id == model_id))
    store.directory.remove_adapter(model.adapter)
    return model


def _from_row(row: Row[Any]) -> StoredModel:
    values = dict(row._mapping)
    del values["number"]
    return StoredModel(**values)
