"""Chats and completions towards any service with OpenAI's routes: words leave, rewritten by a policy or word by word.

A model that is not a service of rapt reads words. A policy masks names, numbers and addresses or gives them pseudonyms,
and everything else of a text leaves in clear. A vocabulary of whole words has each word replaced under metric privacy
besides. Fields, roles and parts are those that the gateway understands; files and jobs are not offered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rapt.errors import CorpusError, UsageError
from rapt.gateway.answers import Answers
from rapt.gateway.asking import CHAT, COMPLETION, KEPT, ask, read_messages, read_texts
from rapt.gateway.models import ModelNames
from rapt.gateway.refusals import read_fields, read_json
from rapt.gateway.releases import Releases, describe_queries
from rapt.gateway.upstream import Upstream
from rapt.local.client.connection import quote_part
from rapt.local.policy.policy import Policy
from rapt.local.records import Chunk
from rapt.local.vocabulary import Vocabulary
from rapt.wire.openai_options import HARMLESS_OPTIONS

# Returns the words that leave in place of each text.
Rewrite = Callable[[list[str]], Awaitable[list[str]]]
_WHOLE_WORDS: Final = "WordLevel"


def rewrite_by_policy(policy: Policy) -> Rewrite:
    """Have a policy alone rewrite texts; nothing is random, so the same text leaves as the same words."""

    def work(texts: list[str]) -> list[str]:
        found = policy.rewrite(texts)
        policy.save()  # before a pseudonym leaves: it leads back after a restart, too
        return found

    async def rewrite(texts: list[str]) -> list[str]:
        return await asyncio.to_thread(work, texts)

    return rewrite


def rewrite_by_releases(releases: Releases) -> Rewrite:
    """Have each word replaced, once for each text, through the ledger.

    Raises:
        UsageError: The vocabulary has pieces of words, which another model's tokenizer would not put together.
    """
    check_whole_words(releases.privatizer.vocabulary)
    setting = describe_queries(releases, releases.privatizer)

    async def rewrite(texts: list[str]) -> list[str]:
        records = await releases.release(Chunk(0, texts, None), setting)
        return [" ".join(setting.privatizer.vocabulary.tokens(record.token_ids)) for record in records]

    return rewrite


def check_whole_words(vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary that has pieces of words (`UsageError`)."""
    if json.loads(vocabulary.bundle.tokenizer_json)["model"].get("type") != _WHOLE_WORDS:
        raise UsageError(
            "words that leave must be replaced by whole words, got a vocabulary of pieces; name a file of word vectors "
            "with --vocabulary"
        )


class WordAsking:
    """Routes that ask a model by words."""

    def __init__(self, upstream: Upstream, rewrite: Rewrite, answers: Answers) -> None:
        """Take the service, what rewrites texts, and what puts names back into answers."""
        self._upstream, self._rewrite, self._answers = upstream, rewrite, answers
        self._models = ModelNames(upstream)

    def routes(self) -> list[Route]:
        """Return the routes on which a model writes words."""
        return [
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{id:path}", self.model, methods=["GET"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]

    async def list_models(self, request: Request) -> Response:
        """List the models of the service."""
        read_fields(dict(request.query_params), {})
        return await self._upstream.pass_on("GET", "/v1/models")

    async def model(self, request: Request) -> Response:
        """Show a model, by a name that the service has given."""
        name = await self._models.name(request.path_params["id"])
        return await self._upstream.pass_on("GET", f"/v1/models/{quote_part(name)}")

    async def complete(self, request: Request) -> Response:
        """Answer the prompts of a request."""
        body = await read_json(request)
        asked = read_fields(body, COMPLETION, own=frozenset({"model", "prompt"}), kept=KEPT, harmless=HARMLESS_OPTIONS)
        texts = read_texts(body.get("prompt"), "prompt")
        model = await self._models.name(body.get("model"))
        words = await self._leave(texts, param="prompt")
        prompt = words[0] if isinstance(body["prompt"], str) else words
        return await ask(
            self._upstream, "/v1/completions", {"model": model, "prompt": prompt, **asked}, answers=self._answers
        )

    async def chat(self, request: Request) -> Response:
        """Answer the messages of a chat."""
        body = await read_json(request)
        asked = read_fields(body, CHAT, own=frozenset({"model", "messages"}), kept=KEPT, harmless=HARMLESS_OPTIONS)
        messages = read_messages(body.get("messages"))
        model = await self._models.name(body.get("model"))
        private = [text for message in messages for is_public, text in message.parts if not is_public]
        words = iter(await self._leave(private, param="messages"))
        turns = [
            {
                "role": message.role,
                "content": "\n".join(text if is_public else next(words) for is_public, text in message.parts),
            }
            for message in messages
        ]
        return await ask(
            self._upstream, "/v1/chat/completions", {"model": model, "messages": turns, **asked}, answers=self._answers
        )

    async def _leave(self, texts: list[str], *, param: str) -> list[str]:
        try:
            return await self._rewrite(texts) if texts else []
        except CorpusError as error:
            error.param = param
            raise
