"""The connection to a service: its address, who is trusted to be it, and what each kind of answer means.

What is sent is decided in the files of the nouns; here it becomes steps, repeated if it comes too early or if the
connection is lost, and the answer is JSON or an error of the tree. A service is a stranger: every answer is bounded in
size, and in time too unless it is a download, which may take as long as bytes come.
"""

from __future__ import annotations

import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from urllib.parse import quote

import httpx2

from rapt.errors import (
    AccessError,
    BusyError,
    ForbiddenError,
    LimitError,
    NotFoundError,
    RaptError,
    ServiceError,
    UnavailableError,
    UsageError,
    WireError,
)
from rapt.local.client.objects import make_answer_error, read_refusal
from rapt.local.client.steps import Exchange, Pause, Sink, Steps
from rapt.this_machine import is_loopback
from rapt.wire.strict_json import parse_json

# The last two are what a host name that cannot be one becomes.
NO_ANSWER: Final = (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError)
_PARTIAL_CONTENT: Final = 206  # status of an answer that is the rest of a file
# How often a request is sent while the service says that it is busy, and the longest wait that is obeyed, s.
_ATTEMPTS: Final = 5
_LONGEST_WAIT: Final = 60
# Pauses before a request whose connection was lost is sent again, s: the first, and the longest.
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 15.0
# What a proxy says while the service behind it is away, and the service while its database is.
_AWAY: Final = (502, 503, 504)
_MOST_JSON: Final = 64 * 2**20
_KEY: Final = re.compile(r"[!-~]+")
Http = TypeVar("Http", httpx2.Client, httpx2.AsyncClient)
_KINDS: Final[Mapping[int, type[ServiceError]]] = {
    kind.status: kind for kind in (NotFoundError, AccessError, ForbiddenError, LimitError, UnavailableError)
}


