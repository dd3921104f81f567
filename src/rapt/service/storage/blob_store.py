"""Where bytes are kept under their sha256, and how they are read back: never without a look at their digest.

A blob appears whole or not at all, and never changes. That needs neither rename nor locks of whoever keeps it, so it
may be an object store. Who names blobs, and when one may go, is none of its business: that is `named_blobs`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, Protocol, cast

from rapt.errors import DamagedError
from rapt.service.storage.durable_files import StagedFile

# What is asked for at once: one request to an object store for nearly every adapter.
_BUFFER: Final = 4 * 1024 * 1024
# A digest, or what a crash has left of bytes on their way to it.
NAME: Final = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{8}\.partial)?")


class BlobStore(Protocol):
    """Keeps bytes. Every method raises `UnavailableError` where it cannot be reached."""

    def put(self, staged: StagedFile) -> None:
        """Keep staged bytes under their digest, also if they are there: that heals, and takes as long.

        Once it returns they survive a power cut. The staged file may be gone.
        """

    def read(self, name: str, *, start: int, count: int) -> bytes:
        """At most `count` bytes from `start` on; none behind the end. Raises `FileNotFoundError`."""

    def size(self, name: str) -> int:
        """Number of bytes. Raises `FileNotFoundError`."""

    def delete(self, name: str) -> None:
        """Delete a blob, if it is there; it stays deleted after a power cut."""

    def delete_nothing(self) -> None:
        """Take about as long as `delete`: whoever waits must not learn whether others have the same bytes."""

    def list(self) -> Iterator[str]:
        """The names of all blobs, and of what crashes left; of nothing else that may lie there."""

    def owner(self) -> str | None:
        """What `claim` has written; None before."""

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
            raise _damaged()
        buffer[: len(chunk)] = chunk
        return len(chunk)


def open_blob(blobs: BlobStore, sha256: str, *, size: int) -> BinaryIO:
    """The bytes of a digest as a stream, which raises `DamagedError` before its end if they are not those.

    Args:
        blobs: Where.
        sha256: Their digest.
        size: How many there must be.

    Raises:
        FileNotFoundError: There are none.
        DamagedError: There are not as many.
        UnavailableError: The store cannot be reached.
    """
    if blobs.size(sha256) != size:
        raise _damaged()
    return cast(BinaryIO, io.BufferedReader(_CheckedReader(blobs, sha256, size=size), buffer_size=_BUFFER))


def read_blob(blobs: BlobStore, sha256: str, *, size: int) -> bytes:
    """All bytes of a digest. Raises as `open_blob`."""
    content = blobs.read(sha256, start=0, count=size)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _damaged()
    return content


def _damaged() -> DamagedError:
    return DamagedError("what the service has kept must have its digest, and was damaged; tell the provider")
