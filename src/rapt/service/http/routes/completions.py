"""`/v1/completions` and `/v1/chat/completions`: token ids in; a text, or the label that a model chooses, out.

Both answer as OpenAI's do, streamed or whole. A bare decoder gets a chat in its template, which is public ids around
private ones. What goes to an adapter is what it was tuned on: one message, without a template.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.requests import Request

from rapt.service.answers.generation import Sampling
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import BodyRoute
from rapt.service.http.completion_schemas import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    SamplingOptions,
    TokenLogprob,
)
from rapt.service.http.parameters import CallerOf
from rapt.service.http.routes.answering import Answering, start_answering
from rapt.service.http.routes.conversation import frame_chat, read_conversation
from rapt.service.http.routes.pieces import Piece, Token, event_stream

DEFAULT_TOKENS: Final = 128


def completion_router(service: Service) -> APIRouter:
    """The route of completions."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1", tags=["predictions"])

    @routes.post(
        "/completions",
        response_model=Completion,
        responses={200: {"content": {"text/event-stream": {}}, "description": "a completion, or events of one"}},
    )
    async def create_completion(
        body: CompletionRequest, request: Request, caller: CallerOf
    ) -> Completion | StreamingResponse:
        """Answer prompts of privatized token ids: with a text, or with the likeliest label of a model that chooses."""
        prompts = [body.prompt] if isinstance(body.prompt[0], int) else body.prompt
        top = None if body.logprobs is False else body.logprobs
        answering = await start_answering(
            service,
            prompts,
            model=body.model,
            privacy=body.rapt,
            caller=caller,
            most_tokens=body.max_tokens,
            sampling=make_sampling(body, top=top or 0),
            stops=list_stops(body),
        )
        frame = Completion(id=make_answer_id("cmpl"), created=int(time.time()), model=body.model, choices=[])
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = _completion_events(frame, answering, request, logprobs=top is not None, usage=usage)
            return event_stream(events, on_end=answering.stop)
        pieces: list[list[Piece]] = [[] for _ in prompts]
        async for piece in answering.pieces(request):
            pieces[piece.index].append(piece)
        choices = [_choice(own, logprobs=top is not None) for own in pieces]
        return frame.model_copy(update={"choices": choices, "usage": answering.usage()})

    return routes


def make_sampling(body: SamplingOptions, *, top: int) -> Sampling:
    """How the texts of a request are written; without a seed, each request is another draw."""
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        seed=secrets.randbelow(2**63) if body.seed is None else body.seed,
        repeatable=body.seed is not None and body.temperature > 0,
        top_logprobs=top,
    )


def list_stops(body: SamplingOptions) -> list[str]:
    """Texts that end an answer."""
    return [body.stop] if isinstance(body.stop, str) else body.stop or []


def make_answer_id(kind: str) -> str:
    """An id of an answer; nothing is kept under it."""
    return f"{kind}-{secrets.token_hex(12)}"


async def _completion_events(
    frame: Completion, answering: Answering, request: Request, *, logprobs: bool, usage: bool
) -> AsyncIterator[Completion]:
    offsets = [0] * len(answering.prompts)
    async for piece in answering.pieces(request):
        choice = _choice([piece], logprobs=logprobs, start=offsets[piece.index])
        offsets[piece.index] += len(piece.text)
        yield frame.model_copy(update={"choices": [choice]})
    if usage:
        yield frame.model_copy(update={"usage": answering.usage()})


def _choice(pieces: Sequence[Piece], *, logprobs: bool, start: int = 0) -> CompletionChoice:
    tokens = [piece.token for piece in pieces if piece.token is not None]
    return CompletionChoice(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        finish_reason=pieces[-1].finish,
        logprobs=_completion_logprobs(tokens, start=start) if logprobs else None,
    )


def _completion_logprobs(tokens: Sequence[Token], *, start: int) -> CompletionLogprobs:
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token.text)
    return CompletionLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[dict(token.top) for token in tokens],
        text_offset=offsets,
    )


def chat_router(service: Service) -> APIRouter:
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
        """Answer a message of privatized token ids, in a conversation if there is one."""
        asked, conversation = read_conversation(body)
        answering = await start_answering(
            service,
            [asked],
            model=body.model,
            privacy=body.rapt,
            caller=caller,
            most_tokens=body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS,
            sampling=make_sampling(body, top=(body.top_logprobs or 0) if body.logprobs else 0),
            stops=list_stops(body),
            frame=functools.partial(frame_chat, service, conversation, caller),
        )
        answer_id, created = make_answer_id("chatcmpl"), int(time.time())
        if body.stream:
            frame = ChatChunk(id=answer_id, created=created, model=body.model, choices=[])
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = _chat_events(frame, answering, request, logprobs=body.logprobs, usage=usage)
            return event_stream(events, on_end=answering.stop)
        pieces = [piece async for piece in answering.pieces(request)]
        finish = pieces[-1].finish
        assert finish is not None  # the last piece has one
        tokens = [piece.token for piece in pieces if piece.token is not None]
        choice = ChatChoice(
            index=0,
            message=AnswerMessage(content="".join(piece.text for piece in pieces)),
            finish_reason=finish,
            logprobs=_chat_logprobs(tokens) if body.logprobs else None,
        )
        return ChatCompletion(
            id=answer_id, created=created, model=body.model, choices=[choice], usage=answering.usage()
        )

    return routes


async def _chat_events(
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
            logprobs=_chat_logprobs(tokens) if logprobs else None,
        )
        yield frame.model_copy(update={"choices": [choice]})
    if usage:
        yield frame.model_copy(update={"usage": answering.usage()})


def _chat_logprobs(tokens: Sequence[Token]) -> ChatLogprobs:
    def shown(text: str, logprob: float) -> TokenLogprob:
        return TokenLogprob(token=text, logprob=logprob, bytes=list(text.encode()))

    return ChatLogprobs(
        content=[
            shown(token.text, token.logprob).model_copy(update={"top_logprobs": [shown(*pair) for pair in token.top]})
            for token in tokens
        ]
    )
