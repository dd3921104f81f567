"""`/v1/completions` and `/v1/chat/completions`: token ids in; a text, or the label that a model chooses, out.

Both answer as OpenAI's do, streamed or whole. A bare decoder gets a chat in its template, which is public ids around
private ones. What goes to an adapter is what it was tuned on: one message, without a template.

*Chats.* A chat is one private message in the template of a bare decoder, or several turns, of which some are public.
What a message holds privately is token ids, each with a manifest of its own; what it declares public is text, in clear.
The template is filled with stand-ins for the private parts, so nobody ever decodes them.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.requests import Request

from rapt.errors import LimitError, RaptError, UsageError
from rapt.service.answers.generation import Sampling
from rapt.service.backbone.frame import Turn
from rapt.service.http.admission import check_vocabulary
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import BodyRoute
from rapt.service.http.completion_schemas import (
    MOST_PUBLIC,
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    PublicPart,
    SamplingOptions,
    TokenLogprob,
)
from rapt.service.http.parameters import CallerOf
from rapt.service.http.routes.answering import Answering, Prompt, start_answering
from rapt.service.http.routes.pieces import Piece, Token, stream_events
from rapt.service.storage.callers import Caller
from rapt.wire.privatized_file import parse_query

# Roles of OpenAI's that templates know by another name.
_ROLES: Final[Mapping[str, str]] = {"developer": "system"}


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns of a chat whose last message is asked, and the privatization of those before.

    Attributes:
        turns: All messages, with None for each private part.
        earlier: Token ids and manifest of each private message but the last.
    """

    turns: tuple[Turn, ...]
    earlier: tuple[tuple[Sequence[int], Mapping[str, Any]], ...]

    @property
    def is_one_message(self) -> bool:
        """Whether it is a private message of the user and nothing else."""
        return self.turns == (Turn("user", (None,)),)


def read_conversation(body: ChatRequest) -> tuple[list[int], Conversation]:
    """The token ids that are asked, and the conversation around them.

    Raises:
        UsageError: The last message is not the user's with token ids, a message has several lists of them, or an
            earlier one has no manifest.
        LimitError: There is too much public text.
    """
    *before, last = body.messages
    if last.role != "user" or len(last.token_ids) != 1:
        raise _name(UsageError("the last message must be the user's and have one part of token ids"), "messages")
    private = [message.token_ids for message in before if message.token_ids]
    if any(len(ids) > 1 for ids in private):
        raise _name(UsageError("a message must have at most one part of token ids; send two messages"), "messages")
    if len(private) != len(body.rapt.earlier):
        error = UsageError(
            f"each earlier message of token ids must have a manifest of its own, got messages={len(private)} and "
            f"manifests={len(body.rapt.earlier)}; name them in their order"
        )
        raise _name(error, "rapt.earlier")
    public = sum(
        len(part.text) for message in body.messages for part in message.content if isinstance(part, PublicPart)
    )
    if public > MOST_PUBLIC:
        many = f"a chat must have at most {MOST_PUBLIC} characters of public text, got {public}; send less"
        raise _name(LimitError(many), "messages")
    turns = tuple(Turn(_ROLES.get(message.role, message.role), _split_parts(message)) for message in body.messages)
    earlier = tuple((ids, manifest) for (ids,), manifest in zip(private, body.rapt.earlier, strict=True))
    return last.token_ids[0], Conversation(turns=turns, earlier=earlier)


def frame_chat(service: Service, conversation: Conversation, caller: Caller, prompt: Prompt) -> Prompt:
    """The prompt in the chat template of its bare decoder; an adapter was tuned and is asked without one.

    Raises:
        UsageError: The model takes a single message, or its template not these.
        QuotaError: The tenant has used up its tokens of this minute.
        Others: The reasons of `Gate.admit_file`, of an earlier message.
    """
    chat = service.backbones[prompt.backbone].chat
    first, second = prompt.texts
    if conversation.is_one_message:
        if chat is None or prompt.adapter is not None:
            return prompt
        return replace(
            prompt,
            framed=((*chat.before, *first, *chat.after), None)
            if second is None
            else ((*chat.before, *first), (*second, *chat.after)),
        )
    if chat is None or prompt.adapter is not None:
        reason = (
            "a tuned model, which is asked as it was tuned" if prompt.adapter else "a model without a chat template"
        )
        error = UsageError(
            f"public text and several messages must go to a base model that has a chat template, got {reason}; "
            "send one message of token ids alone"
        )
        raise _name(error, "messages")
    if second is not None:
        raise _name(UsageError("a message of a conversation must be one text, got a pair; send one"), "rapt.records")
    private = [_admit(service, ids, manifest, backbone=prompt.backbone) for ids, manifest in conversation.earlier]
    try:
        pieces = chat.template.frame(conversation.turns, tokenizer=service.tokenizers[prompt.backbone])
    except UsageError as error:
        error.param = "messages"
        raise
    whole = list(pieces[0])
    for ids, piece in zip([*private, first], pieces[1:], strict=True):
        whole += [*ids, *piece]
    context = len(whole) - len(first)
    service.quotas.spend_tokens(caller.tenant, context)
    return replace(prompt, framed=(tuple(whole), None), context=context)


def _admit(service: Service, ids: Sequence[int], manifest: Mapping[str, Any], *, backbone: str) -> tuple[int, ...]:
    """The ids of an earlier message, checked as a prompt's are."""
    try:
        query = parse_query(manifest, [{"token_ids": ids}])
        service.gate.check_manifest(query.manifest)
        check_vocabulary(query.manifest, expected=service.backbones[backbone].bundle.hash)
        service.gate.check_records(query)
    except RaptError as error:
        error.param = "rapt.earlier"
        raise
    return query.records[0].token_ids


def _split_parts(message: ChatMessage) -> tuple[str | None, ...]:
    return tuple(part.text if isinstance(part, PublicPart) else None for part in message.content)


def _name(error: RaptError, param: str) -> RaptError:
    error.param = param
    return error


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
            return stream_events(events, on_end=answering.stop)
        pieces: list[list[Piece]] = [[] for _ in prompts]
        async for piece in answering.pieces(request):
            pieces[piece.index].append(piece)
        choices = [_make_choice(own, logprobs=top is not None) for own in pieces]
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
        choice = _make_choice([piece], logprobs=logprobs, start=offsets[piece.index])
        offsets[piece.index] += len(piece.text)
        yield frame.model_copy(update={"choices": [choice]})
    if usage:
        yield frame.model_copy(update={"usage": answering.usage()})


def _make_choice(pieces: Sequence[Piece], *, logprobs: bool, start: int = 0) -> CompletionChoice:
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
            return stream_events(events, on_end=answering.stop)
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
