"""Waiting: in a thread only where there is need, for an answer, and for the client to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar, TypeVarTuple, Unpack

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rapt.service.answers.batching import Ticket
from rapt.service.storage.remembered import WouldWait, at_hand_only

Arguments = TypeVarTuple("Arguments")
Answer = TypeVar("Answer")
Begun = TypeVar("Begun")

# nginx's number for a client that closed the connection; nobody but the log sees it.
CLIENT_LEFT: Final = 499


class Cancels(Protocol[Answer]):
    """Where a ticket came from."""

    def cancel(self, ticket: Ticket[Answer]) -> None:
        """Forget its caller."""


async def at_hand_or_in_thread(work: Callable[[Unpack[Arguments]], Answer], *args: *Arguments) -> Answer:
    """What `work` returns: done here if all that it asks for is at hand, else in a thread.

    A thread costs two changes of the running thread, more than short work takes, and much more on a busy machine.

    Args:
        work: Short, and nothing done by the time it first has to wait: it may begin twice.
        args: Its arguments.
    """
    try:
        with at_hand_only():
            return work(*args)
    except WouldWait:
        return await run_in_threadpool(work, *args)


async def begun(work: Awaitable[Begun], *, undo: Callable[[Begun], object]) -> Begun:
    """What `work` begins; if whoever waits is cancelled meanwhile, it is undone as soon as it is there.

    A thread cannot be stopped: what it begins for nobody would be computed to the end.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: done.cancelled() or done.exception() or undo(done.result()))
        raise


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
