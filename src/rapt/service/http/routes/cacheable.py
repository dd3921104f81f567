"""Answers that a client may keep: `/v1/vocabularies` and `/v1/codes`, which users privatize with, and the page at `/`.

Each has a tag that changes with its content. The description of the API does not have the routes of the page.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from rapt.errors import NotFoundError
from rapt.page_parts import ENTRY, HEADERS
from rapt.service.http.assembly import Service, locate_vocabulary
from rapt.service.http.bodies import BodyRoute
from rapt.service.http.parameters import NOT_MODIFIED, CallerOf, IfNoneMatch, is_current
from rapt.service.page import ASSETS, contents
from rapt.service.storage.callers import Caller
from rapt.service.storage.model_rows import get_model

_TYPES: Final = {
    "vocabulary.json": "application/json",
    "tokenizer.json": "application/json",
    "embeddings.safetensors": "application/octet-stream",
    "code.json": "application/json",
    "code.safetensors": "application/octet-stream",
}


def make_vocabulary_router(service: Service) -> APIRouter:
    """The routes of vocabulary bundles; the name of a tuned model stands for its base."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1/vocabularies", tags=["vocabularies"])

    @routes.get("/{model}", response_class=FileResponse, responses=NOT_MODIFIED)
    def retrieve_vocabulary(model: str, caller: CallerOf, if_none_match: IfNoneMatch = None) -> Response:
        """`vocabulary.json`: hash, shape, longest input and eligible ids."""
        return _send(service, caller, model, "vocabulary.json", if_none_match)

    @routes.get("/{model}/tokenizer.json", response_class=FileResponse, responses=NOT_MODIFIED)
    def retrieve_tokenizer(model: str, caller: CallerOf, if_none_match: IfNoneMatch = None) -> Response:
        """The tokenizer, in Hugging Face's format."""
        return _send(service, caller, model, "tokenizer.json", if_none_match)

    @routes.get("/{model}/embeddings.safetensors", response_class=FileResponse, responses=NOT_MODIFIED)
    def retrieve_embeddings(model: str, caller: CallerOf, if_none_match: IfNoneMatch = None) -> Response:
        """The embedding table that eta is measured against."""
        return _send(service, caller, model, "embeddings.safetensors", if_none_match)

    return routes


def make_code_router(service: Service) -> APIRouter:
    """The routes of code bundles; the name of a tuned model stands for its base."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1/codes", tags=["vocabularies"])

    @routes.get("/{model}", response_class=FileResponse, responses=NOT_MODIFIED)
    def retrieve_code(model: str, caller: CallerOf, if_none_match: IfNoneMatch = None) -> Response:
        """`code.json`: the encoder that makes codes of texts, its hash, and the shape of the codebook."""
        return _send(service, caller, model, "code.json", if_none_match)

    @routes.get("/{model}/code.safetensors", response_class=FileResponse, responses=NOT_MODIFIED)
    def retrieve_codebook(model: str, caller: CallerOf, if_none_match: IfNoneMatch = None) -> Response:
        """The map from an encoder's states to codes, and the codebook."""
        return _send(service, caller, model, "code.safetensors", if_none_match)

    return routes


def _send(service: Service, caller: Caller, model: str, file: str, if_none_match: str | None) -> Response:
    base = model
    # A contributor learns what is public, and no names of the tenant's models.
    if model not in service.backbones and caller.role != "contributor":
        base = get_model(service.store, model, tenant=caller.tenant).base
    backbone = service.backbone(base)
    if file.startswith("code.") != (backbone.code is not None):
        have, route = ("a codebook", "codes") if backbone.code is not None else ("a vocabulary", "vocabularies")
        raise NotFoundError(f"this model has {have}; it is below /v1/{route}")
    tag = f'"{backbone.bundle.hash}"'
    # The tag changes with the content, so a cache may keep it for ever as long as it asks.
    headers = {"etag": tag, "cache-control": "no-cache"}
    if is_current(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    return _FileToItsEnd(locate_vocabulary(service.store, base) / file, media_type=_TYPES[file], headers=headers)


_TO_THE_END: Final = re.compile(rb"bytes=([0-9]{1,18})-")


class _FileToItsEnd(FileResponse):
    """A file, or the rest of one from a byte on: any other range is ignored, as HTTP allows.

    The framework's answers to odd ranges are not in the shape of the API.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = [value for name, value in scope["headers"] if name == b"range"]
        found = _TO_THE_END.fullmatch(asked[0]) if len(asked) == 1 else None
        if found is None or int(found[1]) >= Path(self.path).stat().st_size:
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}
        await super().__call__(scope, receive, send)


def make_page_router() -> APIRouter:
    """The routes of the page."""
    routes = APIRouter(include_in_schema=False)
    content_of = contents()
    tags = {name: f'"{hashlib.sha256(content).hexdigest()}"' for name, content in content_of.items()}

    def send(name: str, if_none_match: str | None) -> Response:
        headers = {**HEADERS, "etag": tags[name]}
        if is_current(tags[name], if_none_match):
            return Response(status_code=304, headers=headers)
        return Response(content_of[name], media_type=ASSETS[name], headers=headers)

    @routes.get("/")
    async def entry(if_none_match: IfNoneMatch = None) -> Response:
        return send(ENTRY, if_none_match)

    @routes.get("/page/{name}")
    async def asset(name: str, if_none_match: IfNoneMatch = None) -> Response:
        if name not in content_of or name == ENTRY:
            raise HTTPException(404)
        return send(name, if_none_match)

    return routes
