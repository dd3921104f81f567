"""The shapes of completions and chat: OpenAI's, with token ids for text and a manifest under `rapt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from rapt.service.http.schemas import MOST_RECORDS, Name
from rapt.service.jobs.method_options import Request

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=2**20, fail_fast=True)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]


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


# Options of OpenAI that this service does not offer, and the values with which they ask for nothing.
_HARMLESS: Final[Mapping[str, tuple[object, ...]]] = {
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "metadata": ({},),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "service_tier": ("auto", "default"),
    "web_search_options": (),
    "safety_identifier": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
}


def _is_one_of(value: object, harmless: tuple[object, ...]) -> bool:
    # True is 1 in Python, and not in JSON.
    return any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in harmless)


def _refuse_text(value: object) -> object:
    """Say to who sends a text why it is refused, and what to send; everything else is for the schema."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, str) or (isinstance(first, dict) and first.get("type") in ("text", "input_text")):
        raise PydanticCustomError(
            "text_is_not_private",
            "it must be privatized token ids and not a text, which would not be private; privatize it on your side "
            "with `rapt privatize` and send token_ids, and their manifest under rapt",
        )
    return value


NotText = BeforeValidator(_refuse_text)


class SamplingOptions(Request):
    """How a text is written; a model that chooses among classes looks at none of it.

    Clients send some of OpenAI's options with the values that change nothing, or null: those are taken.
    """

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_changes_nothing(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {
            name: item
            for name, item in value.items()
            if not (item is None and (name in cls._optional() or name in _HARMLESS))
            and not (name in _HARMLESS and name not in cls.model_fields and _is_one_of(item, _HARMLESS[name]))
        }

    @classmethod
    def _optional(cls) -> frozenset[str]:
        return frozenset(name for name, field in cls.model_fields.items() if not field.is_required())

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
    user: Annotated[str, Field(max_length=64)] | None = Field(None, description="taken, and not looked at")


class CompletionRequest(SamplingOptions):
    """Body of `POST /v1/completions`. A prompt of text is refused: it would not be private."""

    model: Name
    prompt: Annotated[
        TokenIds | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_RECORDS, fail_fast=True)], NotText
    ] = Field(description="privatized token ids")
    rapt: PromptPrivacy
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TokenPart(Request):
    """Content of a chat message: privatized token ids in place of a text."""

    type: Literal["token_ids"]
    token_ids: TokenIds


class ChatMessage(Request):
    """A message of the user."""

    role: Literal["user"]
    content: Annotated[list[TokenPart], Field(min_length=1, max_length=1, fail_fast=True), NotText]


class ChatRequest(SamplingOptions):
    """Body of `POST /v1/chat/completions`: one message of the user, whose content is privatized token ids."""

    model: Name
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1, fail_fast=True)]
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
