"""The shapes of completions and chat: OpenAI's, with token ids for text and a manifest under `rapt`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from rapt.service.http.schemas import Name
from rapt.service.jobs.method_options import Request

TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]


class PromptPrivacy(Request):
    """What is said of the prompts, under `rapt`: in the official client, `extra_body={"rapt": {...}}`."""

    manifest: dict[str, Any] = Field(description="counts exactly the prompts, in their order")
    records: list[dict[str, Any]] | None = Field(
        None,
        description="of each prompt, what its record holds beside `token_ids`; for files with plain tokens or pairs",
    )
    models: list[Name] | None = Field(None, description="a model for each prompt, in place of `model`")


class StreamOptions(Request):
    """What a stream ends with."""

    include_usage: bool = False


class SamplingOptions(Request):
    """How a text is written; a model that chooses among classes looks at none of it."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: (
        Annotated[
            int,
            Field(ge=0, lt=2**63, description="the same one draws the same text again on one machine; it is slower"),
        ]
        | None
    ) = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="the answer ends before the first of these; they are read in clear, so take public ones"
    )
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=64)] | None = Field(None, description="taken, and not looked at")


class CompletionRequest(SamplingOptions):
    """Body of `POST /v1/completions`. A prompt of text is refused: it would not be private."""

    model: Name
    prompt: TokenIds | Annotated[list[TokenIds], Field(min_length=1)] = Field(description="privatized token ids")
    rapt: PromptPrivacy
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TokenPart(Request):
    """Content of a chat message: privatized token ids in place of a text."""

    type: Literal["token_ids"]
    token_ids: TokenIds


class ChatMessage(Request):
    """What the user says."""

    role: Literal["user"]
    content: Annotated[list[TokenPart], Field(min_length=1, max_length=1)]


class ChatRequest(SamplingOptions):
    """Body of `POST /v1/chat/completions`: one message of the user, whose content is privatized token ids."""

    model: Name
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1)]
    rapt: PromptPrivacy
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
    """Of each token of a choice, in nats; for a model that chooses among classes a label is one token."""

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
    """Of each token of an answer."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The answer."""

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
    """What a piece adds to the message."""

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
