"""`/healthz`, `/readyz`, `/metrics`: for whoever keeps the service running."""

from __future__ import annotations

import shutil
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

from rapt.errors import UnavailableError
from rapt.service.http.assembly import Service
from rapt.service.http.callers import AdminOf
from rapt.service.http.schemas import Health
from rapt.version import __version__

_LEAST_ROOM: Final = 64 * 1024 * 1024  # bytes; with less, the next upload or state would fail half way


def router(service: Service) -> APIRouter:
    """The routes of operation."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> Health:  # async: it answers also while every thread is busy
        """The service answers."""
        return Health(version=__version__)

    @routes.get("/readyz")
    def readyz() -> Health:
        """The service can work: its database answers, its disk has room, its worker lives."""
        service.store.database.check()
        if shutil.disk_usage(service.store.directory.root).free < _LEAST_ROOM:
            raise UnavailableError("the disk must have room for what comes in; make some")
        if service.settings.worker_in_service and not service.runner.is_alive():
            raise UnavailableError("the worker must live; restart the service")
        return Health(version=__version__)

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(caller: AdminOf) -> Response:
        """Figures in Prometheus's text format."""
        del caller
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
