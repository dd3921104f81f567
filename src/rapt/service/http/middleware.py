"""What happens to every request before and after its route: an id, a limit, one line in the log.

The log has the route's pattern and never the path, query, headers or body: those come from outside.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import Final, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rapt.errors import LimitError, RaptError
from rapt.service.http.http_errors import response_to, unforeseen_response
from rapt.service.http.settings import Settings
from rapt.service.traces import log_unforeseen

log = logging.getLogger(__name__)

UPLOAD_PATH: Final = "/v1/files"
PARTS_PATH: Final = "/v1/uploads/"
# Around the file in a multipart body: boundaries, headers, the other fields.
_FORM_OVERHEAD: Final = 64 * 1024


class Count(Protocol):
    """Is told of a request that was answered."""

    def __call__(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count it."""


class Envelope:
    """Outermost: gives each answer an `x-request-id`, writes the log, and catches what nobody else did."""

    def __init__(self, app: ASGIApp, *, count: Count) -> None:
        """Wrap an application; `count` is told of every request."""
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                # Keys, files and predictions are nothing for a cache; a route that knows better has said so already.
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # the server behind would log it with its message, which may hold anything
            if not isinstance(error, RaptError):  # of the tree is what the door raises while its database is away
                log_unforeseen(log, request_id, error)
            if not status:
                answer = response_to(error) if isinstance(error, RaptError) else unforeseen_response(error)
                await answer(scope, receive, send_with_id)
        finally:
            pattern = getattr(scope.get("route"), "path", "-")
            seconds = time.perf_counter() - start
            log.info("%s %s %s %d %.1f ms", request_id, scope["method"], pattern, status, 1000 * seconds)
            self._count(method=scope["method"], route=pattern, status=status, seconds=seconds)


class BodyLimit:
    """Refuses a body that is too large, before it is read where its length is announced, else while it is."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        """Wrap an application."""
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._settings.max_request_bytes
        if scope["path"] == UPLOAD_PATH:
            limit = self._settings.max_file_bytes + _FORM_OVERHEAD
        elif scope["path"].startswith(PARTS_PATH):
            limit = max(limit, self._settings.max_part_bytes + _FORM_OVERHEAD)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            await response_to(LimitError(f"a request must have at most {limit} bytes; send it in parts"))(
                scope, receive, send
            )
            return
        received = 0

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(LimitError.status)  # the one kind that the framework passes on while it reads
            return message

        await self._app(scope, receive_some, send)


def request_id_of(scope: Scope) -> str:
    """The id of a request, for a line of the log; a dash outside of the envelope."""
    return str(scope.get("state", {}).get("request_id", "-"))
