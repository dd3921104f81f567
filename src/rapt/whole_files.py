"""Files and folders that are there whole or not at all, whatever happens while they are written.

Work goes on under a name of its own in the same folder, is flushed to the disk, and takes the final name last; the
folder is flushed too, so that a power cut leaves the old content or the new. Only a regular file is ever replaced: a
device, a named pipe, a link, a folder and a database stay as they are, whether the caller wants to overwrite or not.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final

from rapt.errors import CorpusError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    _LOCKS_OPEN_FILES = False
else:
    _LOCKS_OPEN_FILES = True

_KINDS: Final = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISREG, "a file"),
)
_DATABASE: Final = b"SQLite format 3\0"
# What stands beside a database, or beside a ledger of releases, and is worth as much as the database itself.
DATABASE_SUFFIXES: Final = ("", ".key", ".lock", "-wal", "-shm", "-journal")
_BINARY: Final = getattr(os, "O_BINARY", 0)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a name under which a file must not be written; best called before any work.

    Args:
        path: Name of the file that is to be written.
        overwrite: Whether a regular file of that name may be replaced.

    Raises:
        UsageError: Something is there that is no regular file, or must not be replaced; or the name is that of a
            database, or of a file that belongs to one, whether it is there or not.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        _refuse_database(path)
        return
    except ValueError:  # a null character
        raise UsageError(
            "the output must have a valid file name, got one with a null character; choose another name"
        ) from None
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
    if not stat.S_ISREG(mode):
        raise UsageError(f"the output must be a regular file or a new one, got {kind} at {str(path)!r}; name another")
    _refuse_database(path)
    if not overwrite:
        raise UsageError(
            f"the output must not exist yet, got {str(path)!r}; choose another name or add `overwrite=True`"
        )


def write_whole(path: Path, content: str | bytes, *, overwrite: bool = True, private: bool = False) -> Path:
    """Write the content, text as UTF-8, under its final name once it is on the disk. Returns the path.

    Raises:
        UsageError: The reasons of `check_target`.
        OSError: The output cannot be written; nothing of it is left, and what was there before stays.
    """
    with open_whole(path, overwrite=overwrite, private=private) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def open_whole(path: Path, *, overwrite: bool = True, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a stream whose bytes appear at `path` when the block ends without an error.

    Args:
        path: Name of the file.
        overwrite: Replace a regular file of that name, and keep its mode.
        private: Make the file readable for its owner alone.

    Raises:
        UsageError: The reasons of `check_target`.
        OSError: The output cannot be written; nothing of it is left, and what was there before stays.
    """
    check_target(path, overwrite=overwrite)
    partial = _name_beside(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY
    try:
        with os.fdopen(os.open(partial, flags, 0o600 if private else 0o666), "w+b") as stream:
            yield stream
            flush(stream)
        put_in_place(partial, path, overwrite=overwrite, private=private)
    finally:
        partial.unlink(missing_ok=True)


def put_in_place(partial: Path, path: Path, *, overwrite: bool, private: bool = False) -> None:
    """Give a file that is on the disk its final name; the file before, if it is replaced, passes its mode on.

    Raises:
        UsageError: Reasons of `check_target`; a file that appeared meanwhile is not replaced unasked.
        OSError: The folder cannot be written.
    """
    check_target(path, overwrite=overwrite)
    if overwrite:
        with suppress(OSError):
            if not private:
                partial.chmod(stat.S_IMODE(path.lstat().st_mode))
        partial.replace(path)
    else:
        try:
            os.link(partial, path)  # unlike a rename, this never replaces a file
            partial.unlink()
        except FileExistsError:
            check_target(path, overwrite=False)
            raise
        except OSError:  # a file system without hard links
            partial.rename(path)
    sync_folder(path.parent)


@contextmanager
def open_whole_folder(folder: Path, *, replaceable: Collection[str] = (), private: bool = False) -> Iterator[Path]:
    """Open an empty folder that becomes `folder` when the block ends without an error.

    Args:
        folder: Name of a folder that is new, empty, or holds nothing but `replaceable` files.
        replaceable: Names of files that an earlier folder may hold and be replaced with.
        private: Make the folder accessible to its owner alone.

    Raises:
        UsageError: Something else is there.
        OSError: The output cannot be written; nothing of it is left, and what was there before stays.
    """
    check_folder(folder, replaceable=replaceable)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, before = _name_beside(folder), _name_beside(folder)
    partial.mkdir(mode=0o700 if private else 0o777)
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("r+b") as stream:
                    flush(stream)
        sync_folder(partial)
        check_folder(folder, replaceable=replaceable)
        with suppress(FileNotFoundError):
            folder.rename(before)
        try:
            partial.rename(folder)
        except OSError:
            with suppress(OSError):
                before.rename(folder)
            raise
        sync_folder(folder.parent)
    finally:
        for path in (partial, before):
            shutil.rmtree(path, ignore_errors=True)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, contents by name, into a folder that appears with all of them. Raises as `open_whole_folder`."""
    with open_whole_folder(folder) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)


def check_folder(folder: Path, *, replaceable: Collection[str] = ()) -> None:
    """Refuse a name under which a folder must not be written (`UsageError`); see `open_whole_folder`."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UsageError(
            f"the output must be a folder, and must be new, got something else at {str(folder)!r}; name another"
        )
    with os.scandir(folder) as items:
        strange = any(item.name not in replaceable or not item.is_file(follow_symlinks=False) for item in items)
    if strange:
        raise UsageError(f"the folder {str(folder)!r} must be new, or hold an earlier output only; choose another")


