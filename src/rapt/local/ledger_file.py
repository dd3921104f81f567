"""A ledger as a file: an SQLite database whose rows are chained under a key.

*The chain.* Each row ends with HMAC-SHA256, under the ledger's key, over the digest of the row before and all of its
own columns, so a row that is changed, removed, inserted or moved breaks the chain at its place. The last digest, the
head, stands for the whole history; beside it stands a keyed hash of the head and of the number of rows. So nobody
without the key can write a row that fits, or call an earlier row the last one. A whole ledger that is set back to an
earlier copy of itself is consistent: only a head that was noted elsewhere shows it. Every run prints the head and keeps
it in a receipt.

*One file.* A rollback journal, and no write-ahead log: a whole ledger is one file, which can be copied, and read from
where nothing can be written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from rapt.errors import LedgerError, UsageError
from rapt.local.ledger_key import (
    SCHEMA,
    KeyPlace,
    LedgerKey,
    locate_key,
    make_key,
    read_key,
    refuse_old_key,
    remove_key,
)
from rapt.local.ledger_place import refuse_place, refuse_receipts

# "rapt" as SQLite's application id: another program's database is never taken for a ledger.
APPLICATION_ID: Final = 0x72617074

# What is spent, never added up across kinds: η of metric privacy, ε of a whole text, ε of a label.
Budget = Literal["metric", "text", "label"]
BUDGETS: Final[tuple[Budget, ...]] = get_args(Budget)
Kind = Literal["metric", "text", "label", "caps"]
COLUMNS: Final = (
    "sequence",
    "time",
    "kind",
    "setting",
    "tokens",
    "on_text",
    "in_all",
    "total",
    "text_hash",
    "content_hash",
    "release_hash",
    "released",
    "digest",
)
_JSON: Final = json.JSONEncoder(separators=(",", ":"))
# Rows of caps have no text: this stands in their hashes, and finds the latest one.
CAP_HASH: Final = hashlib.sha256(b"rapt.ledger/2 caps").digest()

TABLES: Final = f"""
CREATE TABLE ledger (
    schema TEXT NOT NULL,
    id TEXT NOT NULL,
    key_check BLOB NOT NULL,
    head_sequence INTEGER NOT NULL,
    head_digest BLOB NOT NULL,
    head_check BLOB NOT NULL
);
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    kind TEXT NOT NULL,
    setting TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    on_text REAL NOT NULL,
    in_all REAL NOT NULL,
    total REAL NOT NULL,
    text_hash BLOB NOT NULL,
    content_hash BLOB NOT NULL,
    release_hash BLOB NOT NULL,
    released TEXT NOT NULL,
    digest BLOB NOT NULL
);
CREATE TABLE runs (hash INTEGER PRIMARY KEY, sequence INTEGER NOT NULL);
CREATE INDEX entries_by_text ON entries (text_hash);
CREATE INDEX entries_by_content ON entries (content_hash);
CREATE INDEX entries_by_release ON entries (release_hash);
CREATE INDEX entries_by_kind ON entries (kind, sequence);
CREATE TRIGGER entries_are_not_changed BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER entries_are_not_removed BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
PRAGMA application_id = {APPLICATION_ID};
"""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Something that is about to leave: what a row of the ledger says, before it has a place in the chain.

    Attributes:
        kind: Budget that it spends: `metric` for tokens under η, `text` for a whole text under one ε, `label` for a
            label.
        setting: Setting that it was drawn with, as canonical JSON.
        text_hash: Keyed hash of the text as it is spelled, but for case, white space and compatible characters.
        content_hash: Keyed hash of the tokens that the mechanism saw.
        release_hash: Keyed hash of these tokens and the setting.
        released: The release itself, as JSON: private output, about to be sent.
        position: Position of the record in its file, for messages; not kept.
        tokens: Number of the text's tokens in it; 0 for a label.
        on_text: Amount that it adds to what is spent on its text: η, or ε in nats.
        in_all: Amount that it adds to what is spent in all: η·tokens, or ε in nats.
        runs: Keyed hashes of the runs of the text's tokens, in order, 64 bits each; every eighth one is kept.
    """

    kind: Kind
    setting: str
    text_hash: bytes
    content_hash: bytes
    release_hash: bytes
    released: str = field(repr=False)
    position: int
    tokens: int = 0
    on_text: float = 0.0
    in_all: float = 0.0
    runs: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Cap:
    """Most that may be spent of one budget; None is no cap.

    Attributes:
        on_text: Sum over all releases of one text. η is added as a number even where tables differ, so that another
            table is no way round it.
        in_all: Sum over the whole ledger, which is one person's: Σ η·tokens, or Σ ε.
    """

    on_text: float | None = None
    in_all: float | None = None


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Most that may be spent of each budget: they are never added up.

    Attributes:
        metric: η of metric privacy: two releases of a text at η are together as telling as one at 2η.
        text: ε of whole texts, in nats.
        label: ε of labels, in nats.
    """

    metric: Cap = Cap()
    text: Cap = Cap()
    label: Cap = Cap()

    def of(self, budget: Budget) -> Cap:
        """Return the cap of one budget."""
        found: Cap = getattr(self, budget)
        return found

    def check(self) -> None:
        """Refuse a cap that is no finite number above 0 (`UsageError`)."""
        for budget in BUDGETS:
            for name, value in asdict(self.of(budget)).items():
                if value is not None and not 0 < value < math.inf:
                    raise UsageError(
                        f"a cap must be a finite number above 0, got {budget} {name}={value!r}; leave it out for none"
                    )


def caps_to_json(caps: Caps) -> str:
    """Write caps as a row of the ledger holds them."""
    return _JSON.encode(asdict(caps))


def caps_from_json(stored: str) -> Caps:
    """Read the caps in a row of the ledger.

    Raises:
        LedgerError: The row is damaged.
    """
    try:
        caps = Caps(**{budget: Cap(**cap) for budget, cap in json.loads(stored).items()})
        caps.check()
    except (ValueError, TypeError, AttributeError, RecursionError, UsageError):
        raise LedgerError("a row of caps in the ledger is damaged; see `rapt ledger verify`") from None
    return caps


# Longer than another process ever holds the lock: one append takes milliseconds.
PATIENCE_SECONDS: Final = 60.0


@contextmanager
def open_for_writing(path: Path, *, key: KeyPlace | None = None) -> Iterator[tuple[sqlite3.Connection, LedgerKey]]:
    """Open a ledger and its key; both are made when nothing is there. Transactions are the caller's.

    Raises:
        LedgerError: It is not a ledger, its key is missing or another's, rows are missing, it cannot be written, or
            receipts beside it show that it was emptied or removed.
    """
    refuse_place(path, key=key)
    key = locate_key(path, key)
    if not path.exists():
        refuse_receipts(path)
        refuse_old_key(key)
        _create_for_owner(path)
    with translate_sqlite_errors():
        connection = sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None)
    try:
        with translate_sqlite_errors():
            secret = _prepare(connection, path, key=key)
        yield connection, secret
    finally:
        connection.close()


@contextmanager
def open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a ledger so that nothing is written; the key is not needed, nor a place where something can be written.

    Raises:
        LedgerError: It is missing, or not a ledger.
    """
    if not path.is_file():
        raise LedgerError(f"a ledger must be a file, got none at {str(path)!r}; check the path")
    with translate_sqlite_errors():
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_SECONDS)
    try:
        with translate_sqlite_errors():
            if not is_ledger(connection):
                raise LedgerError("a ledger must be a file that rapt wrote, got another; name another")
            yield connection
    finally:
        connection.close()


