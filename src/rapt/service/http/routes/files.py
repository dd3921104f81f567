"""`/v1/files` and `/v1/uploads`: privatized files in, out, and away; in parts where one request would be too large."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Annotated, BinaryIO, Final, Literal

from fastapi import APIRouter, Form, Query
from fastapi.responses import StreamingResponse

from rapt.errors import BusyError, LimitError, UsageError
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import make_staged_route, staged
from rapt.service.http.parameters import After, CallerOf, IdempotencyKey, LongLimit, Order, make_cursor, make_list
from rapt.service.http.schemas import (
    CompleteRequest,
    Deleted,
    FileDetail,
    FileObject,
    ListOf,
    PartObject,
    PartRequest,
    UploadObject,
    UploadRequest,
    UploadStart,
)
from rapt.service.http.shares import call_counted
from rapt.service.storage.callers import mark_repeatable
from rapt.service.storage.file_rows import PURPOSE, StoredFile, add_file, delete_file, get_file, list_files, open_file
from rapt.service.storage.upload_rows import (
    JoinedParts,
    StoredUpload,
    add_part,
    add_upload,
    end_upload,
    find_parts_to_join,
    get_upload,
)

_CHUNK: Final = 1024 * 1024
_LONGEST_NAME: Final = 255
# Each file on it is checked again: OpenAI's clients ask for 10,000, and go on to the next page where there is one.
_LONGEST_PAGE: Final = 1000


def make_file_router(service: Service) -> APIRouter:
    """The routes of files."""
    route = make_staged_route(service, most=service.settings.max_file_bytes)
    routes = APIRouter(prefix="/v1/files", tags=["files"], route_class=route)

    @routes.post("", form_limits={"max_files": 1, "max_fields": 6, "max_part_size": 4096})
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
            max_files=service.settings.tenant_files,
            request=mark_repeatable(idempotency_key, "file", arrived.sha256),
            seconds=form.seconds,
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
        """List files, at most 1,000 on a page; with `sha256`, those alone whose bytes have that digest."""
        del purpose  # there is one only
        page = list_files(
            service.store, make_cursor(after, min(limit, _LONGEST_PAGE), order), tenant=caller.tenant, sha256=sha256
        )
        return make_list(page, show_file)

    @routes.get("/{file_id}")
    def retrieve_file(file_id: str, caller: CallerOf) -> FileObject:
        """Return the description of a file."""
        return show_file(get_file(service.store, file_id, tenant=caller.tenant))

    @routes.get("/{file_id}/content", response_class=StreamingResponse)
    def retrieve_content(file_id: str, caller: CallerOf) -> StreamingResponse:
        """The bytes of a file, as they were uploaded; of one that was damaged never all."""
        file = get_file(service.store, file_id, tenant=caller.tenant)
        stream = open_file(service.store, file)
        headers = {"content-length": str(file.bytes), "content-disposition": f'attachment; filename="{file.id}.jsonl"'}
        return StreamingResponse(_iterate_chunks(stream), media_type="application/jsonl", headers=headers)

    @routes.delete("/{file_id}")
    def remove_file(file_id: str, caller: CallerOf) -> Deleted:
        """Delete a file and its bytes, unless a job that has not ended needs it."""
        delete_file(service.store, file_id, caller=caller)
        return Deleted(id=file_id, object="file")

    return routes


def show_file(file: StoredFile) -> FileObject:
    """A file in the shape of the API."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=PURPOSE,
        rapt=FileDetail(
            vocabulary_hash=file.vocabulary_hash,
            mechanism=file.mechanism,
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


def _iterate_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of a file, its last mebibytes only if all have the digest: a small one is refused as a whole."""
    with stream:
        while chunk := call_counted(stream.read, _CHUNK):
            yield chunk


def make_upload_router(service: Service) -> APIRouter:
    """The routes of uploads."""
    route = make_staged_route(service, most=service.settings.max_part_bytes)
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
            file_seconds=None if request.expires_after is None else request.expires_after.seconds,
        )
        return _show_upload(upload)

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
                return _show_upload(upload, file=file)
            upload, paths = find_parts_to_join(service.store, upload_id, request.part_ids, caller=caller, now=now)
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
                    max_files=service.settings.tenant_files,
                    # Counted as parts until the upload has ended.
                    counted=upload.bytes,
                    # After a crash between the file and the end of the upload, the file is found and not made again.
                    request=mark_repeatable(upload.id, "upload", whole.sha256),
                    seconds=upload.file_seconds,
                )
            ended = end_upload(service.store, upload_id, status="completed", caller=caller, now=now, file_id=file.id)
        return _show_upload(ended, file=file)

    @routes.post("/{upload_id}/cancel")
    def cancel(upload_id: str, caller: CallerOf) -> UploadObject:
        """Give an upload up; its parts are deleted."""
        return _show_upload(
            end_upload(service.store, upload_id, status="cancelled", caller=caller, now=int(time.time()))
        )

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


def _show_upload(upload: StoredUpload, *, file: StoredFile | None = None) -> UploadObject:
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
