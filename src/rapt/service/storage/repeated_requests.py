"""Idempotency keys: a request that is sent twice under one key makes one object.

The key is noted in the transaction that makes the object, so a crash between the two cannot be: whoever got no answer
sends the request again and gets the object that was made, or makes it now.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, insert, select

from rapt.errors import UsageError
from rapt.service.storage.callers import Caller
from rapt.service.storage.tables import REQUESTS

KEPT_SECONDS: Final = 7 * 24 * 3600


@dataclass(frozen=True)
class Repeatable:
    """A request that may come again: digests of its key and of what it asks, hex."""

    key_digest: str
    content_digest: str


def repeatable(key: str | None, *content: str) -> Repeatable | None:
    """The marks of a request, if it came with a key."""
    if key is None:
        return None
    return Repeatable(_digest(key), _digest(*content))


def made_before(connection: Connection, caller: Caller, request: Repeatable | None) -> str | None:
    """Id of what the same request made before; None if it is new.

    Raises:
        UsageError: The key came before with another request.
    """
    if request is None:
        return None
    row = connection.execute(
        select(REQUESTS).where(REQUESTS.c.tenant == caller.tenant, REQUESTS.c.key_digest == request.key_digest)
    ).first()
    if row is None:
        return None
    if row.content_digest != request.content_digest:
        raise UsageError("an idempotency key must come with the same request every time; use a new one")
    return str(row.object)


def note(connection: Connection, caller: Caller, request: Repeatable | None, object_: str, *, now: int) -> None:
    """Remember what a request made, for `KEPT_SECONDS`."""
    if request is None:
        return
    values = {"tenant": caller.tenant, "object": object_, "created_at": now, **vars(request)}
    connection.execute(insert(REQUESTS).values(values))


def _digest(*parts: str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode()
        whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()