class Connection:
    """Requests to one service, as steps; see `steps`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        ca_file: Path | None,
        timeout: float,
        insecure: bool,
        patience: float,
        on_retry: Callable[[str], None],
    ) -> None:
        """Prepare it; nothing is sent yet. Arguments and errors are those of `ServiceClient`."""
        if api_key is not None and not _KEY.fullmatch(api_key):
            raise UsageError("an API key must be one word of printable ASCII; copy it again")
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError):
            parsed = httpx2.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError("the service must be given as a URL, such as http://127.0.0.1:8420")
        self._here = is_loopback(parsed.host)
        if api_key is not None and parsed.scheme == "http" and not (self._here or insecure):
            raise UsageError(
                "an API key must not go to another machine over http://, where everybody on the way can read it; use "
                "https://, or add `insecure=True`"
            )
        self._url, self._api_key, self._trusted = parsed, api_key, _make_trust(ca_file)
        self._timeout, self._patience, self._on_retry = timeout, patience, on_retry
        self._reached = False

    @property
    def address(self) -> str:
        """Where the service is, without what may be secret in a URL."""
        return str(self._url.copy_with(username=None, password=None, path="/", query=None))[:120]

    def open(self, kind: type[Http], *, connections: int = 100) -> Http:
        """Open a client of HTTP that waits or one that awaits, with so many connections at once."""
        return kind(
            base_url=self._url,
            # Compressed answers are not asked for: a few bytes of one may become gigabytes.
            headers={"accept-encoding": "identity"}
            | ({} if self._api_key is None else {"authorization": f"Bearer {self._api_key}"}),
            timeout=httpx2.Timeout(self._timeout, connect=10.0),
            verify=self._trusted,
            # A proxy of the environment must not get to see what is meant for this machine.
            trust_env=not self._here,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def ask(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        data: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, IO[bytes], str]] | None = None,
        content: bytes | None = None,
        key: str | None = None,
        repeatable: bool = False,
    ) -> Steps[dict[str, Any]]:
        """The JSON object in the answer to one request, which is sent again where that is worth while and harmless.

        Args:
            method: Method of HTTP.
            path: Path below the service's URL.
            json: Body.
            params: Query.
            data: Fields of a form.
            files: Files of a form; each is read from its start again when the request is repeated.
            content: Body of bytes, in the place of the others.
            key: Idempotency key: then the service makes one object, however often the request comes.
            repeatable: Whether a request that changes something is harmless when it comes twice; a GET always is.

        Raises:
            ServiceError: The service refused, gave no answer, or one that is not of the API.
        """
        headers = {} if key is None else {"idempotency-key": key}

        def build(http: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
            for _name, stream, _kind in (files or {}).values():
                stream.seek(0)
            return http.build_request(
                method,
                path,
                json=json,
                params=params,
                data=data,
                files=files,
                content=content,
                headers=headers,
            )

        repeatable = repeatable or key is not None or method == "GET"
        response, content = yield from self._persevere(build, self._keep, repeatable=repeatable)
        if not response.is_success:
            raise _make_refused_error(response, content)
        value = _parse_json(content)
        if not isinstance(value, dict):
            raise make_answer_error()
        return value

    def download(self, path: str, target: Path | IO[bytes], *, most: int, tag: str | None = None) -> Steps[None]:
        """Write the bytes of an answer, `most` of them at most, into a file.

        Args:
            path: Path below the service's URL.
            target: File to write, or a stream that is written anew.
            most: Most bytes of it.
            tag: Entity tag of content of which `target` may hold the beginning already: then the rest is asked for, and
                what came stays when the connection is lost. None begins anew each time.

        Raises:
            ServiceError: The reasons of `ask`; also for an answer that is longer.
            OSError: The file cannot be written.
        """

        def measure() -> int:
            return target.stat().st_size if tag is not None and isinstance(target, Path) and target.is_file() else 0

        @contextmanager
        def open_target(*, rest: bool) -> Iterator[IO[bytes]]:
            if isinstance(target, Path):
                with target.open("ab" if rest else "wb") as stream:
                    yield stream
            else:
                target.seek(0)
                target.truncate()
                yield target

        def build(http: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
            size = measure()
            headers = {} if tag is None or not size else {"range": f"bytes={size}-", "if-range": tag}
            return http.build_request("GET", path, headers=headers)

        @contextmanager
        def write(response: httpx2.Response, content: bytearray) -> Iterator[Sink]:
            if not response.is_success:
                with self._keep(response, content) as take:
                    yield take
                return
            size = measure()
            rest = size > 0 and response.headers.get("content-range", "").startswith(f"bytes {size}-")
            if (response.status_code == _PARTIAL_CONTENT) != rest:
                raise make_answer_error()
            written = size if rest else 0
            with open_target(rest=rest) as stream:

                def take_chunk(chunk: bytes) -> None:
                    nonlocal written
                    written += len(chunk)
                    if written > most:
                        raise _make_too_long_error(most)
                    stream.write(chunk)

                yield take_chunk

        response, content = yield from self._persevere(build, write, repeatable=True)
        if not response.is_success:
            raise _make_refused_error(response, content)

    def _persevere(
        self,
        build: Callable[[httpx2.Client | httpx2.AsyncClient], httpx2.Request],
        receive: Callable[[httpx2.Response, bytearray], AbstractContextManager[Sink]],
        *,
        repeatable: bool,
    ) -> Steps[tuple[httpx2.Response, bytes]]:
        """The answer to a request, sent again while the service is busy, or away after it has been there."""
        busy, lost, pause = 0, None, _FIRST_PAUSE
        while True:
            content = bytearray()
            try:
                response: httpx2.Response = yield Exchange(build, receive, content)
                self._reached = True
            except NO_ANSWER as error:
                # A service that has never answered is taken for a wrong address, and said so at once.
                if not (repeatable and self._reached and isinstance(error, httpx2.TransportError)):
                    raise _make_no_answer_error(error) from None
                failure: Exception = _make_no_answer_error(error)
            else:
                after = _retry_after(response)
                busy += 1
                if after is not None and busy < _ATTEMPTS and repeatable:
                    yield Pause(after)
                    continue
                if response.status_code not in _AWAY or not repeatable:
                    return response, bytes(content)
                failure = _make_refused_error(response, bytes(content))
            now = time.monotonic()
            lost = now if lost is None else lost
            wait = pause * random.uniform(0.5, 1.0)  # so that many clients do not come back at once
            if now + wait - lost > self._patience:
                raise failure from None
            if pause == _FIRST_PAUSE:
                self._on_retry("the connection to the service is lost; trying again")
            yield Pause(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @contextmanager
    def _keep(self, response: httpx2.Response, content: bytearray) -> Iterator[Sink]:
        """Keep the body of an answer, within limits; nothing of one that was compressed although nobody asked."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise make_answer_error()
        until = time.monotonic() + self._timeout

        def take(chunk: bytes) -> None:
            content.extend(chunk)
            if len(content) > _MOST_JSON or time.monotonic() > until:
                raise _make_too_long_error(_MOST_JSON)

        yield take


def quote_part(name: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(name, safe=":")


def _make_trust(ca_file: Path | None) -> ssl.SSLContext:
    """Who may vouch for the service: those of the file alone, else `SSL_CERT_FILE` or the usual ones."""
    if ca_file is None:
        return httpx2.create_ssl_context(trust_env=True)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(
            f"the CA file must hold certificates in PEM, got {type(error).__name__}; ask the provider for it"
        ) from None


def _parse_json(content: bytes) -> object:
    try:
        return parse_json(content, what="an answer")
    except WireError:
        return None


def _retry_after(response: httpx2.Response) -> float | None:
    """When a service that is busy wants to be asked again, s; None if it is not, or wants it too late."""
    after = response.headers.get("retry-after", "")
    if response.status_code != BusyError.status or not after.isdecimal() or int(after) > _LONGEST_WAIT:
        return None
    return float(after)


def _make_refused_error(response: httpx2.Response, content: bytes) -> RaptError:
    if response.status_code == BusyError.status:
        message = f"the service is busy or a quota is used up: {read_refusal(_parse_json(content))}"
        return BusyError(message, retry_after=_retry_after(response))
    kind = _KINDS.get(response.status_code, ServiceError)
    return kind(f"the service refused, status={response.status_code}: {read_refusal(_parse_json(content))}")


def _make_too_long_error(most: int) -> ServiceError:
    return ServiceError(f"an answer of the service must have at most {most:,} bytes and end in time; is it rapt's?")


def _make_no_answer_error(error: Exception) -> UnavailableError:
    return UnavailableError(f"the service must be reachable, got {type(error).__name__}; is it running at that URL?")
