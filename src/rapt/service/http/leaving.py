"""Waiting for an answer, and for the client to leave: whoever has gone is not computed for."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from rapt.service.model.batching import Ticket

Answer = TypeVar("Answer")

# nginx's number for a client that closed the connection; nobody but the log sees it.
CLIENT_LEFT: Final = 499


class Cancels(Protocol[Answer]):
    """Where a ticket came from."""

    def cancel(self, ticket: Ticket[Answer]) -> None:
        """Forget its caller."""


async def answers_of(ticket: Ticket[Answer], *, of: Cancels[Answer], request: Request) -> list[Answer]:
    """The answers of a ticket, unless the client leaves before they are there.

    Args:
        ticket: To be waited for.
        of: Is told when nobody waits any more.
        request: Whose body was read: all that can still come is the end of the connection.

    Raises:
        HTTPException: The client has left.
    """
    answer = asyncio.wrap_future(ticket.future)
    leaving = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise HTTPException(CLIENT_LEFT)
        return answer.result()
    finally:
        leaving.cancel()
        if not answer.done():
            of.cancel(ticket)


async def left(request: Request) -> None:
    """Returns when the client closes the connection; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
