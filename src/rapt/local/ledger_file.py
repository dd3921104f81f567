"""A ledger as a file: SQLite in write-ahead mode, its key beside it, for one process or several at once.

*The chain.* Each row ends with SHA-256 over the digest of the row before and all of its own columns, so a row that is
changed, removed, inserted or moved breaks the chain at its place. The last digest, the head, stands for the whole
history: who notes it can later show that nothing before it was rewritten. A chain cannot tell that rows were cut off at
the end and the head set back; a noted head can (`verify_ledger(..., head=...)`).

*The key.* It turns a text into a hash that only its holder can recompute. A plain hash of a text is not secret: whoever
guesses the text can check the guess. With a random key of 256 bits beside the ledger, readable by its owner only, the
ledger alone answers no guess. Key and ledger together do, so both stay on the trusted side, and losing the key means
that the ledger no longer recognizes a text: the file is refused then.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from rapt.errors import LedgerError, UsageError
from rapt.whole_files import DATABASE_SUFFIXES
from rapt.wire.privatized_writer import name_partial

SCHEMA: Final = "rapt.ledger/1"
# "rapt" as SQLite's application id: another program's database is never taken for a ledger.
APPLICATION_ID: Final = 0x72617074

Kind = Literal["text", "label", "cap"]
COLUMNS: Final = (
    "sequence",
    "time",
    "kind",
    "setting",
    "tokens",
    "eta",
    "budget",
    "label_epsilon",
    "text_total",
    "ledger_total",
    "text_hash",
    "release_hash",
    "released",
    "digest",
)
_JSON: Final = json.JSONEncoder(separators=(",", ":"))
# Rows of caps have no text: this stands in both of their hashes, and finds the latest one.
CAP_HASH: Final = hashlib.sha256(b"rapt.ledger/1 cap").digest()

TABLES: Final = f"""
CREATE TABLE ledger (
    schema TEXT NOT NULL,
    id TEXT NOT NULL,
    key_check BLOB NOT NULL,
    head_sequence INTEGER NOT NULL,
    head_digest BLOB NOT NULL
);
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    kind TEXT NOT NULL,
    setting TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    eta REAL NOT NULL,
    budget REAL NOT NULL,
    label_epsilon REAL NOT NULL,
    text_total REAL NOT NULL,
    ledger_total REAL NOT NULL,
    text_hash BLOB NOT NULL,
    release_hash BLOB NOT NULL,
    released TEXT NOT NULL,
    digest BLOB NOT NULL
);
CREATE INDEX entries_by_text ON entries (text_hash);
CREATE INDEX entries_by_release ON entries (release_hash);
CREATE TRIGGER entries_are_not_changed BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER entries_are_not_removed BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
PRAGMA application_id = {APPLICATION_ID};
"""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Something that is about to leave: what a row of the ledger says, before it has a place in the chain.

    Attributes:
        kind: `text` for privatized tokens, `label` for a randomized label.
        setting: Setting that it was drawn with, as canonical JSON.
        text_hash: Keyed hash of the text.
        release_hash: Keyed hash of the text and the setting.
        released: The release itself, as JSON: private output, about to be sent.
        position: Position of the record in its file, for messages; not kept.
        tokens: Number of tokens that are released.
        eta: η of each token; 0 for a label.
        label_epsilon: ε of the label; 0 for a text.
    """

    kind: Kind
    setting: str
    text_hash: bytes
    release_hash: bytes
    released: str = field(repr=False)
    position: int
    tokens: int = 0
    eta: float = 0.0
    label_epsilon: float = 0.0

    @property
    def budget(self) -> float:
        """η·tokens: ε of the release against a text whose tokens all lie at distance 1 from those of this one."""
        return self.eta * self.tokens


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Most that may be spent; None is no cap.

    Attributes:
        per_text: Sum of η over all releases of one text: two releases at η are together as telling as one at 2η. η is
            added as a number even where tables differ, so that another table is no way round it.
        in_all: Sum of η·tokens over the whole ledger.
    """

    per_text: float | None = None
    in_all: float | None = None


def caps_to_json(caps: Caps) -> str:
    """Caps as a row of the ledger holds them."""
    return json.dumps({"per_text": caps.per_text, "in_all": caps.in_all})


def caps_from_json(stored: str) -> Caps:
    """The caps in a row of the ledger.

    Raises:
        LedgerError: The row is damaged.
    """
    try:
        return Caps(**json.loads(stored))
    except (ValueError, TypeError, RecursionError):
        raise LedgerError("a row of caps in the ledger is damaged; see `rapt ledger verify`") from None


def compute_first_digest(ledger_id: str) -> bytes:
    """The digest that stands before the first row; rows of one ledger do not fit another."""
    return hashlib.sha256(f"{SCHEMA} {ledger_id}".encode()).digest()


def compute_next_digest(previous: bytes, values: tuple[Any, ...]) -> bytes:
    """The digest of a row from that of the row before and the row's columns, all but the last, in order."""
    plain = [value.hex() if isinstance(value, bytes) else value for value in values]
    return hashlib.sha256(previous + _JSON.encode(plain).encode()).digest()


