"""Server-sent events as OpenAI's clients read them: `data:` and JSON, an error as one event, `[DONE]` last."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rapt.errors import RaptError
from rapt.service.http.http_errors import response_to, unforeseen_response

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def event_stream(events: AsyncIterator[BaseModel]) -> StreamingResponse:
    """The answer that sends each value as it comes."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy must not hold pieces back
    return StreamingResponse(_lines(events), media_type="text/event-stream", headers=headers)


async def _lines(events: AsyncIterator[BaseModel]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield b"data: " + event.model_dump_json().encode() + b"\n\n"
    except HTTPException:
        return  # the client has left
    except Exception as error:  # the status is sent already: the clients raise what they find in an event named error
        if not isinstance(error, RaptError):
            log.error("a stream failed: %s", type(error).__name__)
        answer = response_to(error) if isinstance(error, RaptError) else unforeseen_response(error)
        yield b"data: " + bytes(answer.body) + b"\n\n"
    yield DONE
