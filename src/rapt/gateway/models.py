"""Models of the service by name: none is asked for by a name that the service did not give, and none out of step.

A name may be anything, also a text; so what a program calls a model is looked up in the service's own list and never
sent to find out. A model with another vocabulary or code than that of the gateway could not read what leaves.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rapt.errors import NotFoundError, VocabularyError
from rapt.gateway.upstream import Upstream, pass_answer
from rapt.local.client.connection import quote_part
from rapt.local.client.objects import read_answer, read_answers, read_model_info
from rapt.wire.strict_json import read_field

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
        chooses: Whether it chooses among classes, and writes no text.
    """

    id: str
    is_tuned: bool
    plain_tokens: int
    chooses: bool


class ModelNames:
    """Names of the models of a service, remembered as it listed them."""

    def __init__(self, upstream: Upstream) -> None:
        """Start with no name known."""
        self._upstream = upstream
        self._listed: dict[str, Mapping[str, Any]] = {}
        self._listed_at = -_BETWEEN_LISTS
        self._listing = asyncio.Lock()

    async def name(self, given: object) -> str:
        """Return a name that the service has given, and none but that.

        Raises:
            NotFoundError: There is no such model.
        """
        if isinstance(given, str):
            base = _find_base(given)
            if base not in self._listed:
                await self._list(since=time.monotonic())
            if base in self._listed:
                return given
        raise _make_unknown_error()

    def forget(self, name: str) -> None:
        """Ask the service about a model anew: it may be gone."""
        self._listed.pop(name, None)

    async def _list(self, *, since: float) -> None:
        """Learn the names anew, unless that was begun since somebody asked; times are of the monotonic clock, s."""
        async with self._listing:
            if self._listed_at >= since:
                return
            await asyncio.sleep(self._listed_at + _BETWEEN_LISTS - time.monotonic())
            begun = time.monotonic()
            params: dict[str, str | int] = {}
            found: dict[str, Mapping[str, Any]] = {}
            for _ in range(_PAGES):
                answer = await self._upstream.ask("GET", "/v1/models", params=params)
                if not answer.is_success:
                    raise RefusedByService(answer)
                value = answer.read_object()
                found |= {item["id"]: item for item in read_answers(_read_named, value)}
                if value.get("has_more") is not True or not isinstance(value.get("last_id"), str):
                    break
                params["after"] = value["last_id"]
            self._listed = found
            self._listed_at = begun


class Models(ModelNames):
    """Models of a service of rapt, checked to read what leaves here."""

    def __init__(self, upstream: Upstream, *, vocabulary_hash: str) -> None:
        """Start with no model known.

        Args:
            upstream: The service.
            vocabulary_hash: Hash of the vocabulary, or code, whose ids leave.
        """
        super().__init__(upstream)
        self._hash = vocabulary_hash
        self._asked: dict[str, KnownModel] = {}

    async def find(self, given: object) -> KnownModel:
        """Return the model of a name.

        Raises:
            NotFoundError: There is no such model.
            VocabularyError: It has another vocabulary or code than that of the gateway.
        """
        name = await self.name(given)
        if name not in self._asked:
            found = read_answer(read_model_info, self._listed[name]) if name in self._listed else None
            if found is None or found.base != found.id:  # the card stands in the answer to its name alone
                answer = await self._upstream.ask("GET", f"/v1/models/{quote_part(name)}")
                if not answer.is_success:
                    self.forget(name)
                    raise _make_unknown_error() if answer.status == NotFoundError.status else RefusedByService(answer)
                found = read_answer(read_model_info, answer.read_object())
            if found.vocabulary_hash != self._hash:
                mismatch = VocabularyError(
                    "the model must have the vocabulary, or the code, that this gateway privatizes with, got another; "
                    "ask another model, or start a gateway for it"
                )
                mismatch.param = "model"
                raise mismatch
            card = found.card
            count, chooses = (0, False) if card is None else (card.plain_tokens, card.task != "generation")
            self._asked[name] = KnownModel(name, found.base != found.id, count, chooses)
        return self._asked[name]

    def forget(self, name: str) -> None:
        """Ask the service about a model anew: it may be gone."""
        super().forget(name)
        self._asked.pop(name, None)


class RefusedByService(Exception):
    """The service refused what the gateway asked before it could pass a request on."""

    def __init__(self, answer: Any) -> None:
        """Keep the answer for the program."""
        super().__init__("refused")
        self.response = pass_answer(answer)


def _find_base(name: str) -> str:
    checkpoint = _CHECKPOINT.fullmatch(name)
    return checkpoint[1] if checkpoint else name


def _read_named(value: Mapping[str, Any]) -> Mapping[str, Any]:
    read_field(value, "id", str, what="a model")
    return value


def _make_unknown_error() -> NotFoundError:
    error = NotFoundError("the model must be one of the service's; list them to see their names")
    error.param = "model"
    return error
