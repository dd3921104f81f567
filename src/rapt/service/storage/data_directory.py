"""The folder that holds all state but rows in PostgreSQL and blobs in an object store, and files on their way into it.

    lock            held while a service runs: a second one on the same folder is refused
    place           id of the folder, by which processes know whether they see the same locks
    rapt.sqlite3    the database
    incoming/       uploads on their way in; emptied at every start
    blobs/ab/ab..   privatized files and adapters, named by the sha256 of their bytes
    run_states/..   what runs can go on from, one folder each
    naming/..       locks of those who put or delete blobs
    parts/..        parts of uploads that are not complete
    workers/..      one lock for each worker that lives; the system lets go of it when the worker dies
    vocabularies/.. what is handed out to clients, by hash

Others on the machine read none of it: folders are 700 and files 600, whatever they were before.

A name appears only when what it names is whole and on the disk: written aside, flushed, renamed. Names are made here,
never taken from a request.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from rapt.errors import LimitError, UnavailableError, UsageError
from rapt.whole_files import flush, sync_folder

log = logging.getLogger(__name__)

_CHUNK: Final = 1024 * 1024
_LOCK: Final = "lock"
_PLACE: Final = "place"
_OTHERS: Final = 0o077  # what the mode of a file says of everybody but its owner


class Readable(Protocol):
    """Something that bytes are read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""


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
            path: Path of the file.
            max_bytes: Most bytes that it may have.
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
            raise explain_not_stored(error) from None

    def seek(self, offset: int) -> int:
        """Move to `offset`, from where `read` goes on."""
        return self._open().seek(offset)

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes; none at the end."""
        return self._open().read(size)

    def finish(self) -> StagedFile:
        """Flush what was written to the disk, and return it. Raises `UnavailableError`."""
        try:
            with self._open() as stream:
                flush(stream)
        except OSError as error:
            raise explain_not_stored(error) from None
        return StagedFile(path=self.path, bytes=self.bytes, sha256=self._digest.hexdigest())

    def close(self) -> None:
        """Delete the file, unless it was renamed."""
        if self._stream is not None:
            with suppress(OSError):  # what was not written yet may find no room
                self._stream.close()
        self.path.unlink(missing_ok=True)

    def _open(self) -> BinaryIO:
        if self._stream is None:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise explain_not_stored(error) from None
            self._stream = os.fdopen(descriptor, "w+b")
        return self._stream


def write_staged(source: Readable, file: ArrivingFile) -> StagedFile:
    """Write the bytes of `source`, flushed to the disk.

    Raises:
        LimitError: They are more than the file may have.
        UnavailableError: The disk is full, or broken; or what they are read from is.
    """
    try:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
    except OSError as error:
        raise explain_not_stored(error) from None
    return file.finish()


def explain_not_stored(error: Exception) -> UnavailableError:
    """Make the error for bytes that could not be kept; it, and the log, name the kind of the error and no message."""
    kind = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    log.error("the service could not store a file: %s", kind)
    return UnavailableError(f"the service could not store the file, got {kind}; try again later")


@dataclass(frozen=True)
class DataDirectory:
    """Paths below one root; makes no decision about what may be deleted."""

    root: Path

    @property
    def database(self) -> Path:
        """The file of the SQLite database."""
        return self.root / "rapt.sqlite3"

    @property
    def incoming(self) -> Path:
        """Folder of uploads on their way in."""
        return self.root / "incoming"

    @property
    def blobs(self) -> Path:
        """Folder of files and adapters by digest, unless they are kept elsewhere."""
        return self.root / "blobs"

    @property
    def vocabularies(self) -> Path:
        """Folder of vocabulary bundles by hash."""
        return self.root / "vocabularies"

    @property
    def run_states(self) -> Path:
        """Folder of the states of runs."""
        return self.root / "run_states"

    @property
    def naming(self) -> Path:
        """Folder of the locks of blobs."""
        return self.root / "naming"

    @property
    def parts(self) -> Path:
        """Folder of the parts of uploads."""
        return self.root / "parts"

    @property
    def workers(self) -> Path:
        """Folder of the locks of living workers."""
        return self.root / "workers"

    @property
    def place(self) -> str:
        """The id of this folder: whoever reads the same sees the same locks."""
        return (self.root / _PLACE).read_text("ascii")

    def run_state(self, name: str) -> Path:
        """The folder of a run state; `name` is one of ours."""
        return self.run_states / name

    def run_state_bytes(self, name: str) -> int:
        """The size of a run state, bytes."""
        return sum(path.stat().st_size for path in self.run_state(name).glob("*"))

    def part(self, name: str) -> Path:
        """Where a part is; `name` is one of ours."""
        return self.parts / name

    @contextmanager
    def stage(self, source: Readable, *, max_bytes: int) -> Iterator[StagedFile]:
        """The bytes of `source` on the disk, gone at the end of the block unless somebody took them.

        Raises:
            LimitError: They are more than `max_bytes`.
            UnavailableError: The disk is full, or broken.
        """
        file = self.arriving(max_bytes=max_bytes)
        try:
            yield write_staged(source, file)
        finally:
            file.close()

    def arriving(self, *, max_bytes: int, count: Callable[[int], None] | None = None) -> ArrivingFile:
        """A new file for bytes on their way in, to be closed by whoever asked for it."""
        return ArrivingFile(self.incoming / secrets.token_hex(16), max_bytes=max_bytes, count=count)

    @contextmanager
    def stage_bytes(self, content: bytes) -> Iterator[StagedFile]:
        """Put bytes from memory on the disk as `stage` does; they are gone at the end of the block unless taken."""
        with self.stage(io.BytesIO(content), max_bytes=len(content)) as staged:
            yield staged

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder that does not exist yet, and is gone at the end of the block."""
        folder = self.incoming / secrets.token_hex(16)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep_part(self, staged: StagedFile, *, name: str) -> None:
        """Give staged bytes their name as a part of an upload. Raises `UnavailableError`."""
        try:
            staged.path.replace(self.part(name))
            sync_folder(self.parts)
        except OSError as error:
            raise explain_not_stored(error) from None

    def remove_part(self, name: str) -> None:
        """Delete a part; if the disk refuses, a later sweep does."""
        with _leave_for_later("a part of an upload"):
            self.part(name).unlink(missing_ok=True)

    def remove_run_state(self, name: str) -> None:
        """Delete a state: unnamed in one step, then emptied, so that nobody finds half of it; else as `remove_part`."""
        folder, doomed = self.run_state(name), self.incoming / secrets.token_hex(16)
        with _leave_for_later("a state of a run"), suppress(FileNotFoundError):
            folder.rename(doomed)
            sync_folder(folder.parent)
        shutil.rmtree(doomed, ignore_errors=True)

    def sweep(self, *, run_states: Collection[str] = (), parts: Collection[str] = ()) -> int:
        """Delete what nothing refers to: the leavings of a crash. Returns how many were deleted."""
        doomed = list(self.incoming.iterdir())
        for folder, kept in ((self.run_states, run_states), (self.parts, parts)):
            doomed += [path for path in folder.iterdir() if path.name not in kept]
        for path in doomed:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return len(doomed)


