"""Bytes on the disk that stay there: written aside, flushed, and only then named."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from rapt.errors import LimitError, UnavailableError

log = logging.getLogger(__name__)

_CHUNK: Final = 1024 * 1024


class Readable(Protocol):
    """Something that bytes are read from."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""


@dataclass(frozen=True)
class StagedFile:
    """Bytes that have arrived whole, are on the disk, and have no name yet."""

    path: Path
    bytes: int
    sha256: str


class ArrivingFile:
    """A file on its way in: written by its owner alone, never beyond its limit, and gone once it is closed."""

    def __init__(self, path: Path, *, max_bytes: int, count: Callable[[int], None] | None = None) -> None:
        """Write to `path`, which must not exist and is made with the first byte.

        Args:
            path: Where.
            max_bytes: The most that it may have.
            count: Told of bytes before they are written; what it raises keeps them off the disk.
        """
        self.path = path
        self.bytes = 0
        self._max_bytes = max_bytes
        self._count = count
        self._digest = hashlib.sha256()
        self._stream: BinaryIO | None = None

    def write(self, content: bytes) -> int:
        """Add bytes. Raises `LimitError`, and `UnavailableError` where the disk is full or broken."""
        if self.bytes + len(content) > self._max_bytes:
            raise LimitError(f"a file must have at most {self._max_bytes} bytes; split it")
        if self._count is not None:
            self._count(len(content))
        self.bytes += len(content)
        self._digest.update(content)
        try:
            return self._open().write(content)
        except OSError as error:
            raise not_stored(error) from None

    def seek(self, offset: int) -> int:
        """Read from there on."""
        return self._open().seek(offset)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; none at the end."""
        return self._open().read(size)

    def finish(self) -> StagedFile:
        """What was written, on the disk. Raises `UnavailableError`."""
        try:
            with self._open() as stream:
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise not_stored(error) from None
        return StagedFile(path=self.path, bytes=self.bytes, sha256=self._digest.hexdigest())

    def close(self) -> None:
        """Delete it, unless it has got a name elsewhere."""
        if self._stream is not None:
            with suppress(OSError):  # what was not written yet may find no room
                self._stream.close()
        self.path.unlink(missing_ok=True)

    def _open(self) -> BinaryIO:
        if self._stream is None:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise not_stored(error) from None
            self._stream = os.fdopen(descriptor, "w+b")
        return self._stream


def write_staged(source: Readable, file: ArrivingFile) -> StagedFile:
    """The bytes of `source`, flushed to the disk.

    Raises:
        LimitError: They are more than the file may have.
        UnavailableError: The disk is full, or broken; or what they are read from is.
    """
    try:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
    except OSError as error:
        raise not_stored(error) from None
    return file.finish()


def not_stored(error: Exception) -> UnavailableError:
    """What is said when bytes could not be kept: the kind of the error, and not its message. It is in the log too."""
    kind = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    log.error("the service could not store a file: %s", kind)
    return UnavailableError(f"the service could not store the file, got {kind}; try again later")


def write_atomically(path: Path, content: bytes) -> None:
    """The content under its name, whole or not at all."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