def read_identity(connection: sqlite3.Connection) -> tuple[str, int, bytes, bytes]:
    """Read the id of a ledger, the number of its rows, the digest of the last one and its check, as it states them.

    Raises:
        LedgerError: It is of another schema, or damaged.
    """
    row = connection.execute("SELECT schema FROM ledger").fetchone()
    if row is None or row[0] != SCHEMA:
        raise LedgerError(f"a ledger must be of schema {SCHEMA!r}; upgrade rapt, or use another ledger")
    row = connection.execute("SELECT id, head_sequence, head_digest, head_check FROM ledger").fetchone()
    if type(row[1]) is not int or type(row[2]) is not bytes or type(row[3]) is not bytes:
        raise LedgerError("the head of the ledger is damaged; restore it from a backup")
    return str(row[0]), row[1], row[2], row[3]


def check_key(connection: sqlite3.Connection, key: LedgerKey) -> None:
    """Refuse another ledger's key (`LedgerError`)."""
    ledger_id, *_ = read_identity(connection)
    (check,) = connection.execute("SELECT key_check FROM ledger").fetchone()
    if key.key_check(ledger_id) != check:
        raise LedgerError("the key of a ledger must be its own, got another; restore both together")


def _create_for_owner(path: Path) -> None:
    """An empty file that its owner alone may read; the files that SQLite puts beside it inherit that."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise LedgerError(f"a ledger must be writable, got {error.strerror}; choose another folder") from None


@contextmanager
def translate_sqlite_errors() -> Iterator[None]:
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
            raise _make_damaged_row_error() from None
        if "no such" in text:  # a table or a column of an earlier form
            raise LedgerError(f"a ledger must be of schema {SCHEMA!r}; upgrade rapt, or use another ledger") from None
        raise LedgerError("a ledger must be readable and writable; check the path and its permissions") from None
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ):  # all that a cell of another kind makes of its reader
        raise _make_damaged_row_error() from None
    except sqlite3.DatabaseError:
        raise LedgerError(
            "a ledger must be a file that rapt wrote, got another or a damaged one; name another"
        ) from None


def _make_damaged_row_error() -> LedgerError:
    return LedgerError("a row of the ledger is damaged; see `rapt ledger verify`, or restore it from a backup")


def _prepare(connection: sqlite3.Connection, path: Path, *, key: KeyPlace) -> LedgerKey:
    """Make the tables and the key of an empty file, or check those that are there."""
    if _has_tables(connection) and not is_ledger(connection):
        raise LedgerError("a ledger must be a file that rapt wrote, got another program's; name another")
    # A row must be on the disk before its release leaves: NORMAL would let a power cut take it back.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    made = False
    try:
        if not _has_tables(connection):
            refuse_receipts(path)
        if not is_ledger(connection):
            secret, made = make_key(key), True
            for statement in _iterate_statements(TABLES):
                connection.execute(statement)
            ledger_id = secrets.token_hex(16)
            connection.execute(
                "INSERT INTO ledger VALUES (?, ?, ?, 0, ?, ?)",
                (SCHEMA, ledger_id, secret.key_check(ledger_id), b"", secret.head_check(ledger_id, rows=0, digest=b"")),
            )
        else:
            secret = read_key(key)
            check_key(connection, secret)
            _check_count(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        if made:
            remove_key(key)
        raise
    return secret


def _check_count(connection: sqlite3.Connection) -> None:
    """Refuse a ledger that lacks rows: less would be counted than was spent (`LedgerError`)."""
    _, rows, _, _ = read_identity(connection)
    found, last = connection.execute("SELECT count(*), coalesce(max(sequence), 0) FROM entries").fetchone()
    if (found, last) != (rows, rows):
        raise LedgerError(
            f"a ledger must have all of its rows, got {found} of {rows}; see `rapt ledger verify`, and restore it from "
            "a backup"
        )


def _has_tables(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def is_ledger(connection: sqlite3.Connection) -> bool:
    """Whether the database says of itself that it is a ledger of ours."""
    return bool(connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)


def _iterate_statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
