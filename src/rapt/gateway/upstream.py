"""The service behind the gateway: what is sent to it is made here, and its answers go back as they are.

No header of a program is passed on: its libraries name the machine, and some of them the user. An error of the service
keeps its status, its code and one clean line.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rapt.errors import BusyError, ServiceError, UnavailableError, WireError
from rapt.gateway.refusals import answer_error, make_error
from rapt.local.client.connection import NO_ANSWER, Connection
from rapt.local.client.objects import make_answer_error, read_refusal
from rapt.wire.strict_json import parse_json

_MOST: Final = 64 * 2**20
# Requests of one tenant that a service answers at once are 128 unless its provider chose another number.
MOST_AT_ONCE: Final = 96
_ASKING: Final = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/classify"})
# Pauses before a request whose connection was refused or lost is sent again, s.
_PAUSES: Final = (0.1, 0.4, 1.0)
# When a service that is busy wants to be asked again, s, as far as a program is left waiting for it.
_SOON: Final = re.compile("[0-9]|[1-5][0-9]", re.ASCII)
_KINDS: Final = ("application/json", "application/jsonl")
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_PARAM: Final = re.compile(r"[a-z][a-z0-9_.]{0,127}")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class ServiceAnswer:
    """An answer of the service, read to its end."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        """Whether the service did what it was asked."""
        return 200 <= self.status < 300

    def read_object(self) -> dict[str, Any]:
        """Read the JSON object that it holds (`ServiceError` for another thing)."""
        value = _parse(self.content)
        if not isinstance(value, dict):
            raise make_answer_error()
        return value


class Upstream:
    """Requests to one service, a bounded number of them at once; close it."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        ca_file: Path | None = None,
        insecure: bool = False,
        timeout: float = 300.0,
        most_at_once: int = MOST_AT_ONCE,
    ) -> None:
        """Prepare it; nothing is sent yet. Arguments and errors are those of `ServiceClient`."""
        connection = Connection(
            url,
            api_key=api_key,
            ca_file=ca_file,
            timeout=timeout,
            insecure=insecure,
            patience=0,
            on_retry=lambda _message: None,
        )
        self._http = connection.open(httpx2.AsyncClient, connections=most_at_once)
        self._places = asyncio.Semaphore(most_at_once)

    async def close(self) -> None:
        """Close the connections to the service."""
        await self._http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        file: bytes | None = None,
        key: str | None = None,
    ) -> ServiceAnswer:
        """Send one request; again where that is harmless, and the connection was lost or the service is busy for now.

        Args:
            method: Method of HTTP.
            path: Path below the service's URL.
            json: Body.
            params: Query.
            file: Privatized file, sent as a form in place of a body.
            key: Idempotency key.

        Raises:
            UnavailableError: There was no answer.
            ServiceError: The answer was too long.
        """
        request = self._make_request(method, path, json, params, file, key)
        # What makes an object twice when it comes twice; to ask a model again costs time alone.
        repeatable = method == "GET" or key is not None or path in _ASKING
        async with self._places:
            try:
                response = await self._send(request, repeatable=repeatable)
                try:
                    return ServiceAnswer(response.status_code, response.headers, await _read(response))
                finally:
                    await response.aclose()
            except NO_ANSWER as error:
                raise _make_no_answer_error(error) from None

    async def pass_on(self, method: str, path: str, **asked: Any) -> Response:
        """Send a request as `ask` does, and return the answer for the program."""
        return pass_answer(await self.ask(method, path, **asked))

    async def stream(
        self, path: str, *, json: Mapping[str, Any], change: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
    ) -> Response:
        """Send a request, and return its events for the program as they come, changed. Raises as `ask`."""
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._places)
            try:
                response = await self._send(self._make_request("POST", path, json, None, None, None), repeatable=True)
                held.push_async_callback(response.aclose)
                if not response.is_success:
                    return pass_answer(ServiceAnswer(response.status_code, response.headers, await _read(response)))
            except NO_ANSWER as error:
                raise _make_no_answer_error(error) from None
            return _Events(response, held.pop_all(), change)

    async def _send(self, request: httpx2.Request, *, repeatable: bool) -> httpx2.Response:
        for pause in _PAUSES:
            try:
                response = await self._http.send(request, stream=True)
            except httpx2.TransportError as error:
                is_late = isinstance(error, httpx2.TimeoutException)
                if is_late or not (repeatable or isinstance(error, httpx2.ConnectError)):
                    raise
            else:
                after = response.headers.get("retry-after", "")
                if response.status_code != BusyError.status or not repeatable or not _SOON.fullmatch(after):
                    return response
                await response.aclose()
                pause = float(after)
            await asyncio.sleep(pause)
        return await self._http.send(request, stream=True)

    def _make_request(
        self,
        method: str,
        path: str,
        json: Mapping[str, Any] | None,
        params: Mapping[str, str | int] | None,
        file: bytes | None,
        key: str | None,
    ) -> httpx2.Request:
        headers = {} if key is None else {"idempotency-key": key}
        form: dict[str, Any] = {}
        if file is not None:
            form = {
                "data": {"purpose": "fine-tune"},
                "files": {"file": ("privatized.jsonl", file, "application/jsonl")},
            }
        return self._http.build_request(method, path, json=json, params=params, headers=headers, **form)


