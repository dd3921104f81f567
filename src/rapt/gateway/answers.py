"""Answers of a model with the names in the places of their pseudonyms, whole or in events as they come.

The service knows pseudonyms alone. A pseudonym may be cut between two events, so the end of a piece may wait for the
next one; each choice of an answer is followed by itself. What the tokens of log-probabilities spell stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from typing import Any, Final

from rapt.errors import ServiceError, WireError
from rapt.local.policy.policy import Policy
from rapt.local.policy.pseudonyms import PseudonymRestorer
from rapt.wire.strict_json import parse_json

_MOST_EVENT: Final = 2**20
# Choices of one answer that are followed: a request has no more prompts, and each choice costs memory.
_MOST_CHOICES: Final = 2048
_DONE: Final = "[DONE]"


class Answers:
    """What puts names back into answers; without pseudonyms they stay as they came."""

    def __init__(self, policy: Policy | None) -> None:
        """Take the policy of the texts that left."""
        self._policy = policy if policy is not None and policy.names is not None else None

    def restore(self, content: bytes) -> bytes:
        """Return a whole answer with its names; one that cannot be read stays as it is."""
        if self._policy is None:
            return content
        try:
            value = parse_json(content, what="an answer")
        except WireError:
            return content
        for place, name in _iterate_texts(value):
            restorer = self._make_restorer()
            place[name] = restorer.restore(place[name])
        return json.dumps(value, ensure_ascii=False).encode()

    async def restore_events(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the events of an answer with its names.

        Raises:
            ServiceError: An event is too long, or there are too many choices.
        """
        if self._policy is None:
            async for chunk in chunks:
                yield chunk
            return
        open_choices: dict[int, tuple[PseudonymRestorer, Any]] = {}
        waiting = b""
        async for chunk in chunks:
            # Put together first: a line end may be cut, too.
            *events, waiting = (waiting + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
            if len(waiting) > _MOST_EVENT:
                raise ServiceError(f"an event of the service must have at most {_MOST_EVENT:,} bytes; ask for less")
            for event in events:
                for written in self._rewrite(event, open_choices):
                    yield written + b"\n\n"
        for written in _finish_all(open_choices):
            yield written + b"\n\n"
        if waiting:
            yield waiting

    def _rewrite(self, event: bytes, open_choices: dict[int, tuple[PseudonymRestorer, Any]]) -> Iterator[bytes]:
        data = b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
        if data.strip() == _DONE.encode():
            yield from _finish_all(open_choices)
            yield event
            return
        try:
            value = parse_json(data, what="an event") if data else None
        except WireError:
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
            yield event
            return
        for choice in value["choices"]:
            if not isinstance(choice, dict):
                continue
            index = choice.get("index")
            index = index if isinstance(index, int) else 0
            for place, name in _iterate_texts_of_choice(choice):
                if index not in open_choices and len(open_choices) == _MOST_CHOICES:
                    raise ServiceError(f"an answer of the service must have at most {_MOST_CHOICES:,} choices at once")
                restorer = open_choices[index][0] if index in open_choices else self._make_restorer()
                open_choices[index] = restorer, {**value, "choices": [deepcopy(choice)]}
                place[name] = restorer.feed(place[name])
            if choice.get("finish_reason") is not None and index in open_choices:
                restorer, _ = open_choices.pop(index)
                _append(choice, restorer.finish())
        yield b"data: " + json.dumps(value, ensure_ascii=False).encode()

    def _make_restorer(self) -> PseudonymRestorer:
        assert self._policy is not None
        found = self._policy.restorer()
        assert found is not None
        return found


def _iterate_texts(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """The places of texts in an answer: an object, and the name of its field."""
    choices = value.get("choices") if isinstance(value, dict) else None
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict):
            yield from _iterate_texts_of_choice(choice)


def _iterate_texts_of_choice(choice: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(choice.get("text"), str):
        yield choice, "text"
    for name in ("message", "delta"):
        message = choice.get(name)
        if isinstance(message, dict) and isinstance(message.get("content"), str):
            yield message, "content"


def _append(choice: dict[str, Any], rest: str) -> None:
    """Put the rest of a text behind that of the choice, which may have none of its own."""
    if not rest:
        return
    for place, name in _iterate_texts_of_choice(choice):
        place[name] += rest
        return
    if isinstance(choice.get("delta"), dict):
        choice["delta"]["content"] = rest
    else:
        choice["text"] = rest


def _finish_all(open_choices: dict[int, tuple[PseudonymRestorer, Any]]) -> Iterator[bytes]:
    """An event with the rest of each text whose end no event has said."""
    for restorer, frame in open_choices.values():
        if rest := restorer.finish():
            for place, name in _iterate_texts(frame):
                place[name] = rest
            yield b"data: " + json.dumps(frame, ensure_ascii=False).encode()
    open_choices.clear()
