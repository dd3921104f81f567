"""Completions, chats and classification: texts of a program become releases with a manifest each.

A message that a program calls `public_text` goes on as it is, because its sender says that all may read it; every other
text of every role is private. A tuned model is asked as it was tuned, with one text: instructions of the system stay
here, because tuning has learnt what they say. A stop text is read by the service in clear, so one with letters or
digits is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rapt.errors import CorpusError
from rapt.gateway.answers import Answers
from rapt.gateway.models import KnownModel, Models
from rapt.gateway.refusals import (
    Check,
    read_fields,
    read_json,
    refuse,
    take_either,
    take_flag,
    take_number,
    take_object,
    take_one_of,
    take_whole,
)
from rapt.gateway.releases import Releases, describe_queries
from rapt.gateway.upstream import Upstream, pass_answer
from rapt.local.privatizer import USUAL_POOL, plan_plain_tokens
from rapt.local.randomness import secure_stream
from rapt.local.records import Chunk, ChunkSetting
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.openai_options import HARMLESS_OF_A_MESSAGE, HARMLESS_OPTIONS, MOST_MESSAGES, MOST_PARTS
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, dump_query

MOST_TEXTS: Final = 2048
_LONGEST_STOP: Final = 64
_ROLES: Final = ("system", "developer", "user", "assistant")


def take_stop(value: Any, param: str) -> Any:
    """Take texts that end an answer, where no letter and no digit is in them: the service reads them in clear."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops) or len(stops) > 4:
        refuse(f"{param} must be a text, or at most 4 of them", param)
    for stop in stops:
        if not 0 < len(stop) <= _LONGEST_STOP or any(letter.isalnum() for letter in stop):
            refuse(f"{param} must be without letters and digits, because the service reads it in clear", param)
    return value


_SAMPLING: Final[Mapping[str, Check]] = {
    "temperature": take_number(0, 2),
    "top_p": take_number(0, 1),
    "seed": take_whole(0, 2**63 - 1),
    "stop": take_stop,
    "n": take_one_of(1),
    "stream": take_flag,
    "stream_options": take_object({"include_usage": take_flag, "include_obfuscation": take_one_of(False)}),
}
_TOKENS: Final = take_whole(1, 2**31 - 1)
COMPLETION: Final[Mapping[str, Check]] = {
    **_SAMPLING,
    "max_tokens": _TOKENS,
    "logprobs": take_either(take_one_of(False), take_whole(0, 20)),
}
CHAT: Final[Mapping[str, Check]] = {
    **_SAMPLING,
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "logprobs": take_flag,
    "top_logprobs": take_whole(0, 20),
}
# What a program says of its user or to its own records; a service has no need of it.
KEPT: Final = frozenset({"user", "safety_identifier", "prompt_cache_key", "metadata"})


@dataclass(frozen=True)
class Message:
    """A message of a chat, in clear; its `repr` shows the role alone.

    Attributes:
        role: Role of who wrote it.
        parts: Texts in order, each with whether its sender calls it public.
    """

    role: str
    parts: tuple[tuple[bool, str], ...]

    def __repr__(self) -> str:
        """Show the role, and nothing of the text."""
        return f"Message({self.role!r}, {len(self.parts)} parts)"


def read_messages(value: Any) -> list[Message]:
    """Read the messages of a chat; texts that follow each other in one message are one text.

    Raises:
        UsageError: Something of them is not known; `param` says where.
    """
    if not isinstance(value, list) or not 0 < len(value) <= MOST_MESSAGES:
        refuse(f"messages must be a list of 1 to {MOST_MESSAGES} messages", "messages")
    return [_read_message(message, at=f"messages.{place}") for place, message in enumerate(value)]


def _read_message(value: Any, *, at: str) -> Message:
    own, kept = frozenset({"role", "content"}), frozenset({"name"})
    read_fields(value, {}, at=f"{at}.", own=own, kept=kept, harmless=HARMLESS_OF_A_MESSAGE)
    role, content = value.get("role"), value.get("content")
    if role not in _ROLES:
        refuse(f"{at}.role must be one of {', '.join(_ROLES)}; a message of another role stays", f"{at}.role")
    if isinstance(content, str):
        return Message(role, ((False, content),))
    if not isinstance(content, list) or not 0 < len(content) <= MOST_PARTS:
        refuse(f"{at}.content must be a text, or a list of 1 to {MOST_PARTS} parts", f"{at}.content")
    parts: list[tuple[bool, str]] = []
    for place, part in enumerate(content):
        where = f"{at}.content.{place}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "public_text"):
            refuse(f"{where}.type must be text or public_text; a part of another kind stays", f"{where}.type")
        read_fields(part, {}, at=f"{where}.", own=frozenset({"type", "text"}))
        text = part.get("text")
        if not isinstance(text, str):
            refuse(f"{where}.text must be a text", f"{where}.text")
        if kind == "text" and parts and not parts[-1][0]:
            parts[-1] = (False, f"{parts[-1][1]}\n{text}")
        else:
            parts.append((kind == "public_text", text))
    if sum(not is_public for is_public, _ in parts) > 1:
        refuse(f"{at}.content must have its private text in one place; put the public parts before it", f"{at}.content")
    return Message(role, tuple(parts))


