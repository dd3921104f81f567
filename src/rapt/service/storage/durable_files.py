"""Bytes on the disk that stay there: written aside, flushed, and only then named."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

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


def write_staged(source: Readable, path: Path, *, max_bytes: int) -> StagedFile:
    """The bytes of `source`, flushed to the disk at `path`, which must not exist.

    Raises:
        LimitError: They are more than `max_bytes`.
        UnavailableError: The disk is full, or broken.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("xb") as target:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > max_bytes:
                    raise LimitError(f"a file must have at most {max_bytes} bytes; split it")
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise not_stored(error) from None
    return StagedFile(path=path, bytes=size, sha256=digest.hexdigest())


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
