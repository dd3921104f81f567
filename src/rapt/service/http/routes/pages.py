"""Cursor pagination as OpenAI does it: `after` an id, `limit`, `order`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from fastapi import Header, Query

from rapt.service.http.admin_schemas import AuditObject, KeyObject, TenantObject
from rapt.service.http.schemas import CheckpointObject, EventObject, FileObject, JobObject, ListOf, ModelObject
from rapt.service.storage.database import Cursor, Page

# A model's id may be that long: names of a base and of a tenant, a suffix, and what is around them.
After = Annotated[str | None, Query(max_length=512, description="id of the last item of the page before")]
Limit = Annotated[int, Query(ge=1, le=100, description="items on a page")]
LongLimit = Annotated[int, Query(ge=1, le=10_000, description="items on a page")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="the same request under the same key makes one object"),
]
Order = Annotated[Literal["asc", "desc"], Query(description="by time of creation")]

Stored = TypeVar("Stored")
Shown = TypeVar(
    "Shown", CheckpointObject, FileObject, JobObject, EventObject, ModelObject, KeyObject, TenantObject, AuditObject
)


def cursor(after: str | None, limit: int, order: str = "desc") -> Cursor:
    """Where a page starts."""
    return Cursor(after=after, limit=limit, newest_first=order == "desc")


def list_of(page: Page[Stored], show: Callable[[Stored], Shown]) -> ListOf[Shown]:
    """One page in the shape of the API."""
    items = [show(item) for item in page.items]
    return ListOf(
        data=items,
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
        has_more=page.has_more,
    )
