"""Blobs in an object store, through fsspec, and the choice of where they are kept by a URL.

Of a closed list of stores: each of them takes an object whole or not at all, which is what a blob rests on. fsspec
knows many file systems that do not.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec  # type: ignore[import-untyped]  # it ships no type stubs

from rapt.errors import UnavailableError, UsageError
from rapt.service.storage.blob_store import NAME, BlobStore
from rapt.service.storage.blobs_local import LocalBlobs
from rapt.service.storage.durable_files import StagedFile

# By the scheme of the URL: the package that fsspec needs beside it. `memory` forgets all at the end: for tests.
OBJECT_STORES: Final = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": "fsspec",
}
_OWNER: Final = "owner"
# Up to here one request holds all of it; beyond, it goes in parts that are put together at the end.
_ONE_REQUEST: Final = 64 * 1024 * 1024

T = TypeVar("T")


class FsspecBlobs:
    """A `BlobStore` in an object store: `ab/ab..` below a prefix."""

    def __init__(self, files: Any, prefix: str) -> None:
        """Keep them in a file system of fsspec, below a prefix of its own."""
        self._files = files
        self._prefix = prefix.rstrip("/")

    def put(self, staged: StagedFile) -> None:
        """Keep staged bytes."""
        path = self._path(staged.sha256)
        if staged.bytes <= _ONE_REQUEST:
            content = staged.path.read_bytes()
            _ask(lambda: self._files.pipe_file(path, content))
        else:
            _ask(lambda: self._files.put_file(str(staged.path), path))

    def read(self, name: str, *, start: int, count: int) -> bytes:
        """Some bytes."""
        if not count:
            return b""
        return bytes(_ask(lambda: self._files.cat_file(self._path(name), start=start, end=start + count)))

    def size(self, name: str) -> int:
        """Number of bytes."""
        return int(_ask(lambda: self._files.info(self._path(name)))["size"])

    def delete(self, name: str) -> None:
        """Delete a blob."""
        with suppress(FileNotFoundError):
            _ask(lambda: self._files.rm_file(self._path(name)))

    def delete_nothing(self) -> None:
        """Delete a name that nobody has: for an object store, the request is what takes time."""
        self.delete(secrets.token_hex(32))

    def list(self) -> Iterator[str]:
        """The names of all blobs."""
        paths: list[str] = []
        with suppress(FileNotFoundError):
            paths = _ask(lambda: self._files.find(self._prefix))
        for path in paths:
            folder, name = ["", *path.split("/")][-2:]
            if NAME.fullmatch(name) and folder == name[:2]:
                yield name

    def owner(self) -> str | None:
        """Whose they are."""
        try:
            return str(_ask(lambda: self._files.cat_file(f"{self._prefix}/{_OWNER}")), "ascii").strip()
        except FileNotFoundError:
            return None

    def claim(self, owner: str) -> None:
        """Write whose they are."""
        _ask(lambda: self._files.pipe_file(f"{self._prefix}/{_OWNER}", owner.encode("ascii")))

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name[:2]}/{name}"


def open_blobs(url: str | None, *, folder: Path) -> BlobStore:
    """Where a service keeps its blobs: in the object store of a URL, or in a folder.

    Args:
        url: Such as `s3://bucket/prefix`, or `file:///folder`; None for `folder`.
        folder: In the data directory.

    Raises:
        UsageError: The URL is of no store that keeps blobs. The message does not repeat it: a secret may be in it.
    """
    if url is None:
        return LocalBlobs(folder)
    kind, separator, rest = url.partition("://")
    if kind == "file" and rest.startswith("/"):
        return LocalBlobs(Path(rest))
    if kind not in OBJECT_STORES or not separator or not rest.strip("/"):
        raise UsageError(
            "the setting blobs must be like s3://bucket/prefix, with one of "
            f"{', '.join(f'{name}://' for name in ('file', *OBJECT_STORES))}; leave it out for the data directory"
        )
    try:
        # What was listed once is not remembered: others put and delete as well.
        files, prefix = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError:
        raise UsageError(
            f"blobs at {kind}:// must have the package {OBJECT_STORES[kind]}; install it beside rapt"
        ) from None
    except Exception as error:  # of whichever library the URL is for; its message may repeat the URL
        raise _unreachable(error) from None
    return FsspecBlobs(files, prefix)


def _ask(question: Callable[[], T]) -> T:
    """The answer of a store; what it raises is of many libraries, and its messages may hold anything."""
    try:
        return question()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _unreachable(error) from None


def _unreachable(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"the store of the blobs must be reachable, got {type(error).__name__}; check its URL, its keys, and itself"
    )
