"""Server-sent events as OpenAI's clients read them: `data:` and JSON, an error as one event, `[DONE]` last."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from rapt.errors import RaptError
from rapt.service.http.http_errors import response_to, unforeseen_response
from rapt.service.http.middleware import request_id_of
from rapt.service.traces import log_unforeseen

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class _EventStream(StreamingResponse):
    """Says when it has ended, however it did: also before the first value was asked for."""

    def __init__(
        self, events: AsyncIterator[BaseModel], *, on_end: Callable[[], None], headers: dict[str, str]
    ) -> None:
        super().__init__(self._lines(events), media_type="text/event-stream", headers=headers)
        self._on_end = on_end
        self._request_id = "-"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._request_id = request_id_of(scope)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()

    async def _lines(self, events: AsyncIterator[BaseModel]) -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield b"data: " + event.model_dump_json().encode() + b"\n\n"
        except HTTPException:
            return  # the client has left
        except Exception as error:
            # The status is sent already: the clients raise what they find in an event that holds an error.
            if not isinstance(error, RaptError):
                log_unforeseen(log, f"{self._request_id} in its stream", error)
            answer = response_to(error) if isinstance(error, RaptError) else unforeseen_response(error)
            yield b"data: " + bytes(answer.body) + b"\n\n"
        yield DONE


def event_stream(events: AsyncIterator[BaseModel], *, on_end: Callable[[], None]) -> StreamingResponse:
    """The answer that sends each value as it comes, and calls `on_end` when nobody reads any more."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy must not hold pieces back
    return _EventStream(events, on_end=on_end, headers=headers)