@contextmanager
def open_alone(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading and writing, made if it is not there, and locked until the block ends.

    The lock goes with the process: a killed one leaves none behind. Before the file is renamed or removed within the
    block, its stream goes through `free_name`.

    Raises:
        CorpusError: Another process has locked the file.
        UsageError: Something is there that is no regular file, or the system has no locks.
        OSError: It cannot be opened.
    """
    check_target(path, overwrite=True)
    flags = os.O_RDWR | os.O_CREAT | _BINARY | getattr(os, "O_NOFOLLOW", 0)
    locked = nullcontext() if _LOCKS_OPEN_FILES else _hold_lock_beside(path)
    with locked, os.fdopen(os.open(path, flags, 0o666), "r+b") as stream:
        if _LOCKS_OPEN_FILES:
            try:
                fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _make_taken_error() from None
            # Between opening and locking, the other process may have finished and given the file its final name.
            if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                raise _make_taken_error()
        yield stream


def free_name(stream: IO[bytes]) -> None:
    """Close a stream of `open_alone` on Windows, which renames and removes no open file; the lock stays.

    Elsewhere the stream stays open, because the lock is its own. What is in it was flushed, or is to be thrown away.
    """
    if not _LOCKS_OPEN_FILES:
        with suppress(OSError):
            stream.close()


@contextmanager
def _hold_lock_beside(path: Path) -> Iterator[None]:
    """Lock an empty file `NAME.lock` in place of the one at `path`, as Windows can; raises as `open_alone`."""
    try:
        locks: Any = import_module("msvcrt")  # type checkers know it on Windows only
    except ImportError:
        raise UsageError("files must be locked while they are written; use a system that has file locks") from None
    beside = path.with_name(path.name + ".lock")
    check_target(beside, overwrite=True)
    with beside.open("ab") as held:
        try:
            locks.locking(held.fileno(), locks.LK_NBLCK, 1)
        except OSError:
            raise _make_taken_error() from None
        try:
            yield
        finally:
            held.close()
            with suppress(OSError):  # another process has opened it, and Windows does not remove it then
                if beside.stat().st_size == 0:
                    beside.unlink()


def flush(stream: IO[bytes]) -> None:
    """Make what was written to a file reach the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name_beside(path: Path) -> Path:
    return path.parent / f"{path.name}.{secrets.token_hex(4)}.partial"


def _refuse_database(path: Path) -> None:
    """Refuse a name that a database takes for its own: it would replace one, or be read as a part of one."""
    if any(
        path.name.endswith(suffix) and path.name != suffix and _is_database(path, suffix)
        for suffix in DATABASE_SUFFIXES
    ):
        raise UsageError(
            f"the output must not replace a database or its key, or lie where one keeps its own, got {str(path)!r}; "
            "name another"
        )


def _is_database(path: Path, suffix: str) -> bool:
    beside = path.with_name(path.name.removesuffix(suffix))
    try:
        if not beside.is_file():  # to open a named pipe would wait for ever
            return False
        with beside.open("rb") as stream:
            return stream.read(len(_DATABASE)) == _DATABASE
    except (OSError, ValueError):
        return False


def _make_taken_error() -> CorpusError:
    return CorpusError(
        "an output must be written by one process at a time; wait for the other process, or choose another name"
    )
