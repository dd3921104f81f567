"""Work on every request before and after its route: an id, limits, a line in the log, figures, an orderly end.

The log and the figures for Prometheus have the route's pattern and never the path, query, headers, body, tenant or
name: those come from outside.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rapt.errors import LimitError, UnavailableError, UsageError
from rapt.service.http.http_errors import answer_error, answer_exception, make_error_response
from rapt.service.http.settings import Settings
from rapt.service.storage.store import Store
from rapt.service.storage.tables import FILES, JOBS, MODELS, TENANTS

# Anything else is counted as one: a client may send any word as a method.
_METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"})
_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
log = logging.getLogger(__name__)

UPLOAD_PATH: Final = "/v1/files"
PARTS_PATH: Final = "/v1/uploads/"
ADAPTERS_PATH: Final = "/v1/adapters"
# Around the file in a multipart body: boundaries, headers, the other fields.
FORM_OVERHEAD: Final = 64 * 1024
_SLOWEST: Final = 16 * 1024  # bytes a second of a body, on average, once its first seconds are over


class Metrics:
    """Figures that are counted while the service runs, or looked up when somebody asks."""

    def __init__(self, store: Store) -> None:
        """Start to count at zero, in a registry of its own: two services in one process do not mix."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rapt_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "rapt_request_seconds",
            "Time to the end of the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Stored(store))

    def count(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)


