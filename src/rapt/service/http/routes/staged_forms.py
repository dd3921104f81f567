"""Forms with files: what arrives goes straight into the data directory, and counts against the quota while it comes.

The framework would write it into the system's temporary folder first, which is small or in memory on many machines, and
the quota would be asked for when all of it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, BinaryIO, Final, cast

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from rapt.service.http.assembly import Service
from rapt.service.http.json_bodies import BodyRoute
from rapt.service.storage.durable_files import ArrivingFile, StagedFile

# Bytes of a file that are in memory: to change the thread for every piece of the network's would take longer.
_BUFFER: Final = 1024 * 1024


def staged_route(service: Service, *, most: int) -> type[APIRoute]:
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
                    request._form = await _read(request, arrive, cast("dict[str, int]", limits))
                    return await handle(request)
                finally:
                    for file in files:
                        await run_in_threadpool(file.close)
                        service.arriving.uncount(tenant, file.bytes)

            return read_and_handle

    return StagedRoute


def staged(file: UploadFile) -> StagedFile:
    """The bytes of a file in such a form, flushed to the disk, gone after the request unless somebody took them.

    Raises:
        UnavailableError: The disk is full, or broken.
    """
    return cast(ArrivingFile, file.file).finish()


async def _read(request: Request, arrive: Callable[[], ArrivingFile], limits: dict[str, int]) -> FormData:
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
        await run_in_threadpool(self.file.write, content)
