"""Reading a ledger: is it what it was, and what was spent? Neither needs the key, neither writes."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapt.errors import LedgerError
from rapt.local.ledger_file import (
    CAP_HASH,
    COLUMNS,
    SCHEMA,
    Caps,
    caps_from_json,
    compute_first_digest,
    compute_next_digest,
    open_for_reading,
)

_ROWS: Final = f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY sequence"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A whole ledger: every row is where and what it was when it was written.

    Attributes:
        rows: Number of rows.
        head: Digest of the last row, hex. Who keeps it can show later that nothing before it was rewritten.
    """

    rows: int
    head: str


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Spending of one setting.

    Attributes:
        kind: `text` or `label`.
        setting: Setting of the releases, as it was stated.
        releases: Number of releases.
        tokens: Number of tokens in the releases; 0 for labels.
        budget: Σ η·tokens; 0 for labels.
    """

    kind: str
    setting: dict[str, Any]
    releases: int
    tokens: int
    budget: float


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """Summary of what a ledger says was spent.

    Attributes:
        rows: Rows in all.
        head: Digest of the last row, hex.
        first, last: Time of the first and the last row, UTC; None for an empty ledger.
        texts: Different texts that were released.
        releases: Number of releases of these texts.
        tokens: Number of tokens in these releases.
        budget: Σ η·tokens.
        most_on_one_text: The largest Σ η over the releases of one text.
        most_label_epsilon: The largest Σ ε over the releases of one text's label.
        caps: Most that may be spent.
        settings: Spending of each setting.
    """

    rows: int
    head: str
    first: str | None
    last: str | None
    texts: int
    releases: int
    tokens: int
    budget: float
    most_on_one_text: float
    most_label_epsilon: float
    caps: Caps
    settings: tuple[Spending, ...]


def verify_ledger(path: Path, *, head: str | None = None) -> Chain:
    """Walk the whole chain.

    Args:
        path: The ledger.
        head: A digest that was noted earlier and must still be in the chain, hex; None to ask for none.

    Raises:
        LedgerError: A row was changed, removed, added or moved: the first one that does not fit is named. Or the noted
            head is gone, so the ledger was set back or rewritten.
    """
    with open_for_reading(path) as connection:
        ledger_id, count, last = _identity(connection)
        digest, rows, noted = compute_first_digest(str(ledger_id)), 0, head is None
        for row in connection.execute(_ROWS):
            rows += 1
            digest = compute_next_digest(digest, row[:-1])
            if row[0] != rows or row[-1] != digest:
                raise LedgerError(
                    f"row {rows} of the ledger does not follow from the row before: one of the two was changed, "
                    "removed, added or moved; restore the ledger from a backup"
                )
            noted = noted or digest.hex() == head
        if rows != count or (rows > 0 and digest != last):
            raise LedgerError(
                f"a ledger must end where it says, got {rows} rows of {count}: rows were removed from its end, or "
                "added; restore it from a backup"
            )
    if not noted:
        raise LedgerError(
            f"the head that was noted must be in the chain, got none like it in {rows} rows: the ledger was set back "
            "or rewritten; restore it from a backup"
        )
    return Chain(rows=rows, head=digest.hex() if rows else "")


def summarize_ledger(path: Path) -> LedgerSummary:
    """Sum up what was spent, from the rows as they stand: `verify_ledger` says whether they may be believed.

    Raises:
        LedgerError: It is missing, or not a ledger.
    """
    with open_for_reading(path) as connection:
        connection.execute("BEGIN")  # one moment for all of the numbers
        _, rows, head = _identity(connection)
        first, last = connection.execute("SELECT min(time), max(time) FROM entries").fetchone()
        texts, most = connection.execute(
            "SELECT count(DISTINCT text_hash), coalesce(max(text_total), 0) FROM entries WHERE kind = 'text'"
        ).fetchone()
        label = connection.execute(
            "SELECT coalesce(max(spent), 0) FROM "
            "(SELECT sum(label_epsilon) AS spent FROM entries WHERE kind = 'label' GROUP BY text_hash)"
        ).fetchone()[0]
        settings, most, label = tuple(_settings(connection)), float(most), float(label)
        caps = connection.execute(
            "SELECT released FROM entries WHERE release_hash = ? ORDER BY sequence DESC LIMIT 1", (CAP_HASH,)
        ).fetchone()
    of_texts = [spending for spending in settings if spending.kind == "text"]
    return LedgerSummary(
        rows=rows,
        head=head.hex(),
        first=first,
        last=last,
        texts=texts,
        releases=sum(spending.releases for spending in of_texts),
        tokens=sum(spending.tokens for spending in of_texts),
        budget=float(sum(spending.budget for spending in of_texts)),
        most_on_one_text=most,
        most_label_epsilon=label,
        caps=Caps() if caps is None else caps_from_json(str(caps[0])),
        settings=settings,
    )


def _identity(connection: sqlite3.Connection) -> tuple[str, int, bytes]:
    """Id of the ledger, number of its rows, digest of the last one, as it states them."""
    row = connection.execute("SELECT schema, id, head_sequence, head_digest FROM ledger").fetchone()
    if row is None or row[0] != SCHEMA:
        raise LedgerError(f"a ledger must be of schema {SCHEMA!r}; upgrade rapt, or restore it from a backup")
    if type(row[2]) is not int or type(row[3]) is not bytes:
        raise LedgerError("the head of the ledger is damaged; restore it from a backup")
    return str(row[1]), row[2], row[3]


def _settings(connection: sqlite3.Connection) -> list[Spending]:
    return [
        _spending(*row)
        for row in connection.execute(
            "SELECT kind, setting, count(*), sum(tokens), sum(budget) FROM entries WHERE kind != 'cap' "
            "GROUP BY kind, setting ORDER BY min(sequence)"
        )
    ]


def _spending(kind: str, stored: str, releases: int, tokens: int, budget: float) -> Spending:
    """The releases of one setting; a row that does not read as one of ours is damaged (`LedgerError`)."""
    try:
        setting = json.loads(stored)
        if kind == "label":
            whole: dict[str, Any] = {"mechanism": str, "epsilon": int | float, "classes": int}
        else:
            whole = {"vocabulary_hash": str, "truncate_to": int | None, "mechanism": dict}
            name, parameters = setting["mechanism"]["name"], setting["mechanism"]["parameters"]
            if kind != "text" or not (isinstance(name, str) and isinstance(parameters, dict)):
                raise ValueError
        if not all(isinstance(setting[name], expected) for name, expected in whole.items()):
            raise ValueError
        return Spending(kind=kind, setting=setting, releases=releases, tokens=int(tokens), budget=float(budget))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise LedgerError(
            "a row of the ledger is damaged; see `rapt ledger verify`, and restore it from a backup"
        ) from None
