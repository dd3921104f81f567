"""What a route is given of whoever asks: the value that the door has made."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from rapt.errors import ForbiddenError
from rapt.service.storage.callers import Caller


async def caller_of(request: Request) -> Caller:  # async: else the framework takes a thread for it
    """Who asks. The door has let nobody in without saying who it is."""
    caller: Caller = request.state.caller
    return caller


async def admin_of(request: Request) -> Caller:
    """Who asks, if it is an admin. Raises `ForbiddenError`."""
    caller = await caller_of(request)
    if caller.role != "admin":
        raise ForbiddenError("an API key of the role admin must be sent; ask the provider")
    return caller


CallerOf = Annotated[Caller, Depends(caller_of)]
AdminOf = Annotated[Caller, Depends(admin_of)]
