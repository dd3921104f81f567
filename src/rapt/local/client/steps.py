"""Steps of a conversation with a service, written once and taken by a program that waits or by one that awaits.

A method of a client is a generator of steps: it yields what is to be done next, such as a request or a pause, and is
sent what came of it. `take_steps` does each step and waits; `take_steps_async` awaits it, so that an event loop goes
on meanwhile. Neither knows what the steps mean, and no generator knows by which of them it is driven. So every error of
a step, whatever its kind, is thrown into the generator, which alone knows whether it repeats, explains or ends; an
interrupt and a cancelled task are no `Exception`, and close it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import httpx2

T = TypeVar("T")

# Takes the body of an answer, chunk by chunk.
Sink = Callable[[bytes], None]


class Step(Protocol):
    """A piece of work that may take long."""

    def do(self, http: httpx2.Client) -> Any:
        """Do it and wait for it."""

    async def do_async(self, http: httpx2.AsyncClient) -> Any:
        """Do it and await it."""


Steps = Generator[Step, Any, T]


@dataclass(frozen=True)
class Exchange:
    """A request and its answer: the response, whose body went to the sink.

    Attributes:
        build: Function that makes the request, with the client's address and headers.
        receive: Function that opens the sink of the body, by status and headers; it is closed when the body has ended.
        content: Bytes of the body that a sink keeps in memory.
    """

    build: Callable[[httpx2.Client | httpx2.AsyncClient], httpx2.Request]
    receive: Callable[[httpx2.Response, bytearray], AbstractContextManager[Sink]]
    content: bytearray

    def do(self, http: httpx2.Client) -> httpx2.Response:
        """Send the request and read the answer."""
        response = http.send(self.build(http), stream=True)
        with closing(response), self.receive(response, self.content) as take:
            for chunk in response.iter_raw():
                take(chunk)
        return response

    async def do_async(self, http: httpx2.AsyncClient) -> httpx2.Response:
        """Send the request and read the answer."""
        response = await http.send(self.build(http), stream=True)
        try:
            with self.receive(response, self.content) as take:
                async for chunk in response.aiter_raw():
                    take(chunk)
        finally:
            await response.aclose()
        return response


@dataclass(frozen=True)
class Pause:
    """A pause between two requests.

    Attributes:
        seconds: Length of the pause, s.
    """

    seconds: float

    def do(self, http: httpx2.Client) -> None:
        """Let the time pass."""
        time.sleep(self.seconds)

    async def do_async(self, http: httpx2.AsyncClient) -> None:
        """Let the time pass."""
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class Work(Generic[T]):
    """Work on this machine that would hold an event loop up, such as reading a large file.

    Attributes:
        function: Function to call, in a thread where steps are awaited.
    """

    function: Callable[[], T]

    def do(self, http: httpx2.Client) -> T:
        """Call the function, and return what it returns."""
        return self.function()

    async def do_async(self, http: httpx2.AsyncClient) -> T:
        """Call the function in a thread."""
        return await asyncio.to_thread(self.function)


def work(function: Callable[[], T]) -> Steps[T]:
    """What a function returns that takes long on this machine; see `Work`."""
    result: T = yield Work(function)
    return result


def take_steps(steps: Steps[T], http: httpx2.Client) -> T:
    """What the steps return, each done in turn; an error of one is thrown where it was yielded."""
    with closing(steps):
        outcome: Any = None
        error: Exception | None = None
        while True:
            try:
                step = steps.send(outcome) if error is None else steps.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome, error = None, None
            try:
                outcome = step.do(http)
            except Exception as raised:  # of any kind: it is the generator's; see the module
                error = raised


async def take_steps_async(steps: Steps[T], http: httpx2.AsyncClient) -> T:
    """What the steps return, each awaited in turn; see `take_steps`."""
    with closing(steps):
        outcome: Any = None
        error: Exception | None = None
        while True:
            try:
                step = steps.send(outcome) if error is None else steps.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome, error = None, None
            try:
                outcome = await step.do_async(http)
            except Exception as raised:  # of any kind: it is the generator's; see the module
                error = raised
