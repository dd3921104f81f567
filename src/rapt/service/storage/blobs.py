"""Where bytes are kept under their sha256, and how they are read back: never without a look at their digest.

A blob appears whole or not at all, and never changes. That needs neither rename nor locks of whoever keeps it, so it
may be an object store. Who names blobs, and when one may go, is none of its business: that is the store's (`store`).

In a folder they are written aside, flushed, renamed: fsspec's local file system flushes neither a file nor the folder
that names it. Object stores are reached through fsspec, those of a closed list, each of which takes an object whole or
not at all; fsspec knows many file systems that do not.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, Final, Protocol, TypeVar, cast

import fsspec  # type: ignore[import-untyped]  # it ships no type stubs

from rapt.errors import DamagedError, UnavailableError, UsageError
from rapt.service.storage.data_directory import StagedFile, explain_not_stored
from rapt.whole_files import open_whole, sync_folder, write_whole

# What is asked for at once: one request to an object store for nearly every adapter.
_BUFFER: Final = 4 * 1024 * 1024
# A digest, or what a crash has left of bytes on their way to it.
NAME: Final = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{8}\.partial)?")
_OWNER: Final = "owner"
# By the scheme of the URL: the package that fsspec needs beside it. `memory` forgets all at the end: for tests.
OBJECT_STORES: Final = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": "fsspec",
}
# Up to here one request holds all of it; beyond, it goes in parts that are put together at the end.
_ONE_REQUEST: Final = 64 * 1024 * 1024

T = TypeVar("T")


class BlobStore(Protocol):
    """Keeps bytes. Every method raises `UnavailableError` where it cannot be reached."""

    def put(self, staged: StagedFile) -> None:
        """Keep staged bytes under their digest, also if they are there: that heals, and takes as long.

        Once it returns they survive a power cut. The staged file may be gone.
        """

    def read(self, name: str, *, start: int, count: int) -> bytes:
        """Return at most `count` bytes from `start` on; none behind the end. Raises `FileNotFoundError`."""

    def size(self, name: str) -> int:
        """Number of bytes. Raises `FileNotFoundError`."""

    def delete(self, name: str) -> None:
        """Delete a blob, if it is there; it stays deleted after a power cut."""

    def delete_nothing(self) -> None:
        """Take about as long as `delete`: whoever waits must not learn whether others have the same bytes."""

    def list(self) -> Iterator[str]:
        """The names of all blobs, and of what crashes left; of nothing else that may lie there."""

    def owner(self) -> str | None:
        """Return what `claim` has written; None before."""

    def claim(self, owner: str) -> None:
        """Write whose blobs these are."""


class _CheckedReader(io.RawIOBase):
    """Reads a blob; the last of its bytes are given only if all of them have the digest."""

    def __init__(self, blobs: BlobStore, sha256: str, *, size: int) -> None:
        self._blobs = blobs
        self._sha256 = sha256
        self._size = size
        self._at = 0
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._at)
        chunk = self._blobs.read(self._sha256, start=self._at, count=count) if count else b""
        self._at += len(chunk)
        self._digest.update(chunk)
        # Nothing where something must be: it was cut off. What is longer than it was is read up to where it ended.
        done = self._at == self._size or not chunk
        if done and self._digest.hexdigest() != self._sha256:
            raise _make_damaged_error()
        buffer[: len(chunk)] = chunk
        return len(chunk)


def open_blob(blobs: BlobStore, sha256: str, *, size: int) -> BinaryIO:
    """The bytes of a digest as a stream, which raises `DamagedError` before its end if they are not those.

    Args:
        blobs: Place of the blobs.
        sha256: Digest of the bytes.
        size: Number of bytes that there must be.

    Raises:
        FileNotFoundError: There are none.
        DamagedError: There are not as many.
        UnavailableError: The store cannot be reached.
    """
    if blobs.size(sha256) != size:
        raise _make_damaged_error()
    return cast(BinaryIO, io.BufferedReader(_CheckedReader(blobs, sha256, size=size), buffer_size=_BUFFER))


def read_blob(blobs: BlobStore, sha256: str, *, size: int) -> bytes:
    """All bytes of a digest. Raises as `open_blob`."""
    content = blobs.read(sha256, start=0, count=size)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _make_damaged_error()
    return content


def _make_damaged_error() -> DamagedError:
    return DamagedError("what the service has kept must have its digest, and was damaged; tell the provider")


class LocalBlobs:
    """A `BlobStore` in a folder: `ab/ab..`."""

    def __init__(self, root: Path) -> None:
        """Keep them in a folder, which is made when it is needed."""
        self.root = root.resolve()

    def path(self, name: str) -> Path:
        """Where a blob is."""
        return self.root / name[:2] / name

    def put(self, staged: StagedFile) -> None:
        """Keep staged bytes under their digest."""
        target = self.path(staged.sha256)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _free_later(target):
                _give_name(staged.path, target)
                sync_folder(target.parent)
                sync_folder(self.root)
        except OSError as error:
            raise explain_not_stored(error) from None

    def read(self, name: str, *, start: int, count: int) -> bytes:
        """Read at most `count` bytes of a blob from `start` on."""
        try:
            with self.path(name).open("rb") as stream:
                stream.seek(start)
                return stream.read(count)
        except OSError as error:
            raise _answer(error) from None

    def size(self, name: str) -> int:
        """Return the size of a blob, bytes."""
        try:
            return self.path(name).stat().st_size
        except OSError as error:
            raise _answer(error) from None

    def delete(self, name: str) -> None:
        """Delete a blob, if it is there."""
        target = self.path(name)
        try:
            with _free_later(target), suppress(FileNotFoundError):
                target.unlink(missing_ok=True)
                sync_folder(target.parent)
        except OSError as error:
            raise explain_not_stored(error) from None

    def delete_nothing(self) -> None:
        """Delete what was made for it: the change of a folder is what takes time."""
        decoy = f"{secrets.token_hex(32)}.{secrets.token_hex(4)}.partial"
        with suppress(OSError):  # a disk that is full has no room for it, and what is asked for needs none
            self.path(decoy).parent.mkdir(parents=True, exist_ok=True)
            self.path(decoy).touch()
        self.delete(decoy)

    def list(self) -> Iterator[str]:
        """The names of all blobs."""
        for path in self.root.glob("??/*"):
            if NAME.fullmatch(path.name):
                yield path.name

    def owner(self) -> str | None:
        """Return the owner that `claim` has written; None before."""
        try:
            return (self.root / _OWNER).read_text("ascii").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _answer(error) from None

    def claim(self, owner: str) -> None:
        """Write whose they are."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_whole(self.root / _OWNER, owner)
        except OSError as error:
            raise explain_not_stored(error) from None

    def disclaim(self) -> None:
        """Forget whose they were: they are kept elsewhere now."""
        (self.root / _OWNER).unlink(missing_ok=True)


