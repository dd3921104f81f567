"""Files, jobs and models: uploads are privatized here; ids, numbers and names of the service's own go through.

A name that a program gives to its file, a job or a model stays here, and so do the notes that it attaches.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rapt.errors import LimitError, NotFoundError, UsageError
from rapt.gateway.models import Models
from rapt.gateway.refusals import (
    Check,
    read_body,
    read_fields,
    read_json,
    refuse,
    take_either,
    take_number,
    take_object,
    take_one_of,
    take_whole,
)
from rapt.gateway.releases import Releases
from rapt.gateway.training_files import MOST_UPLOAD, TrainingSetting, privatize_training, read_training_records
from rapt.gateway.upstream import Upstream, pass_answer
from rapt.local.client.connection import quote_part

_ID: Final = re.compile(r"(file|ftjob|ftevent|ftckpt)-[0-9a-f]{24}")
_ROOM_FOR_A_FORM: Final = 64 * 1024
# Uploads whose files are remembered, so that one that is repeated makes no second file.
_MOST_REMEMBERED: Final = 256
# Each is in memory, several times over; the others wait.
_UPLOADS_AT_ONCE: Final = 2


def take_id(value: Any, param: str) -> str:
    """Take an id of the service's own."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        refuse(f"{param} must be an id that the service gave", param)
    return value


_AUTO: Final = take_one_of("auto")
_WHOLE: Final = take_either(_AUTO, take_whole(0, 2**31 - 1))
_NUMBER: Final = take_either(_AUTO, take_number(0, 10_000))


def _take_reconstruction(value: Any, param: str) -> Any:
    return value if value == "auto" else _RECONSTRUCTION(value, param)


_RECONSTRUCTION: Final = take_object(
    {"weight": _NUMBER, "hidden_size": _WHOLE, "schedule": take_one_of("constant", "rise", "fall", "auto")}
)
# Words, such as those that a prompt begins with, are not among them: they would be read in clear.
_HYPERPARAMETERS: Final[Mapping[str, Check]] = {
    "task": take_one_of("classification", "label_words", "generation", "auto"),
    "n_epochs": _WHOLE,
    "batch_size": _WHOLE,
    "patience": _WHOLE,
    "learning_rate": _NUMBER,
    "learning_rate_multiplier": _NUMBER,
    "reconstruction": _take_reconstruction,
    "num_virtual_tokens": _WHOLE,
    "initialization": take_one_of("vocabulary", "random", "labels", "auto"),
    "encoder": take_one_of("mlp", "lstm", "none", "auto"),
    "encoder_hidden_size": _WHOLE,
    "r": _WHOLE,
    "lora_alpha": _NUMBER,
}
_METHODS: Final = ("supervised", "auto", "prompt_tuning", "prefix_tuning", "lora", "linear_probing")
_OPTIONS: Final = take_object({"hyperparameters": take_object(_HYPERPARAMETERS)})
JOB: Final[Mapping[str, Check]] = {
    "training_file": take_id,
    "validation_file": take_id,
    "method": take_object({"type": take_one_of(*_METHODS), **dict.fromkeys(_METHODS, _OPTIONS)}),
    "hyperparameters": take_object(_HYPERPARAMETERS),
    "seed": take_whole(0, 2**31 - 1),
    "rapt": take_object({"priority": take_whole(-100, 100)}),
}
# Names and notes of a program's own.
KEPT: Final = frozenset({"suffix", "metadata"})


def _take_limit(value: str, param: str) -> str:
    if not (value.isascii() and value.isdecimal() and len(value) < 6):
        refuse(f"{param} must be a number below 100,000", param)
    return value


_PAGE: Final[Mapping[str, Check]] = {
    "limit": _take_limit,
    "order": take_one_of("asc", "desc"),
    "purpose": take_one_of("fine-tune"),
    "after": take_id,
}


class _InMemory(MultiPartParser):
    """A form whose files stay in memory: the usual one writes large ones to a disk, in clear."""

    spool_max_size = 2 * MOST_UPLOAD


