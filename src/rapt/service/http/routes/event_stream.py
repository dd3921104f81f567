"""Server-sent events as OpenAI's clients read them: `data:` and JSON, an error as one event, `[DONE]` last."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rapt.errors import RaptError

DONE = b"data: [DONE]\n\n"


def event_stream(events: AsyncIterator[BaseModel]) -> StreamingResponse:
    """The answer that sends each value as it comes."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy must not hold pieces back
    return StreamingResponse(_lines(events), media_type="text/event-stream", headers=headers)


async def _lines(events: AsyncIterator[BaseModel]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield b"data: " + event.model_dump_json(exclude_unset=False).encode() + b"\n\n"
    except HTTPException:
        return  # the client has left
    except Exception as error:
        # The status is sent already: the clients raise what they find in an event named error.
        known = isinstance(error, RaptError)
        message = str(error) if known else f"an error that the service did not foresee, {type(error).__name__}"
        code = error.code if isinstance(error, RaptError) else RaptError.code
        kind = "invalid_request_error" if isinstance(error, RaptError) and error.status < 500 else "server_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        yield b"data: " + json.dumps(body).encode() + b"\n\n"
    yield DONE
