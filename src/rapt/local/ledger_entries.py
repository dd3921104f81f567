"""The rows of a ledger and the chain through them.

Each row ends with SHA-256 over the digest of the row before and all of its own columns, so a row that is changed,
removed, inserted or moved breaks the chain at its place. The last digest, the head, stands for the whole history: who
notes it can later show that nothing before it was rewritten. A chain cannot tell that rows were cut off at the end and
the head set back; a noted head can (`verify_ledger(..., head=...)`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rapt.errors import LedgerError

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
        setting: What it was drawn with, as canonical JSON.
        text_hash: Keyed hash of the text.
        release_hash: Keyed hash of the text and the setting.
        released: The release itself, as JSON: private output, about to be sent.
        position: Of the record in its file, for messages; not kept.
        tokens: How many are released.
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
    """What may be spent at most; None is no cap.

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


def first_digest(ledger_id: str) -> bytes:
    """The digest that stands before the first row; rows of one ledger do not fit another."""
    return hashlib.sha256(f"{SCHEMA} {ledger_id}".encode()).digest()


def next_digest(previous: bytes, values: tuple[Any, ...]) -> bytes:
    """The digest of a row from that of the row before and the row's columns, all but the last, in order."""
    plain = [value.hex() if isinstance(value, bytes) else value for value in values]
    return hashlib.sha256(previous + _JSON.encode(plain).encode()).digest()