class Holdings:
    """Routes of files, jobs and models."""

    def __init__(self, upstream: Upstream, models: Models, releases: Releases, training: TrainingSetting) -> None:
        """Take the service, and how uploads are privatized."""
        self._upstream, self._models, self._releases, self._training = upstream, models, releases, training
        self._key = secrets.token_bytes(32)
        self._made: OrderedDict[bytes, str] = OrderedDict()
        self._uploading = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    def routes(self) -> list[Route]:
        """Return the routes of files, jobs and models."""
        jobs = "/v1/fine_tuning/jobs"
        asked: list[tuple[str, str, Callable[[Request], Any]]] = [
            ("POST", "/v1/files", self.upload),
            ("POST", jobs, self.create_job),
            *(("GET", path, self.pass_on) for path in ("/v1/files", jobs)),
            *(("GET", f"/v1/files/{{id}}{rest}", self.pass_on) for rest in ("", "/content")),
            ("DELETE", "/v1/files/{id}", self.pass_on),
            *(("GET", f"{jobs}/{{id}}{rest}", self.pass_on) for rest in ("", "/events", "/checkpoints")),
            *(("POST", f"{jobs}/{{id}}/{what}", self.pass_on) for what in ("cancel", "pause", "resume")),
            ("GET", "/v1/models", self.list_models),
            *((method, "/v1/models/{id:path}", self.model) for method in ("GET", "DELETE")),
        ]
        return [Route(path, answer, methods=[method]) for method, path, answer in asked]

    async def pass_on(self, request: Request) -> Response:
        """Pass a request on that has an id and numbers and nothing else; a body is not read."""
        given = request.path_params.get("id")
        path = request.scope["route"].path
        if given is not None:
            if not _ID.fullmatch(given):
                raise NotFoundError("no such object; list them to see what there is")
            path = path.replace("{id}", given)
        params = read_fields(dict(request.query_params), _PAGE)
        return await self._upstream.pass_on(request.method, path, params=params)

    async def list_models(self, request: Request) -> Response:
        """List the models of the service."""
        read_fields(dict(request.query_params), {})
        return await self._upstream.pass_on("GET", "/v1/models")

    async def model(self, request: Request) -> Response:
        """Show or delete a model, by a name that the service has given."""
        name = await self._models.name(request.path_params["id"])
        if request.method == "DELETE":
            self._models.forget(name)
        return await self._upstream.pass_on(request.method, f"/v1/models/{quote_part(name)}")

    async def create_job(self, request: Request) -> Response:
        """Ask for a job on a file that was uploaded."""
        body = await read_json(request)
        asked = read_fields(body, JOB, own=frozenset({"model"}), kept=KEPT, harmless={"integrations": ([],)})
        model = await self._models.name(body.get("model"))
        key = request.headers.get("idempotency-key")
        return await self._upstream.pass_on(
            "POST",
            "/v1/fine_tuning/jobs",
            json={"model": model, **asked},
            key=None if key is None else self._digest(key.encode()).hex(),
        )

    async def upload(self, request: Request) -> Response:
        """Privatize training records, and upload the privatized file alone."""
        async with self._uploading:
            return await self._upload(request)

    async def _upload(self, request: Request) -> Response:
        content, is_csv = await _read_upload(request)
        digest = self._digest(content)
        if (made := self._made.get(digest)) is not None:
            answer = await self._upstream.ask("GET", "/v1/files", params={"sha256": made, "limit": 1})
            known = answer.read_object().get("data") if answer.is_success else None
            if isinstance(known, list) and len(known) == 1 and isinstance(known[0], dict):
                return await self._upstream.pass_on("GET", f"/v1/files/{take_id(known[0].get('id'), 'id')}")
        records = await asyncio.to_thread(read_training_records, content, is_csv=is_csv)
        file, _ = await privatize_training(records, self._training, self._releases)
        self._made[digest] = hashlib.sha256(file).hexdigest()
        while len(self._made) > _MOST_REMEMBERED:
            self._made.popitem(last=False)
        return pass_answer(await self._upstream.ask("POST", "/v1/files", file=file))

    def _digest(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256")


async def _read_upload(request: Request) -> tuple[bytes, bool]:
    """Read the file of a form, and whether its name says that it is CSV; the name is not kept."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "multipart/form-data":
        refuse("an upload must be a form with purpose and file", "file")
    body = await read_body(request, most=MOST_UPLOAD + _ROOM_FOR_A_FORM)

    async def stream() -> Any:
        yield body

    try:
        form = await _InMemory(request.headers, stream(), max_files=1, max_fields=4, max_part_size=4096).parse()
    except (MultiPartException, FormParserError, KeyError, UnicodeError, ValueError):
        raise UsageError("an upload must be a form with purpose and one file") from None
    try:
        own = frozenset({"file"})
        found = read_fields(dict(form.multi_items()), {"purpose": take_one_of("fine-tune")}, own=own)
        file = form.get("file")
        if "purpose" not in found or file is None or isinstance(file, str) or len(form.multi_items()) != 2:
            refuse("an upload must be a form with purpose and one file", "file")
        content = await file.read()
        if len(content) > MOST_UPLOAD:
            raise LimitError(f"a training file must have at most {MOST_UPLOAD:,} bytes; upload several")
        return content, (file.filename or "").lower().endswith(".csv")
    finally:
        await form.close()
