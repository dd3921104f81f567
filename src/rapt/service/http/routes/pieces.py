"""Pieces of an answer: tokens into text, as far as its characters are whole, and values into server-sent events.

Events are as OpenAI's clients read them: `data:` and JSON, an error as one event, `[DONE]` last.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from tokenizers import Tokenizer

from rapt.service.answers.generation import Choice
from rapt.service.answers.writing import Finish, Written
from rapt.service.http.http_errors import answer_exception
from rapt.service.http.middleware import get_request_id

# A character whose bytes are spread over tokens decodes to this until the last of them is there.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class Token:
    """A piece of text and how likely it was, in nats; `top` are the likeliest in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The new part of the answer to prompt `index`; `finish` says that it was the last."""

    index: int
    text: str = ""
    token: Token | None = None
    finish: Finish | None = None


class Spelling:
    """The pieces of one answer; called in the thread that writes, says there when it has enough."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        index: int,
        tell: Callable[[Piece | Exception], None],
        stops: Sequence[str] = (),
    ) -> None:
        """Nothing is written yet.

        Args:
            tokenizer: Tokenizer of the model that writes.
            index: Position of the prompt in its request.
            tell: Is given every piece.
            stops: Texts before the first of which the answer ends.
        """
        self._tokenizer, self._index, self._tell, self._stops = tokenizer, index, tell, stops
        self._ids: list[int] = []
        self._whole = self._told = ""

    def __call__(self, written: Written) -> bool:
        """Tell what is new; whether the answer ends here."""
        if written.error is not None:
            self._tell(written.error)
            return True
        token = None
        if written.choice is not None:
            token = self._make_token(written.choice)
            self._ids.append(written.choice.token_id)
        text = str(self._tokenizer.decode(self._ids))
        if not written.finish and text.endswith(_UNFINISHED):
            text = self._whole
        self._whole = text
        finish = written.finish
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            text, finish = text[: min(places)], "stop"
        elif finish is None:
            text = text[: len(text) - max((_count_begun(stop, text) for stop in self._stops), default=0)]
        new, self._told = text[len(self._told) :], text
        self._tell(Piece(index=self._index, text=new, token=token, finish=finish))
        return finish is not None

    def _make_token(self, choice: Choice) -> Token:
        return Token(
            text=self._spell(choice.token_id),
            logprob=choice.logprob,
            top=tuple((self._spell(token_id), logprob) for token_id, logprob in choice.top),
        )

    def _spell(self, token_id: int) -> str:
        """A token's own text where it stands: alone, one that begins a word would lose the space before it (T5)."""
        before = self._ids[-1:]
        first, both = (self._tokenizer.decode(ids, skip_special_tokens=False) for ids in (before, [*before, token_id]))
        if both.startswith(first):
            return str(both[len(first) :])
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))


def _count_begun(stop: str, text: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class _EventStream(StreamingResponse):
    """Says when it has ended, however it did: also before the first value was asked for."""

    def __init__(
        self, events: AsyncIterator[BaseModel], *, on_end: Callable[[], None], headers: dict[str, str]
    ) -> None:
        super().__init__(self._iterate_lines(events), media_type="text/event-stream", headers=headers)
        self._on_end = on_end
        self._request_id = "-"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._request_id = get_request_id(scope)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()

    async def _iterate_lines(self, events: AsyncIterator[BaseModel]) -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield b"data: " + event.model_dump_json().encode() + b"\n\n"
        except HTTPException:
            return  # the client has left
        except Exception as error:
            # The status is sent already: the clients raise what they find in an event that holds an error.
            answer = answer_exception(error, what=f"{self._request_id} in its stream")
            yield b"data: " + bytes(answer.body) + b"\n\n"
        yield DONE


def stream_events(events: AsyncIterator[BaseModel], *, on_end: Callable[[], None]) -> StreamingResponse:
    """The answer that sends each value as it comes, and calls `on_end` when nobody reads any more."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # a proxy must not hold pieces back
    return _EventStream(events, on_end=on_end, headers=headers)