@contextmanager
def _free_later(path: Path) -> Iterator[None]:
    """Within the block a file loses its name; its room on the disk is freed by a thread of its own, after that.

    To free megabytes takes milliseconds, by which one could tell whether others had put the same bytes.
    """
    held = None
    with suppress(OSError):
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            # Started where there is nothing to free as well: that takes time too.
            Thread(target=_close, args=(held,), name="rapt-free").start()
        except RuntimeError:  # the process is about to end
            _close(held)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _give_name(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Another file system, which a rename does not reach.
        with source.open("rb") as content, open_whole(target) as stream:
            shutil.copyfileobj(content, stream)


def _answer(error: OSError) -> OSError | UnavailableError:
    if isinstance(error, FileNotFoundError):
        return error
    kind = error.strerror or type(error).__name__
    return UnavailableError(f"the service could not read what it has kept, got {kind}; try again later")


class FsspecBlobs:
    """A `BlobStore` in an object store: `ab/ab..` below a prefix."""

    def __init__(self, files: Any, prefix: str) -> None:
        """Keep them in a file system of fsspec, below a prefix of its own."""
        self._files = files
        self._prefix = prefix.rstrip("/")

    def put(self, staged: StagedFile) -> None:
        """Keep staged bytes under their digest."""
        path = self._make_path(staged.sha256)
        if staged.bytes <= _ONE_REQUEST:
            content = staged.path.read_bytes()
            _ask(lambda: self._files.pipe_file(path, content))
        else:
            _ask(lambda: self._files.put_file(str(staged.path), path))

    def read(self, name: str, *, start: int, count: int) -> bytes:
        """Read at most `count` bytes of a blob from `start` on."""
        if not count:
            return b""
        return bytes(_ask(lambda: self._files.cat_file(self._make_path(name), start=start, end=start + count)))

    def size(self, name: str) -> int:
        """Return the size of a blob, bytes."""
        return int(_ask(lambda: self._files.info(self._make_path(name)))["size"])

    def delete(self, name: str) -> None:
        """Delete a blob, if it is there."""
        with suppress(FileNotFoundError):
            _ask(lambda: self._files.rm_file(self._make_path(name)))

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
        """Return the owner that `claim` has written; None before."""
        try:
            return str(_ask(lambda: self._files.cat_file(f"{self._prefix}/{_OWNER}")), "ascii").strip()
        except FileNotFoundError:
            return None

    def claim(self, owner: str) -> None:
        """Write whose they are."""
        _ask(lambda: self._files.pipe_file(f"{self._prefix}/{_OWNER}", owner.encode("ascii")))

    def _make_path(self, name: str) -> str:
        return f"{self._prefix}/{name[:2]}/{name}"


def open_blobs(url: str | None, *, folder: Path) -> BlobStore:
    """Where a service keeps its blobs: in the object store of a URL, or in a folder.

    Args:
        url: URL like `s3://bucket/prefix` or `file:///folder`; None for `folder`.
        folder: Folder in the data directory.

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
        raise _make_unreachable_error(error) from None
    return FsspecBlobs(files, prefix)


def _ask(question: Callable[[], T]) -> T:
    """The answer of a store; what it raises is of many libraries, and its messages may hold anything."""
    try:
        return question()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _make_unreachable_error(error) from None


def _make_unreachable_error(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"the store of the blobs must be reachable, got {type(error).__name__}; check its URL, its keys, and itself"
    )
