"""A ledger as a file: SQLite in write-ahead mode, its key beside it, for one process or several at once."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rapt.errors import LedgerError, UsageError
from rapt.local.ledger_entries import APPLICATION_ID, SCHEMA, TABLES
from rapt.local.ledger_key import LedgerKey, key_path, make_key, read_key, refuse_old_key
from rapt.whole_files import DATABASE_SUFFIXES
from rapt.wire.privatized_writer import partial_path

# Longer than another process ever holds the lock: one append takes milliseconds.
PATIENCE_SECONDS: Final = 60.0


@contextmanager
def open_for_writing(path: Path) -> Iterator[tuple[sqlite3.Connection, LedgerKey]]:
    """A connection to a ledger and its key; both are made when nothing is there. Transactions are the caller's.

    Raises:
        LedgerError: It is not a ledger, its key is missing or another's, or it cannot be written.
    """
    if not path.exists():
        refuse_old_key(path)
        _create_for_owner(path)
    with sqlite_errors():
        connection = sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None)
    try:
        with sqlite_errors():
            key = _prepare(connection, path)
        yield connection, key
    finally:
        connection.close()


@contextmanager
def open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write; the key is not needed.

    Raises:
        LedgerError: It is missing, or not a ledger.
    """
    if not path.is_file():
        raise LedgerError(f"a ledger must be a file, got none at {str(path)!r}; check the path")
    with sqlite_errors():
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_SECONDS)
    try:
        with sqlite_errors():
            if not is_ledger(connection):
                raise LedgerError("a ledger must be a file that rapt wrote, got another; name another")
            yield connection
    finally:
        connection.close()


def refuse_ledger_files(target: Path, source: Path, *, ledger: Path) -> None:
    """Refuse an output or a source that is a ledger, its key, or a file that SQLite keeps beside it, by any name.

    Raises:
        UsageError: The output, the name under which it is written until it is whole, or the source is one of them.
    """
    for own in (ledger.with_name(ledger.name + suffix) for suffix in DATABASE_SUFFIXES):
        for path in (target, partial_path(target), source):
            if path.resolve() == own.resolve() or (path.exists() and own.exists() and path.samefile(own)):
                raise UsageError(
                    "the output and the source must be other files than the ledger and its key; choose another name"
                )


def _create_for_owner(path: Path) -> None:
    """An empty file that its owner alone may read; the files that SQLite puts beside it inherit that."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise LedgerError(f"a ledger must be writable, got {error.strerror}; choose another folder") from None


@contextmanager
def sqlite_errors() -> Iterator[None]:
    """SQLite's errors as ours. Its messages name files and columns, never values, but they are not passed on."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "locked" in text:
            raise LedgerError(
                f"a ledger must be free within {PATIENCE_SECONDS:.0f} seconds, but another process holds it; "
                "end that one, or use another ledger"
            ) from None
        if "full" in text or "disk I/O" in text:
            raise LedgerError(
                "a ledger must have room to grow, but the disk is full; free space: nothing was lost"
            ) from None
        if "decode" in text:  # the message quotes the bytes
            raise _damaged_row() from None
        raise LedgerError("a ledger must be readable and writable; check the path and its permissions") from None
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ):  # all that a cell of another kind makes of its reader
        raise _damaged_row() from None
    except sqlite3.DatabaseError:
        raise LedgerError(
            "a ledger must be a file that rapt wrote, got another or a damaged one; name another"
        ) from None


def _damaged_row() -> LedgerError:
    return LedgerError("a row of the ledger is damaged; see `rapt ledger verify`, or restore it from a backup")


def _prepare(connection: sqlite3.Connection, path: Path) -> LedgerKey:
    """Make the tables and the key of an empty file, or check those that are there."""
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] and not is_ledger(connection):
        raise LedgerError("a ledger must be a file that rapt wrote, got another program's; name another")
    connection.execute("PRAGMA journal_mode = WAL")
    # A row must be on the disk before its release leaves: NORMAL would let a power cut take it back.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    made = False
    try:
        if not is_ledger(connection):
            key, made = make_key(path), True
            for statement in _statements(TABLES):
                connection.execute(statement)
            ledger_id = secrets.token_hex(16)
            connection.execute(
                "INSERT INTO ledger VALUES (?, ?, ?, 0, ?)", (SCHEMA, ledger_id, key.check(ledger_id), b"")
            )
        else:
            key = read_key(path)
            row = connection.execute("SELECT schema, id, key_check FROM ledger").fetchone()
            if row is None or row[0] != SCHEMA:
                raise LedgerError(f"a ledger must be of schema {SCHEMA!r}; upgrade rapt, or use another ledger")
            if key.check(str(row[1])) != row[2]:
                raise LedgerError("the key of a ledger must be its own, got another; restore both together")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        if made:
            key_path(path).unlink(missing_ok=True)
        raise
    return key


def is_ledger(connection: sqlite3.Connection) -> bool:
    """Whether the database says of itself that it is a ledger of ours."""
    return bool(connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
