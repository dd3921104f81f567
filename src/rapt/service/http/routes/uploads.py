"""`/v1/uploads`: a privatized file in parts, for files that are too large for one request."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Annotated, BinaryIO, Final

from fastapi import APIRouter, Form

from rapt.errors import BusyError, LimitError, UsageError
from rapt.service.http.assembly import Service
from rapt.service.http.callers import CallerOf
from rapt.service.http.routes.files import clean_name, show_file
from rapt.service.http.routes.staged_forms import staged, staged_route
from rapt.service.http.upload_schemas import CompleteRequest, PartObject, PartRequest, UploadObject, UploadStart
from rapt.service.storage.file_rows import StoredFile, add_file, get_file, open_file
from rapt.service.storage.repeated_requests import repeatable
from rapt.service.storage.upload_rows import (
    JoinedParts,
    StoredUpload,
    add_part,
    add_upload,
    end_upload,
    get_upload,
    parts_to_join,
)

_CHUNK: Final = 1024 * 1024


def router(service: Service) -> APIRouter:
    """The routes of uploads."""
    route = staged_route(service, most=service.settings.max_part_bytes)
    routes = APIRouter(prefix="/v1/uploads", tags=["files"], route_class=route)
    joining = _Joining()

    @routes.post("")
    def create_upload(request: UploadStart, caller: CallerOf) -> UploadObject:
        """Begin an upload. It takes parts for a day."""
        most = service.settings.max_file_bytes
        if request.bytes > most:
            raise LimitError(f"a file must have at most {most} bytes, got bytes={request.bytes}; split it")
        upload = add_upload(
            service.store,
            filename=clean_name(request.filename),
            purpose=request.purpose,
            size=request.bytes,
            caller=caller,
            now=int(time.time()),
        )
        return _show(upload)

    @routes.post("/{upload_id}/parts", form_limits={"max_files": 1, "max_fields": 1, "max_part_size": 4096})
    def create_part(
        upload_id: str, form: Annotated[PartRequest, Form(media_type="multipart/form-data")], caller: CallerOf
    ) -> PartObject:
        """Add a part. Parts may come in any order, and at the same time."""
        get_upload(service.store, upload_id, tenant=caller.tenant)
        part = add_part(
            service.store,
            upload_id,
            staged(form.data),
            caller=caller,
            now=int(time.time()),
            max_bytes=service.settings.tenant_bytes,
        )
        return PartObject(id=part.id, created_at=part.created_at, upload_id=upload_id)

    @routes.post("/{upload_id}/complete")
    def complete(upload_id: str, request: CompleteRequest, caller: CallerOf) -> UploadObject:
        """Put the parts together, in the order given, and check the file as any other. A repetition changes nothing."""
        now, tenant = int(time.time()), caller.tenant
        with joining.alone(upload_id):
            upload = get_upload(service.store, upload_id, tenant=tenant)
            if upload.status == "completed" and upload.file_id is not None:
                file = get_file(service.store, upload.file_id, tenant=tenant)
                if request.md5 is not None:
                    with open_file(service.store, file) as stream:
                        _check_md5(stream, request.md5)
                return _show(upload, file=file)
            upload, paths = parts_to_join(service.store, upload_id, request.part_ids, caller=caller, now=now)
            with JoinedParts(paths) as joined, service.store.directory.stage(joined, max_bytes=upload.bytes) as whole:
                if request.md5 is not None:
                    with whole.path.open("rb") as stream:
                        _check_md5(stream, request.md5)
                summary = service.gate.admit_file(whole.path)
                file = add_file(
                    service.store,
                    whole,
                    summary,
                    filename=upload.filename,
                    caller=caller,
                    now=now,
                    max_bytes=service.settings.tenant_bytes,
                    # Counted as parts until the upload has ended.
                    counted=upload.bytes,
                    # After a crash between the file and the end of the upload, the file is found and not made again.
                    request=repeatable(upload.id, "upload", whole.sha256),
                )
            ended = end_upload(service.store, upload_id, status="completed", caller=caller, now=now, file_id=file.id)
        return _show(ended, file=file)

    @routes.post("/{upload_id}/cancel")
    def cancel(upload_id: str, caller: CallerOf) -> UploadObject:
        """Give an upload up; its parts are deleted."""
        return _show(end_upload(service.store, upload_id, status="cancelled", caller=caller, now=int(time.time())))

    return routes


class _Joining:
    """The uploads whose parts are put together now: each once, because that takes as much of the disk again."""

    def __init__(self) -> None:
        self._uploads: set[str] = set()
        self._guard = Lock()

    @contextmanager
    def alone(self, upload_id: str) -> Iterator[None]:
        with self._guard:
            if upload_id in self._uploads:
                raise BusyError("an upload must be completed by one request at a time; wait for it", retry_after=2.0)
            self._uploads.add(upload_id)
        try:
            yield
        finally:
            with self._guard:
                self._uploads.discard(upload_id)


def _check_md5(stream: BinaryIO, expected: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    if digest.hexdigest() != expected.lower():
        raise UsageError("the parts must have the md5 of the request together, got another; upload them again")


def _show(upload: StoredUpload, *, file: StoredFile | None = None) -> UploadObject:
    return UploadObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
        filename=upload.filename,
        purpose="fine-tune",
        status=upload.status,
        file=None if file is None else show_file(file),
    )
