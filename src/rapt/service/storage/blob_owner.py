"""Whose blobs they are: a service writes its id beside its own, and takes none that have another's.

At its start it deletes those that no row of its own names. In the place of another service that would be all of them.
"""

from __future__ import annotations

from sqlalchemy import select

from rapt.errors import UsageError
from rapt.service.storage.named_blobs import named_blobs
from rapt.service.storage.store import Store
from rapt.service.storage.tables import IDENTITY


def refuse_foreign(store: Store) -> None:
    """Refuse blobs that another service has claimed.

    Raises:
        UsageError: They are another service's.
        UnavailableError: They cannot be reached.
    """
    if store.blobs.owner() not in (None, _id(store)):
        raise UsageError("the setting blobs must be of this service only, got that of another; give each its own")


def own_blobs(store: Store) -> None:
    """Make sure that the blobs are those of this service; claim them if they are nobody's yet.

    Raises:
        UsageError: They are another service's, or what the rows name is kept elsewhere.
        UnavailableError: They cannot be reached.
    """
    refuse_foreign(store)
    if store.blobs.owner() is not None:
        return
    with store.database.read() as connection:
        named = named_blobs(connection)
    if named and named.isdisjoint(store.blobs.list()):
        raise UsageError(
            "the setting blobs must be where this service keeps its files and adapters, and none of them is there; "
            "give the same to `rapt serve`, `rapt worker` and `rapt admin` every time"
        )
    store.blobs.claim(_id(store))


def _id(store: Store) -> str:
    with store.database.read() as connection:
        return str(connection.execute(select(IDENTITY.c.id)).scalar_one())
