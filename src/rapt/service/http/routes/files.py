"""`/v1/files`: privatized files in, out, and away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, BinaryIO, Final, Literal

from fastapi import APIRouter, Form, Query
from fastapi.responses import StreamingResponse

from rapt.errors import RaptError
from rapt.service.http.assembly import Service
from rapt.service.http.callers import CallerOf
from rapt.service.http.routes.pages import After, IdempotencyKey, LongLimit, Order, cursor, list_of
from rapt.service.http.routes.staged_forms import staged, staged_route
from rapt.service.http.schemas import Deleted, FileDetail, FileObject, ListOf, UploadRequest
from rapt.service.storage.file_rows import PURPOSE, StoredFile, add_file, delete_file, get_file, list_files, open_file
from rapt.service.storage.repeated_requests import repeatable
from rapt.wire.manifest import mechanism_from_json
from rapt.wire.strict_json import check_json

_CHUNK: Final = 1024 * 1024
_LONGEST_NAME: Final = 255


def router(service: Service) -> APIRouter:
    """The routes of files."""
    route = staged_route(service, most=service.settings.max_file_bytes)
    routes = APIRouter(prefix="/v1/files", tags=["files"], route_class=route)

    @routes.post("", form_limits={"max_files": 1, "max_fields": 4, "max_part_size": 4096})
    def create_file(
        form: Annotated[UploadRequest, Form(media_type="multipart/form-data")],
        caller: CallerOf,
        idempotency_key: IdempotencyKey = None,
    ) -> FileObject:
        """Upload a privatized file. The manifest is checked against it: a guard against mistakes, not against lies."""
        arrived = staged(form.file)
        summary = service.gate.admit_file(arrived.path)
        stored = add_file(
            service.store,
            arrived,
            summary,
            filename=clean_name(form.file.filename),
            caller=caller,
            now=int(time.time()),
            max_bytes=service.settings.tenant_bytes,
            request=repeatable(idempotency_key, "file", arrived.sha256),
        )
        return show_file(stored)

    @routes.get("")
    def list_all_files(
        caller: CallerOf,
        after: After = None,
        limit: LongLimit = 10_000,
        order: Order = "desc",
        purpose: Annotated[Literal["fine-tune"] | None, Query()] = None,
        sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None,
    ) -> ListOf[FileObject]:
        """List files; with `sha256`, those alone whose bytes have that digest."""
        del purpose  # there is one only
        page = list_files(service.store, cursor(after, limit, order), tenant=caller.tenant, sha256=sha256)
        return list_of(page, show_file)

    @routes.get("/{file_id}")
    def retrieve_file(file_id: str, caller: CallerOf) -> FileObject:
        """What is known of a file."""
        return show_file(get_file(service.store, file_id, tenant=caller.tenant))

    @routes.get("/{file_id}/content", response_class=StreamingResponse)
    def retrieve_content(file_id: str, caller: CallerOf) -> StreamingResponse:
        """The bytes of a file, as they were uploaded."""
        file = get_file(service.store, file_id, tenant=caller.tenant)
        # Twice: once the status is sent, nothing can say any more that the bytes are others.
        with open_file(service.store, file) as whole:
            while whole.read(_CHUNK):
                pass
        stream = open_file(service.store, file)
        headers = {"content-length": str(file.bytes), "content-disposition": f'attachment; filename="{file.id}.jsonl"'}
        return StreamingResponse(_chunks(stream), media_type="application/jsonl", headers=headers)

    @routes.delete("/{file_id}")
    def remove_file(file_id: str, caller: CallerOf) -> Deleted:
        """Delete a file and its bytes, unless a job that has not ended needs it."""
        delete_file(service.store, file_id, caller=caller)
        return Deleted(id=file_id, object="file")

    return routes


def show_file(file: StoredFile) -> FileObject:
    """A file in the shape of the API; what no reader would take, which an earlier version stored, is left out."""
    mechanism, reason = file.mechanism, None
    try:
        check_json(mechanism, what="the mechanism")
        mechanism_from_json(mechanism)
    except RaptError as error:
        mechanism, reason = {}, f"{error}; delete the file"
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        filename=file.filename,
        purpose=PURPOSE,
        status="processed" if reason is None else "error",
        status_details=reason,
        rapt=FileDetail(
            vocabulary_hash=file.vocabulary_hash,
            mechanism=mechanism,
            insecure_seed=file.insecure_seed,
            records=file.records,
            tokens=file.tokens,
            plain_tokens=file.plain_tokens,
            labels=file.labels,
            sha256=file.sha256,
        ),
    )


def clean_name(name: str | None) -> str:
    """A name to show: the last part of a path, printable, of bounded length. It never names anything on the disk."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:_LONGEST_NAME] or "file"


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
