"""`/` and `/page/...`: hands out the page. The description of the API does not have these routes."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

from rapt.service.http.conditional import IfNoneMatch, is_current
from rapt.service.page.assets import ASSETS, ENTRY, HEADERS, contents


def router() -> APIRouter:
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
