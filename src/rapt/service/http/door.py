"""The door: who may come in, and as whom.

With keys, whoever sends one that is good, as its tenant. A service on loopback that never had a key lets in local
programs as the developer, and its own page, but nobody for whom a proxy asks; the first key that is created, by
whatever way, ends that for good.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, TypeVarTuple, Unpack

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rapt.errors import AccessError, ForbiddenError
from rapt.service.http.http_errors import answer_error
from rapt.service.http.settings import Settings
from rapt.service.http.shares import run_in_thread
from rapt.service.page import PAGE_PATHS
from rapt.service.storage.callers import DEVELOPER, LOCAL, Caller
from rapt.service.storage.database import WouldWait, forbid_waiting
from rapt.service.storage.key_rows import find_holder, has_keys
from rapt.service.storage.store import Store
from rapt.this_machine import is_asked_from_here, is_loopback

Arguments = TypeVarTuple("Arguments")
Answer = TypeVar("Answer")

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
# How often a long answer is stopped to look at its key, s: one that was revoked must not go on getting answers.
_BETWEEN_LOOKS: Final = 1.0
# The answer to a browser that asks whether a page of another origin may contribute.
_PREFLIGHT: Final = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": "600",
}
# Whoever has the key of the settings runs the service.
_PROVIDER: Final = Caller(tenant=LOCAL, key="settings", role="admin")


class _KeyEnded(Exception):
    """The key of an answer was revoked, or has ended, while it was sent."""


class Door:
    """Lets a request in as somebody, or refuses it."""

    def __init__(self, app: ASGIApp, *, settings: Settings, store: Store) -> None:
        """Wrap an application so that it is asked only after the key is checked."""
        self._app = app
        self._store = store
        key = settings.admin_key
        self._key = None if key is None else _digest(key.get_secret_value())
        self._may_be_open = key is None and is_loopback(settings.host)
        # Nothing of anybody is in the page, and it must be there to ask for a key.
        self._open_paths = OPEN_PATHS | PAGE_PATHS if settings.page else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] == "http" and _is_for_any_page(scope["method"], scope["path"]):
            if scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send)
                return
            send = _allow_any_origin(send)
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            caller = await run_at_hand_or_in_thread(self._find_caller, Headers(scope=scope), scope["scheme"])
            if caller is None:
                message = "invalid API key; send `Authorization: Bearer KEY` with a key from the provider"
                if self._may_be_open:
                    message += "; without keys, only local programs are answered, and none through a proxy"
                await answer_error(AccessError(message))(scope, receive, send)
                return
            if caller.role == "contributor" and not _may_contribute(caller, scope["method"], scope["path"]):
                error = ForbiddenError(
                    "the key of a contributor adds to its pool and takes back, and does nothing else"
                )
                await answer_error(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
            still = _StillGood(
                send, lambda: run_at_hand_or_in_thread(self._find_caller, Headers(scope=scope), scope["scheme"])
            )
            try:
                await self._app(scope, receive, still.send)
            except Exception:
                if not still.ended:  # else it was ended by us, whatever its parts made of that
                    raise
            return
        await self._app(scope, receive, send)

    def _find_caller(self, headers: Headers, scheme: str) -> Caller | None:
        key = _read_bearer(headers)
        # Digests are compared, so that the time says nothing about the key, its length included.
        if self._key is not None and key and hmac.compare_digest(_digest(key), self._key):
            return _PROVIDER
        if key and (holder := find_holder(self._store, key, now=int(time.time()))) is not None:
            return holder
        if self._may_be_open and is_asked_from_here(headers, scheme=scheme) and not has_keys(self._store):
            return DEVELOPER
        return None


def _may_contribute(caller: Caller, method: str, path: str) -> bool:
    """Whether a contributor asks for its own pool, adds, takes back, or fetches what texts are privatized with."""
    own = f"/v1/pools/{caller.pool}"
    if method == "POST":
        return path in (f"{own}/contributions", f"{own}/contributions/packed", f"{own}/contributions/take-back")
    return method in ("GET", "HEAD") and (path == own or path.startswith(("/v1/codes/", "/v1/vocabularies/")))


def _is_for_any_page(method: str, path: str) -> bool:
    """Whether a page of any origin may ask: a contributor's browser is on the page of whoever collects."""
    if path.startswith("/v1/codes/"):
        return method in ("GET", "OPTIONS")
    _, _, rest = path.partition("/v1/pools/")
    return bool(rest) and rest.partition("/")[2] in (
        "",
        "contributions",
        "contributions/packed",
        "contributions/take-back",
    )


def _allow_any_origin(send: Send) -> Send:
    """Say of an answer that a page of any origin may read it: it needs a key, which no browser sends by itself."""

    async def send_allowed(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["access-control-allow-origin"] = "*"
        await send(message)

    return send_allowed


class _StillGood:
    """Passes an answer on for as long as the key that it was asked with is good."""

    def __init__(self, send: Send, ask: Callable[[], Awaitable[Caller | None]]) -> None:
        self._send = send
        self._ask = ask
        self._asked = time.monotonic()
        self._is_event_stream = False
        self.ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=message.get("headers", ())).get("content-type", "")
            self._is_event_stream = kind.startswith("text/event-stream")
        elif message.get("more_body", False) and time.monotonic() - self._asked >= _BETWEEN_LOOKS:
            self._asked = time.monotonic()
            if await self._ask() is None:
                await self._end()
        await self._send(message)

    async def _end(self) -> None:
        """End a stream with an event that says why; what has a length is cut off, and so is not taken for whole."""
        self.ended = True
        if self._is_event_stream:
            error = AccessError("the API key was revoked or has expired; ask the provider for a new one")
            body = b"data: " + bytes(answer_error(error).body) + b"\n\ndata: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
        raise _KeyEnded


def _read_bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def run_at_hand_or_in_thread(work: Callable[[Unpack[Arguments]], Answer], *args: *Arguments) -> Answer:
    """Return what `work` returns: done here if all that it asks for is at hand, else in a thread.

    A thread costs two changes of the running thread: to find the holder of a remembered key took 4.8 µs here and 92 µs
    in a thread (medians of 2,000 on a busy machine with two cores), and every request begins with that.

    Args:
        work: Short, and nothing done by the time it first has to wait: it may begin twice.
        args: Arguments of `work`.
    """
    try:
        with forbid_waiting():
            return work(*args)
    except WouldWait:
        return await run_in_thread(work, *args)