class _Stored(Collector):
    """Figures of the database, looked up for each scrape."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> list[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("rapt_jobs", "Jobs by status.", labels=["status"])
        objects = GaugeMetricFamily("rapt_objects", "Rows by kind.", labels=["kind"])
        with self._store.database.read() as connection:
            for status, count in connection.execute(select(JOBS.c.status, func.count()).group_by(JOBS.c.status)):
                jobs.add_metric([status], count)
            for table in (FILES, MODELS, TENANTS):
                objects.add_metric(
                    [table.name], connection.execute(select(func.count()).select_from(table)).scalar_one()
                )
            size = connection.execute(select(func.coalesce(func.sum(FILES.c.bytes), 0))).scalar_one()
        stored = GaugeMetricFamily("rapt_file_bytes", "Bytes of all files.", value=float(size))
        return [jobs, objects, stored]


class Answer:
    """An answer on its way to one client, which can be ended from outside: when the service stops."""

    def __init__(self, send: Send, *, request_id: str, method: str) -> None:
        """Prepare the answer to one request."""
        self._send = send
        self._request_id = request_id
        self._is_head = method == "HEAD"
        self._is_event_stream = False
        self._head: Message | None = None
        self._task = asyncio.current_task()
        self.status = 0
        self.ended = False

    async def send(self, message: Message) -> None:
        """Pass a message on, with what every answer has. Raises `_HeadAnswered` where nothing more is wanted.

        The head is kept back until the body begins: what is raised in between can still be answered.
        """
        if self.ended:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            # Keys, files and predictions are nothing for a cache; a route that knows better has said so already.
            headers.setdefault("cache-control", "no-store")
            self._is_event_stream = headers.get("content-type", "").startswith("text/event-stream")
            self._head = message
            if self._is_event_stream:  # its first event may be long in coming
                await self._send_head()
            return
        await self._send_head()
        if self._is_head:
            self.ended = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            raise _HeadAnswered
        await self._send(message)

    async def _send_head(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self.status = head["status"]
            await self._send(head)

    async def end(self, scope: Scope, receive: Receive) -> None:
        """Answer 503, or with an event that says so in a stream, and compute nothing more."""
        error = UnavailableError("the service is stopping; ask again when it is back")
        if not self.status:
            await answer_error(error)(scope, receive, self.send)
        elif self._is_event_stream and not self.ended:
            # An event goes out as one message, so none is cut in two.
            body = b"data: " + bytes(answer_error(error).body) + b"\n\ndata: [DONE]\n\n"
            await self.send({"type": "http.response.body", "body": body, "more_body": False})
        self.ended = True
        if self._task is not None:
            self._task.cancel()


class Stopping:
    """The answers that are on their way, to be ended when the service cannot wait for them any longer."""

    def __init__(self) -> None:
        """Start with no answer on its way."""
        self._ends: dict[Answer, Callable[[], Awaitable[None]]] = {}

    @contextmanager
    def registered(self, answer: Answer, end: Callable[[], Awaitable[None]]) -> Iterator[None]:
        """Within the block, `end` is what ends the answer."""
        self._ends[answer] = end
        try:
            yield
        finally:
            del self._ends[answer]

    async def end_all(self) -> None:
        """End what is on its way: at once, because a client that does not read keeps its own end waiting."""
        await asyncio.gather(*(end() for end in list(self._ends.values())), return_exceptions=True)


class Envelope:
    """Outermost: gives each answer an `x-request-id`, writes the log, and catches what nobody else did."""

    def __init__(self, app: ASGIApp, *, count: Callable[..., None], stopping: Stopping | None = None) -> None:
        """Wrap an application; `count` is told of every request, and `stopping` may end one."""
        self._app = app
        self._count = count
        self._stopping = stopping or Stopping()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request between the work before and after it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, method = f"req_{secrets.token_hex(12)}", scope["method"]
        scope.setdefault("state", {})["request_id"] = request_id
        if method == "HEAD":  # as GET, of which `Answer` sends the head; the server goes by its own scope
            scope = {**scope, "method": "GET"}
        start, answer = time.perf_counter(), Answer(send, request_id=request_id, method=method)
        with self._stopping.registered(answer, lambda: answer.end(scope, receive)):
            try:
                await self._app(scope, receive, answer.send)
            except _HeadAnswered:
                pass
            except asyncio.CancelledError:
                if not answer.ended:
                    raise
            except Exception as error:  # the server behind would log it with its message, which may hold anything
                response = answer_exception(error, what=request_id, is_late=bool(answer.status))
                if not answer.status:
                    await response(scope, receive, answer.send)
            finally:
                pattern = getattr(scope.get("route"), "path", "-")
                seconds = time.perf_counter() - start
                log.info("%s %s %s %d %.1f ms", request_id, method, pattern, answer.status, 1000 * seconds)
                self._count(method=method, route=pattern, status=answer.status, seconds=seconds)


class BodyLimit:
    """Refuses a body that is too large, compressed or too slow, before it is read where that is announced."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        """Wrap an application with the work around each request."""
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            message = "the request body must not be compressed; leave content-encoding out and send it as it is"
            await make_error_response(message, status=415, code="unsupported_encoding")(scope, receive, send)
            return
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            await answer_error(UsageError("the path and the query must not hold NUL"))(scope, receive, send)
            return
        limit = self._limit(scope)
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            await answer_error(LimitError(f"a request must have at most {limit} bytes; send it in parts"))(
                scope, receive, send
            )
            return
        received, more_comes = 0, True
        start = time.monotonic()

        async def receive_some() -> Message:
            nonlocal received, more_comes
            if not more_comes:
                return await receive()
            # However it dribbles in: the first seconds are free, and each byte buys a little more.
            left = start + self._settings.body_seconds + received / _SLOWEST - time.monotonic()
            try:
                async with asyncio.timeout(left):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408) from None
            received += len(message.get("body", b""))
            more_comes = message.get("more_body", False)
            if received > limit:
                raise HTTPException(LimitError.status)  # the one kind that the framework passes on while it reads
            return message

        await self._app(scope, receive_some, send)

    def _limit(self, scope: Scope) -> int:
        settings = self._settings
        if not is_upload(scope):
            return settings.max_json_bytes
        if scope["path"] == UPLOAD_PATH:
            return settings.max_file_bytes + FORM_OVERHEAD
        most = settings.max_request_bytes if scope["path"] == ADAPTERS_PATH else settings.max_part_bytes
        return most + FORM_OVERHEAD


def is_upload(scope: Scope) -> bool:
    """Whether the body of a request is a form with a file."""
    path = scope["path"]
    return scope["method"] == "POST" and (
        path in (UPLOAD_PATH, ADAPTERS_PATH) or (path.startswith(PARTS_PATH) and path.endswith("/parts"))
    )


class _HeadAnswered(Exception):
    """A request for the head of an answer has it: nothing more is to be made."""


def get_request_id(scope: Scope) -> str:
    """The id of a request, for a line of the log; a dash outside of the envelope."""
    return str(scope.get("state", {}).get("request_id", "-"))
