"""The one folder that holds all state, and how bytes get in and out of it.

    lock            held while a service runs: a second one on the same folder is refused
    rapt.sqlite3    the database
    incoming/       uploads on their way in; emptied at every start
    files/ab/ab..   privatized files, named by the sha256 of their bytes
    adapters/..     tuned adapters and those of checkpoints, one folder each
    checkpoints/..  where runs can go on from, one folder each
    parts/..        parts of uploads that are not complete
    workers/..      one lock for each worker that lives; the system lets go of it when the worker dies
    vocabularies/.. what is handed out to clients, by hash

A name appears only when what it names is whole and on the disk: written aside, flushed, renamed. Names are made here,
never taken from a request.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from rapt.errors import LimitError, UnavailableError, UsageError

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


@dataclass(frozen=True)
class DataDirectory:
    """Paths below one root; makes no decision about what may be deleted."""

    root: Path

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "rapt.sqlite3"

    @property
    def incoming(self) -> Path:
        """Uploads on their way in."""
        return self.root / "incoming"

    @property
    def files(self) -> Path:
        """Privatized files by digest."""
        return self.root / "files"

    @property
    def adapters(self) -> Path:
        """Tuned adapters."""
        return self.root / "adapters"

    @property
    def vocabularies(self) -> Path:
        """Vocabulary bundles by hash."""
        return self.root / "vocabularies"

    @property
    def checkpoints(self) -> Path:
        """States of runs."""
        return self.root / "checkpoints"

    @property
    def parts(self) -> Path:
        """Parts of uploads."""
        return self.root / "parts"

    @property
    def workers(self) -> Path:
        """Locks of the workers that live."""
        return self.root / "workers"

    def blob(self, sha256: str) -> Path:
        """Where the bytes of a digest are."""
        return self.files / sha256[:2] / sha256

    def adapter(self, name: str) -> Path:
        """Where an adapter is; `name` is one of ours."""
        return self.adapters / name

    def adapter_bytes(self, name: str) -> int:
        """Size of an adapter."""
        return sum(path.stat().st_size for path in self.adapter(name).iterdir())

    def checkpoint(self, name: str) -> Path:
        """Where a state is; `name` is one of ours."""
        return self.checkpoints / name

    def part(self, name: str) -> Path:
        """Where a part is; `name` is one of ours."""
        return self.parts / name

    @contextmanager
    def stage(self, source: Readable, *, max_bytes: int) -> Iterator[StagedFile]:
        """The bytes of `source` on the disk, gone at the end of the block unless `keep` took them.

        Raises:
            LimitError: They are more than `max_bytes`.
            UnavailableError: The disk is full, or broken.
        """
        path = self.incoming / secrets.token_hex(16)
        try:
            yield _copy(source, path, max_bytes=max_bytes)
        finally:
            path.unlink(missing_ok=True)

    def keep(self, staged: StagedFile) -> None:
        """Give staged bytes their name; the same bytes twice are one file."""
        target = self.blob(staged.sha256)
        target.parent.mkdir(exist_ok=True)
        staged.path.replace(target)
        sync_folder(target.parent)
        sync_folder(self.files)

    def remove_blob(self, sha256: str) -> None:
        """Delete the bytes of a digest."""
        target = self.blob(sha256)
        target.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            sync_folder(target.parent)

    def keep_part(self, staged: StagedFile, *, name: str) -> None:
        """Give staged bytes their name as a part of an upload."""
        staged.path.replace(self.part(name))
        sync_folder(self.parts)

    def remove_part(self, name: str) -> None:
        """Delete a part."""
        self.part(name).unlink(missing_ok=True)

    def remove_adapter(self, name: str) -> None:
        """Delete an adapter."""
        self._remove_folder(self.adapter(name))

    def remove_checkpoint(self, name: str) -> None:
        """Delete a state."""
        self._remove_folder(self.checkpoint(name))

    def sweep(
        self,
        *,
        blobs: Collection[str],
        adapters: Collection[str],
        checkpoints: Collection[str] = (),
        parts: Collection[str] = (),
    ) -> int:
        """Delete what nothing refers to: the leavings of a crash. Returns how many were deleted."""
        doomed = [path for path in self.files.glob("*/*") if path.name not in blobs]
        for folder, kept in ((self.adapters, adapters), (self.checkpoints, checkpoints), (self.parts, parts)):
            doomed += [path for path in folder.iterdir() if path.name not in kept]
        doomed += self.incoming.iterdir()
        for path in doomed:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return len(doomed)

    def _remove_folder(self, folder: Path) -> None:
        """Unnamed in one step, then emptied: nobody finds half of it."""
        doomed = self.incoming / secrets.token_hex(16)
        with suppress(FileNotFoundError):
            folder.rename(doomed)
            sync_folder(folder.parent)
        shutil.rmtree(doomed, ignore_errors=True)


def make_data_directory(root: Path) -> DataDirectory:
    """The folder, made if it is missing.

    Raises:
        UsageError: It cannot be written.
    """
    directory = DataDirectory(root.resolve())
    try:
        # Others on this machine have no business in here, even though the text is privatized.
        directory.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (
            directory.incoming,
            directory.files,
            directory.adapters,
            directory.checkpoints,
            directory.parts,
            directory.vocabularies,
            directory.workers,
        ):
            folder.mkdir(exist_ok=True)
        (directory.root / "lock").touch()
    except OSError as error:
        raise UsageError(
            f"the data directory must be writable, got {error.strerror or type(error).__name__}; choose another"
        ) from None
    return directory


@contextmanager
def lock_data_directory(root: Path) -> Iterator[DataDirectory]:
    """The folder, made if it is missing, held until the end of the block.

    Raises:
        UsageError: It cannot be written, or another service holds it.
    """
    directory = make_data_directory(root)
    with (directory.root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                "the data directory must have one service only; stop the other, or choose another"
            ) from None
        yield directory


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _copy(source: Readable, path: Path, *, max_bytes: int) -> StagedFile:
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
        raise UnavailableError(
            f"the service could not store the file, got {error.strerror or type(error).__name__}; try again later"
        ) from None
    return StagedFile(path=path, bytes=size, sha256=digest.hexdigest())