class _Events(StreamingResponse):
    """Events of the service, passed on as they come; where the connection is lost, the last one says so."""

    def __init__(
        self,
        response: httpx2.Response,
        held: AsyncExitStack,
        change: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]],
    ) -> None:
        super().__init__(self._pass(), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._response, self._held, self._change = response, held, change

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, and give the connection and its place back, however that ends."""
        async with self._held:
            await super().__call__(scope, receive, send)

    async def _pass(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._change(self._response.aiter_raw()):
                yield chunk
        except (*NO_ANSWER, ServiceError) as error:
            known = error if isinstance(error, ServiceError) else _make_no_answer_error(error)
            yield b"data: " + bytes(answer_error(known).body) + b"\n\ndata: [DONE]\n\n"


def pass_answer(answer: ServiceAnswer) -> Response:
    """Return an answer of the service for the program; of a refusal what is in it by name."""
    if answer.is_success:
        kind = answer.headers.get("content-type", "")
        return Response(answer.content, answer.status, media_type=kind if kind in _KINDS else "application/json")
    value = _parse(answer.content)
    error = value.get("error") if isinstance(value, dict) else None
    stated = error if isinstance(error, dict) else {}
    response: JSONResponse = make_error(
        f"the service refused: {read_refusal(value)}",
        # What is neither a success nor an error, such as a redirection, is no answer of this API.
        status=answer.status if 400 <= answer.status < 600 else ServiceError.status,
        code=_keep(stated.get("code"), _CODE),
        param=_keep(stated.get("param"), _PARAM),
    )
    after = answer.headers.get("retry-after", "")
    if after.isdecimal() and len(after) < 6:
        response.headers["retry-after"] = after
    if answer.headers.get("x-should-retry") == "false":
        response.headers["x-should-retry"] = "false"
    if request_id := _keep(answer.headers.get("x-request-id"), _REQUEST_ID):
        response.headers["x-request-id"] = request_id
    return response


async def _read(response: httpx2.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise make_answer_error()
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > _MOST:
            raise ServiceError(f"an answer of the service must have at most {_MOST:,} bytes; ask for less")
    return bytes(content)


def _make_no_answer_error(error: Exception) -> UnavailableError:
    return UnavailableError(f"the service must be reachable, got {type(error).__name__}; is it running at its URL?")


def _parse(content: bytes) -> Any:
    try:
        return parse_json(content, what="an answer")
    except WireError:
        return None


def _keep(value: object, pattern: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None
