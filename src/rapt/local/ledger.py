"""The ledger: what was released of which text, and what it cost, so that nothing is spent twice by mistake.

Every release of a text adds to what an observer can learn about it. The ledger makes the second release of a text free,
by answering it with the first one, and stops at a cap.

*Promise.* At any moment, also after a crash, whatever was released through a ledger stands in it. *Why.* A release is
written and synced to disk before its record is handed out, hence before the output file can appear. A crash in between
leaves a row without a file: the budget counts as spent, and the same text is answered from that row later, at no cost.
Two processes cannot spend the same budget, because looking up, checking the cap and appending are one transaction that
holds the only write lock (`BEGIN IMMEDIATE`): the second one finds the first one's release and drops its own draw.

*Which texts are one.* A mechanism sees tokens. Texts that have the same tokens after truncation are one text, however
they are spelled, and the first release answers all of them. What is spent on a text is what was spent on these tokens,
or on a text that is spelled so, whatever the vocabulary and the truncation were.

*Three budgets.* η of metric privacy, ε of whole texts and ε of labels are different promises, and are never added up. A
ledger is one person's: the sum over all of its texts bounds what is learned of that person.

*What it does not protect.* Equal texts answered by one release look equal in the output; a new draw would hide that,
and cost again. Two texts of one record are never one release, so a pair of equal texts does not look equal.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rapt.arguments import check_arguments
from rapt.errors import BudgetError, LedgerError, UsageError, name_record
from rapt.local.ledger_file import (
    BUDGETS,
    CAP_HASH,
    COLUMNS,
    Budget,
    Cap,
    Caps,
    Release,
    caps_from_json,
    caps_to_json,
    open_for_writing,
    read_identity,
    translate_sqlite_errors,
)
from rapt.local.ledger_key import RUN, KeyPlace, LedgerKey

# Sums in float64: a cap that is met exactly in decimals is not missed by their last bit.
_SLACK: Final = 1 + 1e-12
_INSERT: Final = f"INSERT INTO entries ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
# The sign keeps SQLite from looking through all rows of the kind instead of those of the text.
_SPENT_ON_TEXT: Final = (
    "SELECT coalesce(sum(on_text), 0) FROM entries WHERE +kind = ? AND (text_hash = ? OR content_hash = ?)"
)
_LOOKED_UP_AT_ONCE: Final = 500
UNITS: Final[dict[Budget, str]] = {"metric": "η", "text": "ε of texts", "label": "ε of labels"}


@dataclass
class Tally:
    """Tally of what was done through a ledger since it was opened.

    Attributes:
        spent: Amount that was added to what is spent in all, by budget.
        released: Number of new releases, by budget.
        answered: Number of texts, or labels, that an earlier release answered, by budget.
        again: Number of new releases of texts, or labels, that had been released before, by budget.
        related: Positions of records whose new texts share a long run of tokens with other texts that were released.
    """

    spent: dict[Budget, float] = field(default_factory=lambda: dict.fromkeys(BUDGETS, 0.0))
    released: Counter[Budget] = field(default_factory=Counter)
    answered: Counter[Budget] = field(default_factory=Counter)
    again: Counter[Budget] = field(default_factory=Counter)
    related: set[int] = field(default_factory=set)


class Ledger:
    """An open ledger; `open_ledger` makes one. To be used in the process that opened it."""

    def __init__(
        self, connection: sqlite3.Connection, *, path: Path, key: LedgerKey, key_place: KeyPlace | None
    ) -> None:
        """Take over a connection to a ledger whose key was checked."""
        self._connection = connection
        self.path = path
        self.key_place = key_place
        self._process = os.getpid()
        self.key = key
        self.tally = Tally()

    def __repr__(self) -> str:
        """Show the path, and nothing that the ledger holds."""
        return f"Ledger({str(self.path)!r})"

    def find(self, release_hashes: Sequence[bytes]) -> list[str | None]:
        """Find the latest release under each hash, as JSON, or None where there is none."""
        with self._guard():
            return [self._read_latest(release_hash) for release_hash in release_hashes]

    def caps(self) -> Caps:
        """Return the caps in force."""
        with self._guard():
            return self._read_caps()

    def head(self) -> tuple[int, str]:
        """Return the number of rows, and the digest of the last one, hex; empty for a ledger without rows."""
        with self._guard():
            _, rows, digest = self._read_head()
            return rows, digest.hex()

    def set_caps(self, caps: Caps) -> None:
        """Put other caps in force. The change is a row of the ledger like any other.

        Raises:
            UsageError: A cap is not a finite number above 0.
        """
        caps.check()
        row = Release(
            kind="caps",
            setting="{}",
            text_hash=CAP_HASH,
            content_hash=CAP_HASH,
            release_hash=CAP_HASH,
            released=caps_to_json(caps),
            position=0,
        )
        with self._open_transaction():
            self._append(row)

    def commit(self, releases: Sequence[Release], *, redraw: bool = False) -> list[str]:
        """Account for releases, all or none; returns what may leave, as JSON, one for each.

        That is the given release where it is new, and the stored one where the ledger has one under the same hash: the
        given one must then be forgotten.

        Args:
            releases: Releases in order; two under one hash in one call are one release.
            redraw: Whether each is accounted for as a new one, whatever is stored.

        Raises:
            BudgetError: One of them would exceed a cap. Nothing of this call was spent, nothing of it may leave.
            LedgerError: The ledger is busy, damaged, or the disk is full. Nothing of this call may leave.
        """
        answers: list[str] = []
        tally = deepcopy(self.tally)
        with self._open_transaction():
            caps = self._read_caps()
            for release in releases:
                kind, known = release.kind, None if redraw else self._read_latest(release.release_hash)
                assert kind != "caps"
                if known is None:
                    before = self._refuse_above(caps.of(kind), kind, release)
                    if self._is_related(release):
                        tally.related.add(release.position)
                    self._append(release)
                    tally.released[kind] += 1
                    tally.again[kind] += before > 0
                    tally.spent[kind] += release.in_all
                else:
                    tally.answered[kind] += 1
                answers.append(release.released if known is None else known)
        self.tally = tally
        return answers

    def _refuse_above(self, cap: Cap, kind: Budget, release: Release) -> float:
        """Refuse a release above a cap (`BudgetError`); returns what was spent on its text before."""
        on_text = self._connection.execute(_SPENT_ON_TEXT, (kind, release.text_hash, release.content_hash)).fetchone()[
            0
        ]
        for limit, spent, asked, where in (
            (cap.on_text, on_text, release.on_text, "on one text"),
            (cap.in_all, self._sum_spent(kind), release.in_all, "in all"),
        ):
            if limit is not None and asked > 0 and not spent + asked <= limit * _SLACK:
                raise BudgetError(
                    f"{name_record(release.position)} would spend more {UNITS[kind]} {where} than the ledger allows, "
                    f"asked={asked:g} spent={spent:g} limit={limit:g}; release less, or raise the cap with "
                    "`rapt ledger cap`"
                )
        return float(on_text)

    def _append(self, release: Release) -> None:
        """Chain a row to the end. The caller holds the lock."""
        ledger_id, rows, digest = self._read_head()
        values = (
            rows + 1,
            datetime.now(UTC).isoformat(timespec="seconds"),
            release.kind,
            release.setting,
            release.tokens,
            float(release.on_text),
            float(release.in_all),
            self._sum_spent(release.kind) + release.in_all,
            release.text_hash,
            release.content_hash,
            release.release_hash,
            release.released,
        )
        digest = self.key.next_digest(digest or self.key.first_digest(ledger_id), values)
        self._connection.execute(_INSERT, (*values, digest))
        self._connection.executemany(
            "INSERT OR IGNORE INTO runs VALUES (?, ?)", [(run, rows + 1) for run in release.runs[::RUN]]
        )
        self._connection.execute(
            "UPDATE ledger SET head_sequence = ?, head_digest = ?, head_check = ?",
            (rows + 1, digest, self.key.head_check(ledger_id, rows=rows + 1, digest=digest)),
        )

    def _is_related(self, release: Release) -> bool:
        """Whether another text that was released has a run of tokens of this one."""
        for start in range(0, len(release.runs), _LOOKED_UP_AT_ONCE):
            runs = release.runs[start : start + _LOOKED_UP_AT_ONCE]
            owners = self._connection.execute(
                "SELECT text_hash, content_hash FROM runs JOIN entries USING (sequence) "
                f"WHERE hash IN ({', '.join('?' * len(runs))})",
                runs,
            )
            if any(text != release.text_hash and content != release.content_hash for text, content in owners):
                return True
        return False

    def _read_head(self) -> tuple[str, int, bytes]:
        """Id of the ledger, number of its rows and digest of the last one, which must be what the ledger says."""
        ledger_id, rows, digest, check = read_identity(self._connection)
        last = self._connection.execute(
            "SELECT sequence, digest FROM entries ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        if (last or (0, b"")) != (rows, digest) or check != self.key.head_check(ledger_id, rows=rows, digest=digest):
            raise LedgerError(
                "the last row of a ledger must be the one it names, got another; see `rapt ledger verify`, and restore "
                "it from a backup"
            )
        return ledger_id, rows, digest

    def _read_latest(self, release_hash: bytes) -> str | None:
        row = self._connection.execute(
            "SELECT released FROM entries WHERE release_hash = ? ORDER BY sequence DESC LIMIT 1", (release_hash,)
        ).fetchone()
        return None if row is None else str(row[0])

    def _sum_spent(self, kind: str) -> float:
        row = self._connection.execute(
            "SELECT total FROM entries WHERE kind = ? ORDER BY sequence DESC LIMIT 1", (kind,)
        ).fetchone()
        return 0.0 if row is None else float(row[0])

    def _read_caps(self) -> Caps:
        stated = self._read_latest(CAP_HASH)
        return Caps() if stated is None else caps_from_json(stated)

    @contextmanager
    def _open_transaction(self) -> Iterator[None]:
        with self._guard():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        if self._process != os.getpid():
            raise UsageError("a ledger must be used in the process that opened it; open it again in each worker")
        with translate_sqlite_errors():
            yield


@check_arguments
@contextmanager
def open_ledger(path: Path | str, *, key: KeyPlace | None = None) -> Iterator[Ledger]:
    """Open a ledger to release through, made with a fresh key when nothing is there.

    Args:
        path: Path of the ledger.
        key: Place of its key; None for `NAME.key` beside it.

    Raises:
        LedgerError: It is not a ledger, its key is missing or another's, rows are missing, it cannot be written, or
            receipts beside it show that it was emptied or removed.
    """
    with open_for_writing(Path(path), key=key) as (connection, secret):
        yield Ledger(connection, path=Path(path), key=secret, key_place=key)
