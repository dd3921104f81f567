"""`/v1/uploads`: a privatized file in parts, for files that are too large for one request."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Form

from rapt.errors import LimitError
from rapt.service.http.assembly import Service
from rapt.service.http.callers import CallerOf
from rapt.service.http.routes.files import clean_name, show_file
from rapt.service.http.upload_schemas import CompleteRequest, PartObject, PartRequest, UploadObject, UploadStart
from rapt.service.storage.file_rows import StoredFile, add_file
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


def router(service: Service) -> APIRouter:
    """The routes of uploads."""
    routes = APIRouter(prefix="/v1/uploads", tags=["files"])

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
        with service.store.directory.stage(form.data.file, max_bytes=service.settings.max_part_bytes) as staged:
            part = add_part(
                service.store,
                upload_id,
                staged,
                caller=caller,
                now=int(time.time()),
                max_bytes=service.settings.tenant_bytes,
            )
        return PartObject(id=part.id, created_at=part.created_at, upload_id=upload_id)

    @routes.post("/{upload_id}/complete")
    def complete(upload_id: str, request: CompleteRequest, caller: CallerOf) -> UploadObject:
        """Put the parts together, in the order given, and check the file as any other."""
        now = int(time.time())
        upload, paths = parts_to_join(service.store, upload_id, request.part_ids, caller=caller, now=now)
        joined = JoinedParts(paths)
        try:
            with service.store.directory.stage(joined, max_bytes=upload.bytes) as staged:
                summary = service.gate.admit_file(staged.path)
                file = add_file(
                    service.store,
                    staged,
                    summary,
                    filename=upload.filename,
                    caller=caller,
                    now=now,
                    # The same bytes are counted as parts until the upload has ended.
                    max_bytes=service.settings.tenant_bytes + upload.bytes,
                    # After a crash between the file and the end of the upload, the file is found and not made again.
                    request=repeatable(upload.id, "upload", staged.sha256),
                )
        finally:
            joined.close()
        ended = end_upload(service.store, upload_id, status="completed", caller=caller, now=now, file_id=file.id)
        return _show(ended, file=file)

    @routes.post("/{upload_id}/cancel")
    def cancel(upload_id: str, caller: CallerOf) -> UploadObject:
        """Give an upload up; its parts are deleted."""
        return _show(end_upload(service.store, upload_id, status="cancelled", caller=caller, now=int(time.time())))

    return routes


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