_BYTES: Final = 32


@dataclass(frozen=True)
class LedgerKey:
    """A secret of 32 bytes. Its `repr` shows nothing of it."""

    secret: bytes = field(repr=False)

    def text_hash(self, text: str) -> bytes:
        """Return the hash that stands for a text in the ledger, 32 bytes, whatever the text is released with."""
        return self._hash(b"text", text)

    def release_hash(self, text: str, *, setting: str) -> bytes:
        """Return the hash that stands for a text released with a setting, 32 bytes.

        Args:
            text: Text in clear; not kept.
            setting: JSON in ASCII, so that it holds no zero byte and the two parts cannot run into each other.
        """
        return self._hash(b"release\0" + setting.encode("ascii"), text)

    def check(self, ledger_id: str) -> bytes:
        """A value by which a ledger recognizes its key without holding it, 32 bytes."""
        return self._hash(b"key", ledger_id)

    def _hash(self, purpose: bytes, text: str) -> bytes:
        # surrogatepass: a text that is not valid Unicode is refused by the vocabulary, which can say where it stands.
        return hmac.digest(self.secret, purpose + b"\0" + text.encode("utf-8", "surrogatepass"), "sha256")


def key_path(ledger: Path) -> Path:
    """Where the key of a ledger lies: beside it."""
    return ledger.with_name(ledger.name + ".key")


def refuse_old_key(ledger: Path) -> None:
    """Refuse to begin a ledger beside a key: its ledger is missing, and what it had spent would be forgotten.

    Raises:
        LedgerError: A key lies there.
    """
    if key_path(ledger).exists():
        raise LedgerError(
            f"a new ledger must have a new key, got an older one at {str(key_path(ledger))!r}; "
            "restore the ledger it belongs to, or move it away"
        )


def make_key(ledger: Path) -> LedgerKey:
    """A fresh key, written for the owner only. The caller holds the ledger's lock.

    Raises:
        LedgerError: A key lies there already, or the folder cannot be written.
    """
    refuse_old_key(ledger)
    secret = secrets.token_bytes(_BYTES)
    try:
        descriptor = os.open(key_path(ledger), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise LedgerError(
            f"the key of a ledger must be writable, got {error.strerror}; choose another folder"
        ) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secret.hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return LedgerKey(secret)


def read_key(ledger: Path) -> LedgerKey:
    """The key beside a ledger.

    Raises:
        LedgerError: It is missing, readable by others, or not a key.
    """
    path = key_path(ledger)
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(2 * _BYTES + 2)
    except OSError as error:
        raise LedgerError(
            f"a ledger must have its key beside it, got {error.strerror} for {str(path)!r}; restore both together"
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise LedgerError(
            f"the key of a ledger must be for its owner only, got mode={mode & 0o777:03o}; run: chmod 600 {path}"
        )
    try:
        secret = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:  # its own message would quote the key
        secret = b""
    if len(secret) != _BYTES:
        raise LedgerError(f"the key of a ledger must be {2 * _BYTES} hex digits; restore {str(path)!r}")
    return LedgerKey(secret)


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
    with translate_sqlite_errors():
        connection = sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None)
    try:
        with translate_sqlite_errors():
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
    with translate_sqlite_errors():
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_SECONDS)
    try:
        with translate_sqlite_errors():
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
        for path in (target, name_partial(target), source):
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
