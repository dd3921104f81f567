"""The shapes of completions and chat: OpenAI's, with token ids for text and a manifest under `rapt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from rapt.service.http.schemas import MOST_RECORDS, Metadata, Name
from rapt.service.jobs.method_options import OpenAIRequest, Request
from rapt.wire.openai_options import HARMLESS_OF_A_MESSAGE, HARMLESS_OPTIONS, MOST_MESSAGES, MOST_PARTS

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=2**20, fail_fast=True)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]
MOST_PUBLIC: Final = 32_768


class PromptPrivacy(Request):
    """Privatization of the prompts, under `rapt`: in the official client, `extra_body={"rapt": {...}}`."""

    manifest: dict[str, Any] = Field(description="counts exactly the prompts, in their order")
    records: list[dict[str, Any]] | None = Field(
        None,
        max_length=MOST_RECORDS,
        fail_fast=True,
        description="for each prompt the other fields of its record; needed with plain tokens or pairs",
    )
    models: list[Name] | None = Field(
        None, max_length=MOST_RECORDS, fail_fast=True, description="a model for each prompt, in place of `model`"
    )


class StreamOptions(Request):
    """Options for the end of a stream."""

    include_usage: bool = False
    include_obfuscation: Annotated[
        Literal[False] | None, Field(description="nothing is added: who listens sees the lengths of the pieces")
    ] = None


_UNREAD: Final = "taken, not looked at and not kept"


def _refuse_text(value: object, *, otherwise: str = "") -> object:
    """Say to who sends a text why it is refused, and what to send; everything else is for the schema."""
    parts = value if isinstance(value, list) else [value]
    for part in parts[:MOST_PARTS]:
        if isinstance(part, str) or (isinstance(part, dict) and part.get("type") in ("text", "input_text")):
            raise PydanticCustomError(
                "text_is_not_private",
                "it must be privatized token ids and not a text, which would not be private; privatize it on your side "
                f"with `rapt privatize` and send token_ids, and their manifest under rapt{otherwise}",
            )
    return value


def _refuse_text_of_message(value: object) -> object:
    return _refuse_text(value, otherwise='; if all may read it, say so: {"type": "public_text", "text": ...}')


NotText = BeforeValidator(_refuse_text)


class SamplingOptions(OpenAIRequest):
    """How a text is written; a model that chooses among classes looks at none of it.

    Clients send some of OpenAI's options with the values that change nothing, or null: those are taken.
    """

    harmless: ClassVar[Mapping[str, tuple[object, ...]]] = HARMLESS_OPTIONS

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: (
        Annotated[
            int,
            Field(ge=0, lt=2**63, description="the same one draws the same text again on one machine; it is slower"),
        ]
        | None
    ) = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4, fail_fast=True)] | None = Field(
        None, description="the answer ends before the first of these; they are read in clear, so take public ones"
    )
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=64)] | None = Field(None, description=_UNREAD)
    safety_identifier: Annotated[str, Field(max_length=64)] | None = Field(None, description=_UNREAD)
    prompt_cache_key: Annotated[str, Field(max_length=64)] | None = Field(None, description=_UNREAD)
    metadata: Metadata | None = Field(None, description=_UNREAD)


class CompletionRequest(SamplingOptions):
    """Body of `POST /v1/completions`. A prompt of text is refused: it would not be private."""

    model: Name
    prompt: Annotated[
        TokenIds | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_RECORDS, fail_fast=True)], NotText
    ] = Field(description="privatized token ids")
    rapt: PromptPrivacy
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: (
        Annotated[int, Field(ge=0, le=20)] | Annotated[Literal[False], Field(description="no log probabilities")] | None
    ) = None


class TokenPart(Request):
    """Private part of a chat message: privatized token ids in place of a text."""

    type: Literal["token_ids"]
    token_ids: TokenIds


class PublicPart(Request):
    """Part of a chat message that its sender declares public: it travels in clear, and the service reads it."""

    type: Literal["public_text"]
    text: Annotated[str, Field(min_length=1, max_length=MOST_PUBLIC)]


Part = Annotated[TokenPart | PublicPart, Field(discriminator="type")]


class ChatMessage(OpenAIRequest):
    """A message of a chat."""

    harmless: ClassVar[Mapping[str, tuple[object, ...]]] = {"name": (), **HARMLESS_OF_A_MESSAGE}

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part],
        Field(min_length=1, max_length=MOST_PARTS, fail_fast=True),
        BeforeValidator(_refuse_text_of_message),
    ]

    @property
    def token_ids(self) -> list[TokenIds]:
        """Token ids of the private parts."""
        return [part.token_ids for part in self.content if isinstance(part, TokenPart)]


class ChatPrivacy(PromptPrivacy):
    """Privatization of the private messages of a chat, under `rapt`."""

    manifest: dict[str, Any] = Field(description="counts exactly the last message")
    earlier: list[dict[str, Any]] = Field(
        default_factory=list,
        max_length=MOST_MESSAGES,
        fail_fast=True,
        description="a manifest for each earlier message that has token ids, in their order",
    )


class ChatRequest(SamplingOptions):
    """Body of `POST /v1/chat/completions`: privatized token ids of the user last, public and private turns before."""

    model: Name
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    rapt: ChatPrivacy
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class Usage(BaseModel):
    """Tokens in and out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Log-probabilities of each token of a choice, in nats; a label counts as one token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One prompt's answer, or a piece of it in a stream."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionLogprobs | None = None


class Completion(BaseModel):
    """Answer of `POST /v1/completions`; also each piece of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TokenLogprob(BaseModel):
    """A token and how likely it was, in nats."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TokenLogprob] = Field(default_factory=list)


class ChatLogprobs(BaseModel):
    """Log-probabilities of each token of an answer, in nats."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """A message of the model."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """An answer of the model, as one choice."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None


class ChatCompletion(BaseModel):
    """Answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """Addition of a piece to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """A piece of the answer."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None
    logprobs: ChatLogprobs | None = None


class ChatChunk(BaseModel):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