def read_texts(value: Any, param: str) -> list[str]:
    """Read one text or several. Token ids are refused: nobody here could privatize them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        refuse(f"{param} must be a text or a list of texts, which are privatized here; ids are refused", param)
    if len(texts) > MOST_TEXTS:
        refuse(f"{param} must have at most {MOST_TEXTS} texts; send several requests", param)
    return texts


class Asking:
    """Routes that ask a model."""

    def __init__(self, upstream: Upstream, models: Models, releases: Releases, answers: Answers) -> None:
        """Take what they ask, the way out, and what puts names back into answers."""
        self._upstream, self._models, self._releases, self._answers = upstream, models, releases, answers
        self._settings: dict[int, ChunkSetting] = {}

    def routes(self) -> list[Route]:
        """Return the routes by which programs ask models."""
        asked: Mapping[str, Callable[[Request], Any]] = {
            "/v1/completions": self.complete,
            "/v1/chat/completions": self.chat,
            "/v1/classify": self.classify,
        }
        return [Route(path, answer, methods=["POST"]) for path, answer in asked.items()]

    async def complete(self, request: Request) -> Response:
        """Answer prompts, each of them a release."""
        body = await read_json(request)
        own = frozenset({"model", "prompt"})
        asked = read_fields(body, COMPLETION, own=own, kept=KEPT, harmless=HARMLESS_OPTIONS)
        texts = read_texts(body.get("prompt"), "prompt")
        model, query = await self.release_query(body.get("model"), texts, param="prompt")
        prompts = [record.pop("token_ids") for record in query["records"]]
        return await self.ask("/v1/completions", {"model": model.id, "prompt": prompts, "rapt": query, **asked})

    async def chat(self, request: Request) -> Response:
        """Answer a chat, each message of which is a release of its own, whenever it comes again."""
        body = await read_json(request)
        asked = read_fields(body, CHAT, own=frozenset({"model", "messages"}), kept=KEPT, harmless=HARMLESS_OPTIONS)
        messages = read_messages(body.get("messages"))
        model = await self._models.find(body.get("model"))
        if model.is_tuned:
            messages = [message for message in messages if message.role not in ("system", "developer")]
            if len(messages) != 1:
                refuse("messages must hold one message of the user, because a tuned model reads one text", "messages")
        last = messages[-1]
        if last.role != "user" or all(is_public for is_public, _ in last.parts):
            refuse("the last of the messages must be the user's, with a text that is privatized", "messages")
        private = [text for message in messages for is_public, text in message.parts if not is_public]
        setting = self._make_setting(model.plain_tokens)
        records = await self._release(private, setting, param="messages")
        sealed = [seal([record], setting) for record in records]
        ids = iter([query["records"][0].pop("token_ids") for query in sealed])
        turns = [
            {
                "role": message.role,
                "content": [
                    {"type": "public_text", "text": text}
                    if is_public
                    else {"type": "token_ids", "token_ids": next(ids)}
                    for is_public, text in message.parts
                ],
            }
            for message in messages
        ]
        privacy = {**sealed[-1], "earlier": [query["manifest"] for query in sealed[:-1]]}
        return await self.ask("/v1/chat/completions", {"model": model.id, "messages": turns, "rapt": privacy, **asked})

    async def classify(self, request: Request) -> Response:
        """Answer with a label for each text."""
        body = await read_json(request)
        read_fields(body, {}, own=frozenset({"model", "input"}), kept=KEPT)
        texts = read_texts(body.get("input"), "input")
        model, query = await self.release_query(body.get("model"), texts, param="input")
        return await self.ask("/v1/classify", {"model": model.id, **query})

    async def release_query(self, given: object, texts: list[str], *, param: str) -> tuple[KnownModel, dict[str, Any]]:
        """Release texts for a model, each a record of one query, which has all that leaves of them.

        Args:
            given: Name of the model, as it came in.
            texts: The texts, in clear.
            param: Field that the texts came in, named where one of them is refused.

        Raises:
            Others: The reasons of `Models.find` and `Releases.release`.
        """
        model = await self._models.find(given)
        setting = self._make_setting(model.plain_tokens)
        return model, seal(await self._release(texts, setting, param=param), setting)

    async def ask(self, path: str, body: Mapping[str, Any]) -> Response:
        """Send what may leave to the service; a model that it no longer has is asked about anew. Raises as `ask`."""
        answer = await ask(self._upstream, path, body, answers=self._answers)
        if answer.status_code == 404:
            self._models.forget(body["model"])
        return answer

    async def _release(self, texts: list[str], setting: ChunkSetting, *, param: str) -> list[PrivatizedRecord]:
        """Release texts, each one a record; `param` names their field where one of them is refused."""
        try:
            return await self._releases.release(Chunk(0, texts, None), setting)
        except CorpusError as error:
            error.param = param
            raise

    def _make_setting(self, plain_tokens: int) -> ChunkSetting:
        if plain_tokens not in self._settings:
            privatizer = self._releases.privatizer
            plan = NO_PLAIN_TOKENS
            if plain_tokens:
                plan = plan_plain_tokens(
                    privatizer.vocabulary,
                    count=plain_tokens,
                    pool_size=USUAL_POOL,
                    drawn="record",
                    rng=secure_stream().generator,
                )
            self._settings[plain_tokens] = describe_queries(self._releases, privatizer.with_plain_tokens(plan))
        return self._settings[plain_tokens]


async def ask(upstream: Upstream, path: str, body: Mapping[str, Any], *, answers: Answers) -> Response:
    """Send what may leave, and return the answer with its names. Raises as `Upstream.ask`."""
    if body.get("stream"):
        return await upstream.stream(path, json=body, change=answers.restore_events)
    answer = await upstream.ask("POST", path, json=body)
    return pass_answer(replace(answer, content=answers.restore(answer.content)) if answer.is_success else answer)


def seal(records: Sequence[PrivatizedRecord], setting: ChunkSetting) -> dict[str, Any]:
    """Return records as a query: plain values, and the manifest that counts them."""
    return dump_query(PrivatizedFile(manifest=setting.manifest, records=tuple(records)))
