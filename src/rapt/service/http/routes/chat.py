"""`/v1/chat/completions`: a completion in the shape of a chat, streamed or whole.

A chat here is one message of the user. A bare decoder gets it in its chat template, which is public ids around private
ones. What goes to an adapter is what it was tuned on, without a template.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.requests import Request

from rapt.service.http.assembly import Service
from rapt.service.http.callers import CallerOf
from rapt.service.http.completion_schemas import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    Delta,
    TokenLogprob,
)
from rapt.service.http.json_bodies import BodyRoute
from rapt.service.http.routes.answering import Answering, start_answering
from rapt.service.http.routes.completions import new_id, sampling_of, stops_of
from rapt.service.http.routes.event_stream import event_stream
from rapt.service.http.routes.spelling import Token

DEFAULT_TOKENS: Final = 128


def router(service: Service) -> APIRouter:
    """The route of chats."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1", tags=["predictions"])

    @routes.post(
        "/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {"text/event-stream": {}}, "description": "an answer, or events of one"}},
    )
    async def create_chat_completion(
        body: ChatRequest, request: Request, caller: CallerOf
    ) -> ChatCompletion | StreamingResponse:
        """Answer one message of privatized token ids."""
        answering = await start_answering(
            service,
            [body.messages[0].content[0].token_ids],
            model=body.model,
            privacy=body.rapt,
            caller=caller,
            most_tokens=body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS,
            sampling=sampling_of(body, top=(body.top_logprobs or 0) if body.logprobs else 0),
            stops=stops_of(body),
            as_chat=True,
        )
        answer_id, created = new_id("chatcmpl"), int(time.time())
        if body.stream:
            frame = ChatChunk(id=answer_id, created=created, model=body.model, choices=[])
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = _events(frame, answering, request, logprobs=body.logprobs, usage=usage)
            return event_stream(events, on_end=answering.stop)
        pieces = [piece async for piece in answering.pieces(request)]
        finish = pieces[-1].finish
        assert finish is not None  # the last piece has one
        choice = ChatChoice(
            index=0,
            message=AnswerMessage(content="".join(piece.text for piece in pieces)),
            finish_reason=finish,
            logprobs=_logprobs([piece.token for piece in pieces if piece.token is not None]) if body.logprobs else None,
        )
        return ChatCompletion(
            id=answer_id, created=created, model=body.model, choices=[choice], usage=answering.usage()
        )

    return routes


async def _events(
    frame: ChatChunk, answering: Answering, request: Request, *, logprobs: bool, usage: bool
) -> AsyncIterator[ChatChunk]:
    first = ChatChunkChoice(index=0, delta=Delta(role="assistant", content=""), finish_reason=None)
    yield frame.model_copy(update={"choices": [first]})
    async for piece in answering.pieces(request):
        tokens = [] if piece.token is None else [piece.token]
        choice = ChatChunkChoice(
            index=0,
            delta=Delta(content=piece.text),
            finish_reason=piece.finish,
            logprobs=_logprobs(tokens) if logprobs else None,
        )
        yield frame.model_copy(update={"choices": [choice]})
    if usage:
        yield frame.model_copy(update={"usage": answering.usage()})


def _logprobs(tokens: Sequence[Token]) -> ChatLogprobs:
    def shown(text: str, logprob: float) -> TokenLogprob:
        return TokenLogprob(token=text, logprob=logprob, bytes=list(text.encode()))

    return ChatLogprobs(
        content=[
            shown(token.text, token.logprob).model_copy(update={"top_logprobs": [shown(*pair) for pair in token.top]})
            for token in tokens
        ]
    )
