"""The gateway put together, and served on loopback until a signal."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from rapt.errors import RaptError, UsageError
from rapt.gateway.answers import Answers
from rapt.gateway.asking import Asking
from rapt.gateway.door import GatewayDoor
from rapt.gateway.holdings import Holdings
from rapt.gateway.models import Models, RefusedByService
from rapt.gateway.refusals import answer_error, make_error
from rapt.gateway.releases import Releases
from rapt.gateway.training_files import TrainingSetting
from rapt.gateway.upstream import Upstream
from rapt.gateway.words import Rewrite, WordAsking
from rapt.local.policy.policy import Policy
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.narration import log_to_stderr
from rapt.this_machine import is_loopback

_BACKLOG: Final = 1024
_GRACE: Final = 4  # s, for answers that are on their way when the gateway is asked to stop
_OF_ROUTES: Final = {404: "no such route at the gateway", 405: "the route does not have this method"}


def create_gateway(
    upstream: Upstream,
    releases: Releases,
    training: TrainingSetting,
    *,
    key: str,
    pages: Sequence[BaseRoute] = (),
    open_paths: Collection[str] = (),
) -> GatewayDoor:
    """Put the gateway together.

    Args:
        upstream: The service; it is closed when the gateway ends.
        releases: The way of every text that leaves.
        training: Setting of the files that are made of uploads.
        key: Key of programs.
        pages: Routes beside those of programs, such as those of a page, behind the same door.
        open_paths: Paths among them that need no key to be read, because nothing of anybody is there.
    """
    models = Models(upstream, vocabulary_hash=releases.privatizer.vocabulary_hash)
    policy = releases.privatizer.policy if isinstance(releases.privatizer, PolicyPrivatizer) else None
    routes = [
        *Asking(upstream, models, releases, Answers(policy)).routes(),
        *Holdings(upstream, models, releases, training).routes(),
        *pages,
    ]
    return _assemble(upstream, routes, key=key, open_paths=open_paths)


def create_word_gateway(upstream: Upstream, rewrite: Rewrite, *, policy: Policy | None, key: str) -> GatewayDoor:
    """Put a gateway together that sends words to any service with OpenAI's routes.

    Args:
        upstream: The service; it is closed when the gateway ends.
        rewrite: Returns the words that leave in place of texts.
        policy: Policy of the texts, whose pseudonyms lead back in answers.
        key: Key of programs.
    """
    return _assemble(upstream, WordAsking(upstream, rewrite, Answers(policy)).routes(), key=key)


def _assemble(
    upstream: Upstream, routes: Sequence[BaseRoute], *, key: str, open_paths: Collection[str] = ()
) -> GatewayDoor:
    @asynccontextmanager
    async def live(_app: Starlette) -> AsyncIterator[None]:
        yield
        await upstream.close()

    app = Starlette(
        routes=routes,
        exception_handlers={
            RaptError: _answer_known,
            RefusedByService: _answer_refused,
            HTTPException: _answer_unrouted,
            ClientDisconnect: _answer_gone,
            Exception: _answer_unforeseen,
        },
        lifespan=live,
    )
    app.router.redirect_slashes = False
    return GatewayDoor(app, key=key, open_paths=open_paths)


async def _answer_known(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RaptError)
    return answer_error(error)


async def _answer_refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedByService)
    return error.response


async def _answer_unrouted(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    return make_error(_OF_ROUTES.get(status, "the request cannot be read"), status=status, code="not_found")


async def _answer_gone(_request: Request, _error: Exception) -> Response:
    return make_error("the program closed the connection before its answer", status=499, code="client_left")


async def _answer_unforeseen(_request: Request, _error: Exception) -> Response:
    return make_error("internal error; see the log of the gateway", status=500, code=RaptError.code)


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Open a socket on loopback.

    Raises:
        UsageError: The address is not of this machine alone, or is taken.
    """
    if not is_loopback(host):
        raise UsageError(
            "the gateway must listen on this machine alone, because texts come to it in clear; take 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: else the kernel keeps the body of an answer 40 ms behind its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((host.removeprefix("[").removesuffix("]"), port))
        except OSError as error:
            raise UsageError(f"the port must be free, got {error.strerror}; name another with --port") from None
        yield listener


def name_address(listener: socket.socket) -> str:
    """Return the `base_url` of a gateway behind a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it answers."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[uvicorn.Server], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal, which uvicorn itself would raise once more at the end."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and say so."""
        await super().startup(sockets)
        self._on_ready(self)


def serve_on(listener: socket.socket, app: GatewayDoor, *, on_ready: Callable[[uvicorn.Server], None]) -> None:
    """Serve until a signal, or until somebody sets `should_exit` of what `on_ready` was given."""
    log_to_stderr()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        backlog=_BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE,
    )
    _Server(config, on_ready).run(sockets=[listener])
