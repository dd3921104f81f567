"""Bodies of requests: JSON that is bounded before it is parsed, and forms whose files go straight to the disk.

A body of a few mebibytes can make a parser or a validator work for minutes and take gigabytes: by nesting, by endless
numbers, or by a list whose every item is wrong. So what a text can become is counted in its bytes first, large ones are
read away from the event loop, and the schemas stop at the first wrong item. Nothing that came in is ever repeated.

The framework would write the files of a form into the system's temporary folder first, which is small or in memory on
many machines, and the quota would be asked for when all of it is there. Here they arrive in the data directory, and
count against the quota while they come.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, BinaryIO, Final, TypeVar, TypeVarTuple, Unpack, cast

from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from rapt.errors import UsageError, WireError
from rapt.service.http.assembly import Service
from rapt.service.http.shares import call_counted, run_in_thread
from rapt.service.storage.data_directory import ArrivingFile, StagedFile
from rapt.wire.strict_json import parse_json

Arguments = TypeVarTuple("Arguments")
Answer = TypeVar("Answer")

# Bytes that the event loop reads by itself: a millisecond or two, about what the change to a thread costs.
_FEW: Final = 16 * 1024
# A string takes some 50 bytes of memory where its text takes three.
_MOST_QUOTES: Final = 262_144
# The value of a body is built by one call that nothing interrupts: every other thread waits for it.
_MOST_VALUES: Final = 786_432
# Bodies that are read and checked at once: each may take some tens of megabytes while it is, and they share a processor
# with everybody else's answers.
THREADS: Final = 1
# Bytes of a file that are in memory: to change the thread for every piece of the network's would take longer.
_BUFFER: Final = 1024 * 1024


class BodyRoute(APIRoute):
    """A route whose JSON body is read by `parse_body` and checked by its schema, for a large one in a thread.

    What is computed in a thread is written as JSON there too: the framework would take a second thread to check it.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **of_the_framework: Any) -> None:
        """Prepare a route whose body is bounded."""
        if not iscoroutinefunction(endpoint):
            endpoint = _answering_in_thread(endpoint)
        super().__init__(path, endpoint, **of_the_framework)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that the framework calls."""
        handle = super().get_route_handler()
        if self.body_field is None or isinstance(self.body_field.field_info, Form):
            return handle
        schema: TypeAdapter[Any] = TypeAdapter(self.body_field.field_info.annotation or object)

        async def handle_checked(request: Request) -> Response:
            body = await request.body()
            if not body:
                return await handle(request)
            if not _is_json(request.headers.get("content-type", "")):
                raise UsageError("the request body must be JSON; send content-type: application/json with it")
            if len(body) <= _FEW:
                value = _check(body, schema)
            else:
                value = await run_in_body_thread(request, _check, body, schema)
            return await handle(_CheckedRequest(request, value))

        return handle_checked


def _answering_in_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    def answer(arguments: dict[str, Any]) -> Any:
        found = endpoint(**arguments)
        if isinstance(found, BaseModel):
            return Response(found.model_dump_json(by_alias=True), media_type="application/json")
        return found

    @wraps(endpoint)
    def answer_counted(**arguments: Any) -> Any:
        return call_counted(answer, arguments)

    return answer_counted


async def run_in_body_thread(
    request: Request, work: Callable[[Unpack[Arguments]], Answer], *args: *Arguments
) -> Answer:
    """Return what `work` returns, from one of the few threads for what takes a processor for milliseconds."""
    return await run_in_thread(work, *args, limiter=request.app.state.body_threads)


class _CheckedRequest(Request):
    """A request whose body is a value of its schema already; the framework takes such a value as it is."""

    def __init__(self, request: Request, value: object) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        return b"{}"  # looked at only for whether there is one

    async def json(self) -> Any:
        return self._value


def parse_body(body: bytes) -> Any:
    """The value of a JSON body, within the limits of `rapt.wire.strict_json` and of what it takes in memory.

    Raises:
        UsageError: The body is no JSON, or beyond a limit.
    """
    if body.count(b'"') + body.count(b"\\") > _MOST_QUOTES:
        raise UsageError(f"the request body must have at most {_MOST_QUOTES // 2} strings; send several requests")
    if body.count(b",") > _MOST_VALUES:
        raise UsageError(f"the request body must have at most {_MOST_VALUES} values; send several requests")
    try:
        return parse_json(body, what="the request body")
    except WireError as error:
        raise UsageError(str(error)) from None


def _check(body: bytes, schema: TypeAdapter[Any]) -> object:
    value = parse_body(body)
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    raise RequestValidationError([first])


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and (kind == "application/json" or kind.endswith("+json"))


def make_staged_route(service: Service, *, most: int) -> type[APIRoute]:
    """The kind of a router's routes; those with a form stage its files, of at most `most` bytes each.

    Before the route is called they raise:
        LimitError: A file is larger.
        QuotaError: The tenant has too many bytes, those counted that arrive at the same time.
        UnavailableError: The disk is full, or broken.
    """

    class StagedRoute(BodyRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle, limits = super().get_route_handler(), self.form_limits
            if not limits:
                return handle

            async def read_and_handle(request: Request) -> Response:
                tenant, files = request.state.caller.tenant, list[ArrivingFile]()

                def arrive() -> ArrivingFile:
                    file = service.store.directory.arriving(
                        max_bytes=most, count=lambda more: service.arriving.count(tenant, more)
                    )
                    files.append(file)
                    return file

                try:
                    # Read here: whatever is raised while the framework reads, it answers with 400.
                    request._form = await _read_form(request, arrive, cast("dict[str, int]", limits))
                    return await handle(request)
                finally:
                    for file in files:
                        await run_in_thread(file.close)
                        service.arriving.uncount(tenant, file.bytes)

            return read_and_handle

    return StagedRoute


def staged(file: UploadFile) -> StagedFile:
    """The bytes of a file in such a form, flushed to the disk, gone after the request unless somebody took them.

    Raises:
        UnavailableError: The disk is full, or broken.
    """
    return cast(ArrivingFile, file.file).finish()


async def _read_form(request: Request, arrive: Callable[[], ArrivingFile], limits: dict[str, int]) -> FormData:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return FormData()
    try:
        async with aclosing(request.stream()) as stream:
            return await _Parser(request, stream, arrive, limits).parse()
    except (MultiPartException, UnicodeError):  # the latter of a charset that the client has chosen
        raise HTTPException(400) from None


class _Parser(MultiPartParser):
    """The framework's, with other files."""

    def __init__(
        self, request: Request, stream: Any, arrive: Callable[[], ArrivingFile], limits: dict[str, int]
    ) -> None:
        super().__init__(request.headers, stream, **limits)
        self._arrive = arrive

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is not None:
            part.file.file.close()
            part.file = _Upload(self._arrive(), filename=part.file.filename, headers=part.file.headers)


class _Upload(UploadFile):
    """A file of a form, written in large pieces."""

    def __init__(self, file: ArrivingFile, **of_the_form: Any) -> None:
        super().__init__(cast(BinaryIO, file), **of_the_form)
        self._waiting = bytearray()

    async def write(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= _BUFFER:
            await self._flush()

    async def seek(self, offset: int) -> None:
        await self._flush()
        await super().seek(offset)

    async def _flush(self) -> None:
        content = bytes(self._waiting)
        self._waiting.clear()
        await run_in_thread(self.file.write, content)
