"""The door: programs of this machine with the gateway's key, and nobody else.

A web page that is open in a browser reaches loopback too, by a name that was bound anew to 127.0.0.1, or by a form; so
the host must be a loopback name, a page of another origin is refused, and whatever a proxy forwards. What nobody
foresaw is written to the log by its class: its message could quote a text.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rapt.errors import AccessError, BusyError, ForbiddenError, UsageError
from rapt.gateway.refusals import answer_error
from rapt.this_machine import is_asked_from_here
from rapt.whole_files import write_whole

log = logging.getLogger(__name__)

MOST_IN_FLIGHT: Final = 512
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{43,128}")


def make_program_key(path: Path) -> str:
    """Return the key of programs in a file, made for its owner alone where there is none.

    Raises:
        UsageError: The file that lies there holds no such key, or others can read it; or the file cannot be written.
    """
    try:
        if not os.path.lexists(path):
            write_whole(path, secrets.token_urlsafe(32) + "\n", overwrite=False, private=True)
        with path.open("rb") as stream:
            mode, content = os.fstat(stream.fileno()).st_mode, stream.read(256)
    except OSError as error:
        raise UsageError(
            f"the key of programs must be in a file that can be written, got {error.strerror}; name another with "
            "--key-file"
        ) from None
    key = content.decode("ascii", errors="replace").strip()
    if not stat.S_ISREG(mode) or (os.name == "posix" and mode & 0o077) or not _KEY.fullmatch(key):
        raise UsageError(
            f"the key of programs must be one that the gateway made, in a file for its owner alone, got "
            f"mode={mode & 0o777:03o}; remove the file to have a new one, or name another with --key-file"
        )
    return key


class GatewayDoor:
    """Lets a request of a program in, or refuses it."""

    def __init__(self, app: ASGIApp, *, key: str, open_paths: Collection[str] = ()) -> None:
        """Wrap an application so that it is asked only after the key is checked.

        Args:
            app: The application.
            key: Key of programs.
            open_paths: Paths that a program of this machine may read without the key: nothing of anybody is there.
        """
        self._app, self._digest, self._open_paths = app, _digest(key), frozenset(open_paths)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = self._find_refusal(Headers(scope=scope), scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # it was answered, or its answer had begun
            log.error("a request ended with an unforeseen %s", type(error).__name__)
        finally:
            self._in_flight -= 1

    def _find_refusal(self, headers: Headers, scope: Scope) -> Response | None:
        if not is_asked_from_here(headers, scheme=scope["scheme"]):
            return answer_error(
                ForbiddenError(
                    "the gateway answers programs of this machine alone, by a loopback name, and no proxy and no page "
                    "of another origin"
                )
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_open = scope["method"] in ("GET", "HEAD") and scope["path"] in self._open_paths
        # Digests are compared, so that the time says nothing about the key, its length included.
        has_key = scheme.lower() == "bearer" and hmac.compare_digest(_digest(given.strip()), self._digest)
        if not (is_open or has_key):
            return answer_error(AccessError("the API key must be that of the gateway's key file"))
        if "content-encoding" in headers:
            return answer_error(UsageError("a request must come without content-encoding; send it as it is"))
        if self._in_flight >= MOST_IN_FLIGHT:
            return answer_error(
                BusyError(f"the gateway answers {MOST_IN_FLIGHT} requests at once; come again", retry_after=1.0)
            )
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
