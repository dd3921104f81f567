"""Models of the service by name: none is asked for by a name that the service did not give, and none out of step.

A name may be anything, also a text; so what a program calls a model is looked up in the service's own list and never
sent to find out. A model with another vocabulary or code than that of the gateway could not read what leaves.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Any, Final

from rapt.errors import NotFoundError, VocabularyError
from rapt.gateway.upstream import Upstream, pass_answer
from rapt.local.client.connection import quote_part
from rapt.local.client.objects import ModelInfo, read_answer, read_answers, read_model_info

_CHECKPOINT: Final = re.compile(r"(.+):ckpt-step-\d{1,15}")
_PAGES: Final = 100
# The service is asked for a fresh list this often at most, s, however many names there are that nothing has.
_BETWEEN_LISTS: Final = 0.25


@dataclass(frozen=True)
class KnownModel:
    """A model as a request needs to know it.

    Attributes:
        id: Name of the model, as the service gave it.
        is_tuned: Whether it is asked as it was tuned: one text, no template.
        plain_tokens: Number of plain tokens that a query must have.
    """

    id: str
    is_tuned: bool
    plain_tokens: int


class Models:
    """Models of a service, remembered by their names."""

    def __init__(self, upstream: Upstream, *, vocabulary_hash: str) -> None:
        """Know none yet.

        Args:
            upstream: The service.
            vocabulary_hash: Hash of the vocabulary, or code, whose ids leave.
        """
        self._upstream, self._hash = upstream, vocabulary_hash
        self._listed: dict[str, ModelInfo] = {}
        self._asked: dict[str, KnownModel] = {}
        self._listed_at = -_BETWEEN_LISTS
        self._listing = asyncio.Lock()

    async def name(self, given: object) -> str:
        """Return a name that the service has given, and none but that.

        Raises:
            NotFoundError: There is no such model.
        """
        if isinstance(given, str):
            checkpoint = _CHECKPOINT.fullmatch(given)
            base = checkpoint[1] if checkpoint else given
            if base not in self._listed:
                await self._list(since=time.monotonic())
            if base in self._listed:
                return given
        error = NotFoundError("the model must be one of the service's; list them to see their names")
        error.param = "model"
        raise error

    async def find(self, given: object) -> KnownModel:
        """Return the model of a name, checked to read what leaves here.

        Raises:
            NotFoundError: There is no such model.
            VocabularyError: It has another vocabulary or code.
        """
        name = await self.name(given)
        if name not in self._asked:
            found = self._listed.get(name)
            if found is None or found.base != found.id:  # the card stands in the answer to its name alone
                answer = await self._upstream.ask("GET", f"/v1/models/{quote_part(name)}")
                if not answer.is_success:
                    self.forget(name)
                    error = NotFoundError("the model must be one of the service's; list them to see their names")
                    error.param = "model"
                    raise error
                found = read_answer(read_model_info, answer.read_object())
            if found.vocabulary_hash != self._hash:
                mismatch = VocabularyError(
                    "the model must have the vocabulary, or the code, that this gateway privatizes with, got another; "
                    "ask another model, or start a gateway for it"
                )
                mismatch.param = "model"
                raise mismatch
            count = 0 if found.card is None else found.card.plain_tokens
            self._asked[name] = KnownModel(name, found.base != found.id, count)
        return self._asked[name]

    def forget(self, name: str) -> None:
        """Ask the service about a model anew: it may be gone."""
        self._listed.pop(name, None)
        self._asked.pop(name, None)

    async def _list(self, *, since: float) -> None:
        """Learn the names anew, unless that was begun since somebody asked; times are of the monotonic clock, s."""
        async with self._listing:
            if self._listed_at >= since:
                return
            await asyncio.sleep(self._listed_at + _BETWEEN_LISTS - time.monotonic())
            begun = time.monotonic()
            params: dict[str, str | int] = {"limit": 1000}
            found: dict[str, ModelInfo] = {}
            for _ in range(_PAGES):
                answer = await self._upstream.ask("GET", "/v1/models", params=params)
                if not answer.is_success:
                    raise RefusedByService(answer)
                value = answer.read_object()
                found |= {model.id: model for model in read_answers(read_model_info, value)}
                if value.get("has_more") is not True or not isinstance(value.get("last_id"), str):
                    break
                params["after"] = value["last_id"]
            self._listed = found
            self._asked = {name: model for name, model in self._asked.items() if _base_of(name) in found}
            self._listed_at = begun


class RefusedByService(Exception):
    """The service refused what the gateway asked before it could pass a request on."""

    def __init__(self, answer: Any) -> None:
        """Keep the answer for the program."""
        super().__init__("refused")
        self.response = pass_answer(answer)


def _base_of(name: str) -> str:
    checkpoint = _CHECKPOINT.fullmatch(name)
    return checkpoint[1] if checkpoint else name
