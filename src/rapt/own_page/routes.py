"""Routes of the page: its files, which need no key, and what it asks, which does.

They stand behind the gateway's door: loopback alone, no other origin, no proxy, and a key in a header that no other
page can set. Texts come in bodies and go back in answers; no address, log or error has one. Each body is bounded before
it is read, and each kind of work is done for few at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rapt.errors import BusyError, MechanismError, UsageError, WireError
from rapt.gateway.answers import Answers
from rapt.gateway.asking import Asking
from rapt.gateway.models import Models
from rapt.gateway.refusals import Check, read_body, read_fields, read_json, refuse, take_number
from rapt.gateway.releases import Releases
from rapt.gateway.training_files import TrainingSetting
from rapt.gateway.upstream import Upstream
from rapt.local.client import ServiceClient
from rapt.local.client.objects import make_answer_error, read_prediction
from rapt.local.in_memory import state_manifest
from rapt.local.ledger_report import summarize_ledger
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.randomness import secure_stream
from rapt.own_page.described import describe_ledger, describe_statement, find_figures
from rapt.own_page.dropped_files import MOST_BYTES, DroppedFile, list_columns, privatize_dropped
from rapt.own_page.home_answers import HomeAnswers
from rapt.own_page.looking import check_text, look_at_code, look_at_tokens, set_strength
from rapt.page_parts import ENTRY, HEADERS, list_assets, list_paths, read_contents
from rapt.severity import GIVEN_AWAY
from rapt.wire.policy_setting import describe_policy
from rapt.wire.strict_json import parse_document, read_field

ASSETS: Final = list_assets(
    (ENTRY, "ask.js", "file.js", "gateway.js", "ledger.js", "look.js", "measured.js", "own.css", "start.js")
)
OPEN_PATHS: Final = list_paths(ASSETS)
# Looks that wait behind the one that is at work; a slider makes many.
_MOST_WAITING: Final = 8
_MOST_KEPT: Final = 32
# Strengths that the page offers, as parts of that of the gateway, and ε of whole texts.
_AROUND: Final = (0.4, 2.0)
_EPSILONS: Final = (0.25, 16.0)
_LONGEST_HEAD: Final = 4096
_MOST_WRITTEN: Final = 256


def take_text(value: Any, param: str) -> str:
    """Take a text, and show what becomes of it."""
    if not isinstance(value, str) or not value.strip():
        refuse(f"{param} must be a text that is not empty", param)
    return value


_STRENGTH: Final = take_number(1e-6, 1e9)
_LOOK: Final[Mapping[str, Check]] = {"text": take_text, "strength": _STRENGTH}
_ASK: Final[Mapping[str, Check]] = {"text": take_text, "model": take_text}
_FILE: Final[Mapping[str, Check]] = {
    "kind": lambda value, param: value if value in ("csv", "jsonl") else refuse(f"{param} must be csv or jsonl", param),
    "text_column": take_text,
    "label_column": take_text,
}


class OwnPage:
    """The page of one gateway."""

    def __init__(self, upstream: Upstream, releases: Releases, training: TrainingSetting, home: HomeAnswers) -> None:
        """Take the gateway's parts, and what answers at home."""
        privatizer = releases.privatizer
        self._releases, self._training, self._home = releases, training, home
        self._policy = privatizer.policy if isinstance(privatizer, PolicyPrivatizer) else None
        self._models = Models(upstream, vocabulary_hash=privatizer.vocabulary_hash)
        self._asking = Asking(upstream, self._models, releases, Answers(self._policy))
        self._looking, self._working = asyncio.Semaphore(1), asyncio.Semaphore(1)
        self._waiting = 0
        self._statements: OrderedDict[float, dict[str, Any]] = OrderedDict()

    def routes(self) -> list[Route]:
        """Return the routes of the page."""
        asked: list[tuple[str, str, Callable[[Request], Any]]] = [
            ("GET", "/own/setting", self.show_setting),
            ("GET", "/own/ledger", self.show_ledger),
            ("POST", "/own/look", self.look),
            ("POST", "/own/statement", self.state),
            ("POST", "/own/file", self.privatize_file),
            ("POST", "/own/ask", self.ask),
            ("POST", "/own/ask-at-home", self.ask_at_home),
        ]
        return [*_list_files(), *(Route(path, answer, methods=[method]) for method, path, answer in asked)]

    async def show_setting(self, _request: Request) -> Response:
        """Show the gateway's setting, the strengths to try, and what was measured of it."""
        privatizer = self._releases.privatizer
        setting = privatizer.mechanism.setting
        is_code = setting.unit == "text"
        strength = setting.epsilon if is_code else setting.eta
        figures = find_figures(privatizer.vocabulary_hash, setting.name)
        low, high = _EPSILONS if is_code else (part * strength for part in _AROUND)
        for point in () if is_code or figures is None else figures["points"]:
            low, high = min(low, point["at"]), max(high, point["at"])
        try:
            set_strength(privatizer, high)
            is_fixed = False
        except MechanismError:
            is_fixed = True
        policy = () if self._policy is None else self._policy.setting
        return _answer(
            {
                "unit": setting.unit,
                "mechanism": setting.name,
                "strength": strength,
                "lowest": strength if is_fixed else min(low, strength),
                "highest": strength if is_fixed else max(high, strength),
                "model": privatizer.manifest(labels=None, randomness=self._releases.provenance).model,
                "vocabulary": privatizer.vocabulary_hash,
                "policy": describe_policy(policy) if policy else None,
                "classes": None if self._training.labels is None else list(self._training.labels),
                "label_epsilon": None if self._training.label_privacy is None else self._training.label_privacy.epsilon,
                "most_bytes": MOST_BYTES,
                "figures": figures,
                "severities": GIVEN_AWAY,
            }
        )

    async def show_ledger(self, _request: Request) -> Response:
        """Show what was spent and what is left, in counts alone."""
        path = await self._releases.ask(lambda ledger: ledger.path)
        return _answer(describe_ledger(await asyncio.to_thread(summarize_ledger, path)))

    async def look(self, request: Request) -> Response:
        """Show what could leave in the place of a text, by draws that are thrown away."""
        asked = await _read(request, _LOOK)
        text = check_text(asked["text"])
        async with self._wait_for_place(self._looking):
            return _answer(await asyncio.to_thread(self._look, text, float(asked["strength"])))

    def _look(self, text: str, strength: float) -> dict[str, Any]:
        privatizer = set_strength(self._releases.privatizer, strength)
        stream = secure_stream()
        look = look_at_code if privatizer.mechanism.setting.unit == "text" else look_at_tokens
        return asdict(look(privatizer, text, stream=stream))

    async def state(self, request: Request) -> Response:
        """State what a strength protects and what it does not."""
        strength = float((await _read(request, {"strength": _STRENGTH}))["strength"])
        if strength not in self._statements:
            async with self._wait_for_place(self._looking):
                self._statements[strength] = await asyncio.to_thread(self._state, strength)
            while len(self._statements) > _MOST_KEPT:
                self._statements.popitem(last=False)
        return _answer(self._statements[strength])

    def _state(self, strength: float) -> dict[str, Any]:
        privatizer = set_strength(self._releases.privatizer, strength)
        manifest = privatizer.manifest(labels=None, randomness=self._releases.provenance)
        return describe_statement(state_manifest(manifest, privatizer.vocabulary))

    async def privatize_file(self, request: Request) -> Response:
        """Show the columns of a file, or privatize two of them through the ledger."""
        if request.headers.get("content-type") != "application/octet-stream":
            raise UsageError("a file must come as octets, behind one line of JSON that says what it is")
        async with self._wait_for_place(self._working):
            head, _, content = (await read_body(request, most=MOST_BYTES + _LONGEST_HEAD)).partition(b"\n")
            if len(head) > _LONGEST_HEAD:
                raise UsageError(f"the line before a file must have at most {_LONGEST_HEAD} bytes")
            asked = _read_head(head)
            columns = asked.get("text_column"), asked.get("label_column")
            file = DroppedFile(
                content=content, is_csv=asked["kind"] == "csv", text_column=columns[0], label_column=columns[1]
            )
            if file.text_column is None:
                return _answer(await asyncio.to_thread(list_columns, file))
            return _answer(await privatize_dropped(file, self._training, self._releases))

    async def ask(self, request: Request) -> Response:
        """Ask a model with a release of a text, and show what left beside the answer."""
        asked = await _read(request, _ASK)
        model, query = await self._asking.release_query(asked["model"], [check_text(asked["text"])], param="text")
        record = query["records"][0]
        ids = record["token_ids"]
        is_code = self._releases.privatizer.mechanism.setting.unit == "text"
        left = {
            "ids": ids,
            "words": None if is_code else self._releases.privatizer.vocabulary.decode(ids),
            "plain_tokens": len(record.get("privatized_plain_tokens", ())),
            "manifest": query["manifest"],
        }
        if model.chooses:
            answer = await self._asking.ask("/v1/classify", {"model": model.id, **query})
        else:
            prompts = [one.pop("token_ids") for one in query["records"]]
            body = {"model": model.id, "prompt": prompts, "rapt": query, "max_tokens": _MOST_WRITTEN}
            answer = await self._asking.ask("/v1/completions", body)
        if answer.status_code != 200:
            return answer
        return _answer({"left": left, "answer": _read_answer(bytes(answer.body), chooses=model.chooses)})

    async def ask_at_home(self, request: Request) -> Response:
        """Ask a tuned model on this machine, with the text in clear, of which nothing leaves."""
        asked = await _read(request, _ASK)
        text = check_text(asked["text"])
        model = await self._models.find(asked["model"])
        if not (model.is_tuned and model.chooses):
            refuse("the model must be a tuned one that chooses among classes, to be asked at home", "model")
        async with self._wait_for_place(self._working):
            return _answer({"answer": await asyncio.to_thread(self._home.answer, model.id, text)})

    @asynccontextmanager
    async def _wait_for_place(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """Wait for one's turn at a kind of work (`BusyError` where too many wait)."""
        if self._waiting >= _MOST_WAITING:
            raise BusyError("the page is at work; come again", retry_after=1.0)
        self._waiting += 1
        try:
            await places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            places.release()


def open_page(
    upstream: Upstream,
    releases: Releases,
    training: TrainingSetting,
    open_client: Callable[[], AbstractContextManager[ServiceClient]],
    *,
    encoder: str | None = None,
) -> OwnPage:
    """Put the page of a gateway together.

    Args:
        upstream: The service of the gateway.
        releases: The way of every text that leaves.
        training: Setting of the files that are made.
        open_client: Opens a client of the service, which fetches models that answer at home.
        encoder: Name or folder of the encoder of codes; None goes by the name in the code.
    """
    privatizer = releases.privatizer
    policy = privatizer.policy if isinstance(privatizer, PolicyPrivatizer) else None
    home = HomeAnswers(open_client, policy=policy, encoder=encoder, truncate_to=privatizer.truncate_to)
    return OwnPage(upstream, releases, training, home)


def _read_answer(content: bytes, *, chooses: bool) -> dict[str, Any]:
    """Return the classes and their probabilities, or the text, of an answer of the service (`ServiceError`)."""
    try:
        answer = parse_document(content, what="an answer")
        (found,) = answer["predictions" if chooses else "choices"]
        if not chooses:
            return {"text": read_field(found, "text", str, what="an answer")}
        labels, odds = answer["labels"], read_prediction(found).probabilities
        if len(labels) == len(odds) and all(isinstance(label, str) for label in labels):
            return {"labels": labels, "probabilities": odds}
    except (WireError, KeyError, ValueError, TypeError):
        pass
    raise make_answer_error()


async def _read(request: Request, known: Mapping[str, Check]) -> dict[str, Any]:
    """Read a request all of whose fields must be there (`UsageError`)."""
    if request.headers.get("content-type") != "application/json":
        raise UsageError("a request must be application/json")
    found = read_fields(await read_json(request), known)
    for name in known:
        if name not in found:
            refuse(f"{name} must be given", name)
    return found


def _read_head(head: bytes) -> dict[str, Any]:
    try:
        found = read_fields(parse_document(head, what="the line before a file"), _FILE)
    except WireError as error:
        raise UsageError(str(error)) from None
    if "kind" not in found:
        refuse("kind must be given", "kind")
    return found


def _answer(value: Any) -> Response:
    return JSONResponse(value, headers={"cache-control": "no-store", "x-content-type-options": "nosniff"})


def _list_files() -> list[Route]:
    contents = read_contents(__package__, ASSETS)

    def serve(name: str) -> Callable[[Request], Any]:
        async def send(_request: Request) -> Response:
            return Response(contents[name], media_type=ASSETS[name], headers=dict(HEADERS))

        return send

    paths = {name: "/" if name == ENTRY else f"/page/{name}" for name in ASSETS}
    return [Route(path, serve(name), methods=["GET"]) for name, path in paths.items()]