@contextmanager
def _leave_for_later(what: str) -> Iterator[None]:
    """Go on where no row names the bytes any more and the disk does not let go of them."""
    try:
        yield
    except OSError as error:
        log.error("%s could not be deleted, got %s; the next start deletes it", what, error.strerror)


def make_data_directory(root: Path) -> DataDirectory:
    """The folder, made if it is missing, and closed to others.

    Raises:
        UsageError: It cannot be written, or others may read it and it is not ours to close.
    """
    directory = DataDirectory(root.resolve())
    try:
        # Others on this machine have no business in here, even though the text is privatized.
        directory.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(directory.root)
        for folder in (
            directory.incoming,
            directory.blobs,
            directory.run_states,
            directory.naming,
            directory.parts,
            directory.vocabularies,
            directory.workers,
        ):
            folder.mkdir(mode=0o700, exist_ok=True)
        (directory.root / _LOCK).touch(mode=0o600)
        with suppress(FileExistsError):
            _write_place(directory.root)
    except OSError as error:
        raise UsageError(
            f"the data directory must be writable, got {error.strerror or type(error).__name__}; choose another"
        ) from None
    return directory


def _write_place(root: Path) -> None:
    """Give the folder an id, unless it has one (`FileExistsError`); nobody sees half of it."""
    path = root / f"{_PLACE}.{secrets.token_hex(8)}"
    path.write_text(secrets.token_hex(12), "ascii")
    try:
        path.chmod(0o600)
        os.link(path, root / _PLACE)
    finally:
        path.unlink()


def holds_service(root: Path) -> bool:
    """Whether a service has, or had, its data in a folder; or a copy of them was put there."""
    directory = DataDirectory(root)
    return any(path.exists() for path in (root / _LOCK, directory.database, directory.blobs))


def refuse_other_folder(root: Path, *, instead: str) -> None:
    """Refuse a folder that holds no service, before anything is made in it. Raises `UsageError` with what to do."""
    if not holds_service(root):
        raise UsageError(f"the data directory must be that of a service; {instead}")


def _close_to_others(root: Path) -> None:
    """Let nobody else into a folder, if it is one for a service: closed, another folder would be lost to its users."""
    found = root.stat()
    if not found.st_mode & _OTHERS:
        return
    ours = found.st_uid == os.geteuid() and (
        holds_service(root) or all(path.name == "lost+found" for path in root.iterdir())
    )
    if not ours:
        raise UsageError(
            "the data directory must be readable by its owner only, and is not; choose a new folder, which may be in it"
        )
    root.chmod(found.st_mode & ~_OTHERS)
    log.warning("the data directory could be read by others; it is its owner's alone now")


def _close_what_is_inside(folder: Path) -> None:
    """Let nobody else read what a restored backup or a copy has left open."""
    for entry in os.scandir(folder):
        with suppress(OSError):  # a worker may have deleted it; and nobody else gets through the folder around it
            mode = entry.stat(follow_symlinks=False).st_mode
            if mode & _OTHERS and not entry.is_symlink():
                os.chmod(entry.path, mode & ~_OTHERS)
            if entry.is_dir(follow_symlinks=False):
                _close_what_is_inside(Path(entry.path))


@contextmanager
def lock_data_directory(root: Path) -> Iterator[DataDirectory]:
    """The folder, made if it is missing, held until the end of the block.

    Raises:
        UsageError: It cannot be written, or another service holds it.
    """
    directory = make_data_directory(root)
    with (directory.root / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                "the data directory must have one service only; stop the other, or choose another"
            ) from None
        _close_what_is_inside(directory.root)
        yield directory
