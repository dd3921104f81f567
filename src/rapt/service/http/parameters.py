"""Parameters that routes share: who asks, a page of a list, an idempotency key, and what a client may have already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import Depends, Header, Query
from starlette.requests import Request

from rapt.errors import ForbiddenError
from rapt.service.http.admin_schemas import AuditObject, KeyObject, TenantObject
from rapt.service.http.pool_schemas import PoolObject
from rapt.service.http.schemas import CheckpointObject, EventObject, FileObject, JobObject, ListOf, ModelObject
from rapt.service.storage.callers import Caller
from rapt.service.storage.database import Cursor, Page

# A model's id may be that long: names of a base and of a tenant, a suffix, and what is around them.
After = Annotated[str | None, Query(max_length=512, description="id of the last item of the page before")]
Limit = Annotated[int, Query(ge=1, le=100, description="items on a page")]
LongLimit = Annotated[int, Query(ge=1, le=10_000, description="items on a page")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="the same request under the same key makes one object"),
]
Order = Annotated[Literal["asc", "desc"], Query(description="order of the items, by time of creation")]

Stored = TypeVar("Stored")
Shown = TypeVar(
    "Shown",
    CheckpointObject,
    FileObject,
    JobObject,
    EventObject,
    ModelObject,
    KeyObject,
    PoolObject,
    TenantObject,
    AuditObject,
)
IfNoneMatch = Annotated[str | None, Header(alias="if-none-match")]
# For the description of a route that may answer so.
NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {304: {"description": "the client has it already"}}


async def get_caller(request: Request) -> Caller:  # async: else the framework takes a thread for it
    """Who asks. The door has let nobody in without saying who it is."""
    caller: Caller = request.state.caller
    return caller


async def get_admin(request: Request) -> Caller:
    """Who asks, if it is an admin. Raises `ForbiddenError`."""
    caller = await get_caller(request)
    if caller.role != "admin":
        raise ForbiddenError("this needs an API key with the role admin; ask the provider")
    return caller


CallerOf = Annotated[Caller, Depends(get_caller)]
AdminOf = Annotated[Caller, Depends(get_admin)]


def make_cursor(after: str | None, limit: int, order: str = "desc") -> Cursor:
    """Where a page starts."""
    return Cursor(after=after, limit=limit, newest_first=order == "desc")


def make_list(page: Page[Stored], show: Callable[[Stored], Shown]) -> ListOf[Shown]:
    """One page in the shape of the API."""
    items = [show(item) for item in page.items]
    return ListOf(
        data=items,
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
        has_more=page.has_more,
    )


def is_current(tag: str, if_none_match: str | None) -> bool:
    """Whether a client has what carries this tag, by weak comparison."""
    if if_none_match is None:
        return False
    had = {item.strip().removeprefix("W/") for item in if_none_match.split(",")}
    return bool({tag, "*"} & had)
