"""Reading a ledger: is it what it was, and what was spent? Neither writes, and only the first needs the key."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapt.errors import LedgerError
from rapt.local.ledger_file import (
    BUDGETS,
    CAP_HASH,
    COLUMNS,
    Budget,
    Caps,
    caps_from_json,
    check_key,
    open_for_reading,
    read_identity,
)
from rapt.local.ledger_key import KeyPlace, locate_key, read_key

_ROWS: Final = f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY sequence"
_KIND, _IN_ALL, _TOTAL = (COLUMNS.index(name) for name in ("kind", "in_all", "total"))


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A whole ledger: every row is where and what it was when it was written.

    Attributes:
        rows: Number of rows.
        head: Digest of the last row, hex. Who keeps it can show later that nothing before it was rewritten.
        noted: Number of noted heads that are in the chain.
    """

    rows: int
    head: str
    noted: int


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Spending of one setting.

    Attributes:
        kind: `metric` for texts under η, `text` for whole texts under an ε, `label` for labels.
        setting: Setting of the releases, as it was stated.
        releases: Number of releases.
        tokens: Number of tokens of the texts; 0 for labels.
        in_all: Amount that they add to their budget: Σ η·tokens, or Σ ε in nats.
    """

    kind: Budget
    setting: dict[str, Any]
    releases: int
    tokens: int
    in_all: float


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Spending of one budget.

    Attributes:
        in_all: Sum over all releases, Σ η·tokens, or Σ ε in nats.
        most_on_one_text: The largest Σ η, or Σ ε, over releases of the same tokens, or of texts spelled alike.
    """

    in_all: float
    most_on_one_text: float


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """Summary of what a ledger says was spent.

    Attributes:
        rows: Rows in all.
        head: Digest of the last row, hex.
        first, last: Time of the first and the last row, UTC; None for an empty ledger.
        texts: Number of different texts that were released; those with the same tokens, or spelled alike, are one.
        releases: Number of releases of these texts.
        tokens: Number of tokens in these releases.
        spent: Spending of each budget; they are never added up.
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
    spent: dict[Budget, Spent]
    caps: Caps
    settings: tuple[Spending, ...]


def verify_ledger(path: Path, *, key: KeyPlace | None = None, heads: Collection[str] = ()) -> Chain:
    """Walk the whole chain, and add up again what was spent.

    Args:
        path: Path of the ledger; it may be where nothing can be written.
        key: Place of its key; None for `NAME.key` beside it.
        heads: Digests that were noted earlier and must still be in the chain, hex.

    Raises:
        LedgerError: A row was changed, removed, added or moved: the first one that does not fit is named. Or a total is
            not the sum of its rows; or a noted head is gone, so the ledger was set back or rewritten.
    """
    wanted = set(heads)
    with open_for_reading(path) as connection:
        secret = read_key(locate_key(path, key))
        check_key(connection, secret)
        connection.execute("BEGIN")  # one moment for all of it
        ledger_id, count, last, check = read_identity(connection)
        digest, rows = secret.first_digest(ledger_id), 0
        totals: dict[str, float] = {}
        for row in connection.execute(_ROWS):
            rows += 1
            digest = secret.next_digest(digest, row[:-1])
            if row[0] != rows or row[-1] != digest:
                raise LedgerError(
                    f"row {rows} of the ledger does not follow from the row before: one of the two was changed, "
                    "removed, added or moved; restore the ledger from a backup"
                )
            totals[row[_KIND]] = totals.get(row[_KIND], 0.0) + row[_IN_ALL]
            if totals[row[_KIND]] != row[_TOTAL]:
                raise LedgerError(
                    f"the total in row {rows} of the ledger must be the sum of its rows, got another; restore the "
                    "ledger from a backup"
                )
            wanted.discard(digest.hex())
        stated = secret.head_check(ledger_id, rows=count, digest=last)
        if rows != count or (rows > 0 and digest != last) or check != stated:
            raise LedgerError(
                f"a ledger must end where it says, got {rows} rows of {count}: rows were removed from its end, or "
                "added; restore it from a backup"
            )
    if wanted:
        raise LedgerError(
            f"every head that was noted must be in the chain, got {len(wanted)} that are in none of {rows} rows: the "
            "ledger was set back or rewritten; restore it from a backup"
        )
    return Chain(rows=rows, head=digest.hex() if rows else "", noted=len(set(heads)))


def summarize_ledger(path: Path) -> LedgerSummary:
    """Sum up what was spent, from the rows as they stand: `verify_ledger` says whether they may be believed.

    Raises:
        LedgerError: It is missing, or not a ledger.
    """
    with open_for_reading(path) as connection:
        connection.execute("BEGIN")  # one moment for all of the numbers
        _, rows, head, _ = read_identity(connection)
        first, last = connection.execute("SELECT min(time), max(time) FROM entries").fetchone()
        counts = connection.execute(
            "SELECT count(DISTINCT text_hash), count(DISTINCT content_hash) FROM entries "
            "WHERE kind IN ('metric', 'text')"
        ).fetchone()
        spent = {budget: _sum_spent(connection, budget) for budget in BUDGETS}
        settings = tuple(_list_settings(connection))
        caps = connection.execute(
            "SELECT released FROM entries WHERE release_hash = ? ORDER BY sequence DESC LIMIT 1", (CAP_HASH,)
        ).fetchone()
    of_texts = [spending for spending in settings if spending.kind != "label"]
    return LedgerSummary(
        rows=rows,
        head=head.hex(),
        first=first,
        last=last,
        texts=min(counts),
        releases=sum(spending.releases for spending in of_texts),
        tokens=sum(spending.tokens for spending in of_texts),
        spent=spent,
        caps=Caps() if caps is None else caps_from_json(str(caps[0])),
        settings=settings,
    )


def _sum_spent(connection: sqlite3.Connection, budget: Budget) -> Spent:
    (total,) = connection.execute("SELECT coalesce(sum(in_all), 0) FROM entries WHERE kind = ?", (budget,)).fetchone()
    most = [
        connection.execute(
            "SELECT coalesce(max(spent), 0) FROM "
            f"(SELECT sum(on_text) AS spent FROM entries WHERE kind = ? GROUP BY {by})",
            (budget,),
        ).fetchone()[0]
        for by in ("text_hash", "content_hash")
    ]
    return Spent(in_all=float(total), most_on_one_text=max(map(float, most)))


def _list_settings(connection: sqlite3.Connection) -> list[Spending]:
    return [
        _sum_spending(*row)
        for row in connection.execute(
            "SELECT kind, setting, count(*), sum(tokens), sum(in_all) FROM entries WHERE kind != 'caps' "
            "GROUP BY kind, setting ORDER BY min(sequence)"
        )
    ]


def _sum_spending(kind: str, stored: str, releases: int, tokens: int, in_all: float) -> Spending:
    """The releases of one setting; a row that does not read as one of ours is damaged (`LedgerError`)."""
    try:
        setting = json.loads(stored)
        if kind == "label":
            whole: dict[str, Any] = {"mechanism": str, "epsilon": int | float, "classes": int}
        else:
            whole = {"vocabulary_hash": str, "mechanism": dict}
            name, parameters = setting["mechanism"]["name"], setting["mechanism"]["parameters"]
            if not (isinstance(name, str) and isinstance(parameters, dict)):
                raise ValueError
        if not all(isinstance(setting[name], expected) for name, expected in whole.items()):
            raise ValueError
        budget = next(known for known in BUDGETS if known == kind)
        return Spending(kind=budget, setting=setting, releases=releases, tokens=int(tokens), in_all=float(in_all))
    except (ValueError, TypeError, KeyError, RecursionError, StopIteration):
        raise LedgerError(
            "a row of the ledger is damaged; see `rapt ledger verify`, and restore it from a backup"
        ) from None
