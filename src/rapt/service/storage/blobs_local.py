"""Blobs in a folder of a file system: written aside, flushed, renamed.

Ours, and not fsspec's: its local file system flushes neither a file nor the folder that names it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Final

from rapt.errors import UnavailableError
from rapt.service.storage.blob_store import NAME
from rapt.service.storage.durable_files import StagedFile, not_stored, sync_folder, write_atomically

_OWNER: Final = "owner"


class LocalBlobs:
    """A `BlobStore` in a folder: `ab/ab..`."""

    def __init__(self, root: Path) -> None:
        """Keep them in a folder, which is made when it is needed."""
        self.root = root.resolve()

    def path(self, name: str) -> Path:
        """Where a blob is."""
        return self.root / name[:2] / name

    def put(self, staged: StagedFile) -> None:
        """Keep staged bytes."""
        target = self.path(staged.sha256)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _freed_later(target):
                _name(staged.path, target)
                sync_folder(target.parent)
                sync_folder(self.root)
        except OSError as error:
            raise not_stored(error) from None

    def read(self, name: str, *, start: int, count: int) -> bytes:
        """Some bytes."""
        try:
            with self.path(name).open("rb") as stream:
                stream.seek(start)
                return stream.read(count)
        except OSError as error:
            raise _answer(error) from None

    def size(self, name: str) -> int:
        """Number of bytes."""
        try:
            return self.path(name).stat().st_size
        except OSError as error:
            raise _answer(error) from None

    def delete(self, name: str) -> None:
        """Delete a blob."""
        target = self.path(name)
        try:
            with _freed_later(target), suppress(FileNotFoundError):
                target.unlink(missing_ok=True)
                sync_folder(target.parent)
        except OSError as error:
            raise not_stored(error) from None

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
        """Whose they are."""
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
            write_atomically(self.root / _OWNER, owner.encode("ascii"))
        except OSError as error:
            raise not_stored(error) from None

    def disclaim(self) -> None:
        """Forget whose they were: they are kept elsewhere now."""
        (self.root / _OWNER).unlink(missing_ok=True)


@contextmanager
def _freed_later(path: Path) -> Iterator[None]:
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


def _name(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    """From another file system, where a rename does not reach."""
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with source.open("rb") as content, partial.open("xb") as stream:
            shutil.copyfileobj(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _answer(error: OSError) -> OSError | UnavailableError:
    if isinstance(error, FileNotFoundError):
        return error
    kind = error.strerror or type(error).__name__
    return UnavailableError(f"the service could not read what it has kept, got {kind}; try again later")
