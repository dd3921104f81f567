"""Privatized files at a service: sent once, listed, fetched back and deleted.

A file is read whole, as strictly as the service will, before a byte of it is sent: a plain CSV, or a privatized file
that somebody edited, does not leave. A file's own name stays here too.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rapt.errors import CorpusError
from rapt.local.client.connection import Connection, quote_part
from rapt.local.client.objects import FileInfo, make_answer_error, read_answer, read_answers, read_file_info
from rapt.local.client.steps import Steps, work
from rapt.whole_files import check_target, open_whole
from rapt.wire.privatized_file import iterate_privatized_lines, read_bounded_lines

UPLOAD_NAME: Final = "privatized.jsonl"
_MOST_LISTED: Final = 1000
_CHUNK: Final = 2**20


def upload(service: Connection, path: Path | str) -> Steps[FileInfo]:
    """Send a privatized file, unless the service has the same bytes already: then that file is the answer.

    Raises:
        WireError: It is not a privatized file, or damaged; nothing was sent.
        CorpusError: It cannot be read; nothing was sent.
        ServiceError: The service refused it, or gave no answer.
    """
    with _refuse_bad_files("a privatized file must be readable", "check the path"), Path(path).open("rb") as stream:

        def check() -> str:
            for _ in iterate_privatized_lines(read_bounded_lines(stream)):
                pass
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()

        sha256 = yield from work(check)
        answer = yield from service.ask("GET", "/v1/files", params={"sha256": sha256, "limit": 1})
        for known in read_answers(read_file_info, answer):
            if known.sha256 == sha256:
                return known
        answer = yield from service.ask(
            "POST",
            "/v1/files",
            data={"purpose": "fine-tune"},
            files={"file": (UPLOAD_NAME, stream, "application/jsonl")},
            key=secrets.token_hex(16),
        )
    return read_answer(read_file_info, answer)


def list_files(service: Connection) -> Steps[list[FileInfo]]:
    """The files of the tenant, newest first, the newest thousand at most."""
    answer = yield from service.ask("GET", "/v1/files", params={"limit": _MOST_LISTED})
    return read_answers(read_file_info, answer)


def get_file(service: Connection, file_id: str) -> Steps[FileInfo]:
    """An uploaded file. Raises `NotFoundError`."""
    answer = yield from service.ask("GET", f"/v1/files/{quote_part(file_id)}")
    return read_answer(read_file_info, answer)


def fetch_file(service: Connection, file_id: str, path: Path | str, *, overwrite: bool = False) -> Steps[FileInfo]:
    """Write an uploaded file, such as that of a pool, to `path`, whole and by its digest or not at all.

    Args:
        service: Connection to the service.
        file_id: Id of the file.
        path: Name of the file to write.
        overwrite: Whether a file of that name is replaced.

    Raises:
        NotFoundError: There is no such file.
        UsageError: A file is there that must not be replaced.
        CorpusError: It cannot be written.
        ServiceError: The service refused, gave no answer, or other bytes than it says.
    """
    target = Path(path)
    check_target(target, overwrite=overwrite)
    info = yield from get_file(service, file_id)
    with (
        _refuse_bad_files("the output must be writable", "choose another folder"),
        open_whole(target, overwrite=overwrite) as stream,
    ):
        yield from service.download(f"/v1/files/{quote_part(file_id)}/content", stream, most=info.bytes)

        def compute_digest() -> str:
            stream.seek(0)
            digest = hashlib.sha256()
            for chunk in iter(lambda: stream.read(_CHUNK), b""):
                digest.update(chunk)
            return digest.hexdigest()

        if (yield from work(compute_digest)) != info.sha256:
            raise make_answer_error()
    return info


def delete_file(service: Connection, file_id: str) -> Steps[None]:
    """Delete an uploaded file. Raises `NotFoundError`, and `ServiceError` while a job needs it."""
    yield from service.ask("DELETE", f"/v1/files/{quote_part(file_id)}")


@contextmanager
def _refuse_bad_files(rule: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorpusError(f"{rule}, got {error.strerror or type(error).__name__}; {way_out}") from None
