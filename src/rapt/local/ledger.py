"""The ledger: what was released of which text, and what it cost, so that nothing is spent twice by mistake.

Every release of a text adds its η to what an observer can learn about it. The ledger makes the second release of a text
free, by answering it with the first one, and stops at a cap.

*Promise.* At any moment, also after a crash, whatever was released through a ledger stands in it. *Why.* A release is
written and synced to disk before its record is handed out, hence before the output file can appear. A crash in between
leaves a row without a file: the budget counts as spent, and the same text is answered from that row later, at no cost.
Two processes cannot spend the same budget, because looking up, checking the cap and appending are one transaction that
holds the only write lock (`BEGIN IMMEDIATE`): the second one finds the first one's release and drops its own draw.

*What it holds.* Keyed hashes of texts, settings, counts, times, and the releases, which are private output. No text.
*What it does not protect.* Equal texts answered by one release look equal in the output; a new draw would hide that,
and cost η again. Whoever holds ledger and key can test guesses of a text.

*Two releases a record.* The text and its label are separate releases. M(x) depends on the text and the mechanism alone,
so it is stored without plain tokens, and serves a file with other plain tokens or other labels at no cost; a randomized
label is stored apart.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rapt.errors import BudgetError, LedgerError, UsageError, name_record
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger_file import (
    CAP_HASH,
    COLUMNS,
    Caps,
    LedgerKey,
    Release,
    caps_from_json,
    caps_to_json,
    compute_first_digest,
    compute_next_digest,
    open_for_writing,
    translate_sqlite_errors,
)
from rapt.local.privatizer import TextPrivatizer
from rapt.local.randomness import RandomStream
from rapt.wire.manifest import RANDOMIZED_RESPONSE, dump_mechanism
from rapt.wire.privatized_file import PrivatizedRecord

# Sums of η in float64: a cap that is met exactly in decimals is not missed by their last bit.
_SLACK: Final = 1 + 1e-12
_INSERT: Final = f"INSERT INTO entries ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


@dataclass(frozen=True)
class _Totals:
    """What was spent up to and with a release: Σ η on its text, Σ η·tokens in all."""

    text: float
    ledger: float


class _Account:
    """Adds releases up, one after the other, within one transaction."""

    def __init__(self, *, ledger: float, spent_on: Callable[[bytes], float]) -> None:
        self._ledger = ledger
        self._spent_on = spent_on
        self._texts: dict[bytes, float] = {}

    def add(self, release: Release) -> _Totals:
        before = self._texts.get(release.text_hash)
        text = (self._spent_on(release.text_hash) if before is None else before) + release.eta
        self._texts[release.text_hash] = text
        self._ledger += release.budget
        return _Totals(text, self._ledger)


class Ledger:
    """An open ledger; `open_ledger` makes one. To be used in the process that opened it."""

    def __init__(self, connection: sqlite3.Connection, *, path: Path, key: LedgerKey) -> None:
        """Take over a connection to a ledger whose key was checked."""
        self._connection = connection
        self.path = path
        self._process = os.getpid()
        self.key = key

    def __repr__(self) -> str:
        """Show the path, and nothing that the ledger holds."""
        return f"Ledger({str(self.path)!r})"

    def find(self, release_hashes: Sequence[bytes]) -> list[str | None]:
        """The latest release under each hash, as JSON, or None where there is none."""
        with self._guarded():
            return [self._latest(release_hash) for release_hash in release_hashes]

    def caps(self) -> Caps:
        """The caps in force."""
        with self._guarded():
            return self._caps()

    def set_caps(self, caps: Caps) -> None:
        """Put other caps in force. The change is a row of the ledger like any other.

        Raises:
            UsageError: A cap is not a finite number above 0.
        """
        for name, value in (("per_text", caps.per_text), ("in_all", caps.in_all)):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"a cap must be a finite number above 0, got {name}={value!r}; leave it out for none")
        row = Release(
            kind="cap",
            setting="{}",
            text_hash=CAP_HASH,
            release_hash=CAP_HASH,
            released=caps_to_json(caps),
            position=0,
        )
        with self._transaction():
            self._append([(row, self._account().add(row))])

    def commit(self, releases: Sequence[Release], *, redraw: bool = False) -> list[str]:
        """Account for releases, all or none; returns what may leave, as JSON, one for each.

        That is the given release where it is new, and the stored one where the ledger has one under the same hash: the
        given one must then be forgotten.

        Args:
            releases: Releases in order; two of one text in one call are one release.
            redraw: Account for each as a new one, whatever is stored.

        Raises:
            BudgetError: One of them would exceed a cap. Nothing of this call was spent, nothing of it may leave.
            LedgerError: The ledger is busy, damaged, or the disk is full. Nothing of this call may leave.
        """
        with self._transaction():
            caps, account = self._caps(), self._account()
            fresh: dict[bytes, str] = {}
            new, answers = [], []
            for release in releases:
                known = None if redraw else fresh.get(release.release_hash) or self._latest(release.release_hash)
                if known is None:
                    totals = account.add(release)
                    _refuse_above(caps.per_text, total=totals.text, asked=release.eta, what="on one text", of=release)
                    _refuse_above(caps.in_all, total=totals.ledger, asked=release.budget, what="in all", of=release)
                    new.append((release, totals))
                    known = fresh[release.release_hash] = release.released
                answers.append(known)
            self._append(new)
        return answers

    def _account(self) -> _Account:
        return _Account(ledger=self._spent(), spent_on=self._spent_on)

    def _append(self, rows: Sequence[tuple[Release, _Totals]]) -> None:
        """Chain rows to the end. The caller holds the lock."""
        ledger_id, last, digest = self._head()
        digest = digest or compute_first_digest(ledger_id)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        written = []
        for sequence, (release, totals) in enumerate(rows, last + 1):
            values = (
                sequence,
                time,
                release.kind,
                release.setting,
                release.tokens,
                float(release.eta),
                float(release.budget),
                float(release.label_epsilon),
                totals.text,
                totals.ledger,
                release.text_hash,
                release.release_hash,
                release.released,
            )
            digest = compute_next_digest(digest, values)
            written.append((*values, digest))
        if written:
            self._connection.executemany(_INSERT, written)
            self._connection.execute("UPDATE ledger SET head_sequence = ?, head_digest = ?", (last + len(rows), digest))

    def _head(self) -> tuple[str, int, bytes]:
        """Id of the ledger, sequence and digest of its last row, which must be what the ledger says they are."""
        ledger_id, sequence, digest = self._connection.execute(
            "SELECT id, head_sequence, head_digest FROM ledger"
        ).fetchone()
        last = self._connection.execute(
            "SELECT sequence, digest FROM entries ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        if (last or (0, b"")) != (sequence, digest):
            raise LedgerError(
                "the last row of a ledger must be the one it names, got another; see `rapt ledger verify`, and restore "
                "it from a backup"
            )
        return ledger_id, sequence, digest

    def _latest(self, release_hash: bytes) -> str | None:
        row = self._connection.execute(
            "SELECT released FROM entries WHERE release_hash = ? ORDER BY sequence DESC LIMIT 1", (release_hash,)
        ).fetchone()
        return None if row is None else str(row[0])

    def _spent(self) -> float:
        row = self._connection.execute("SELECT ledger_total FROM entries ORDER BY sequence DESC LIMIT 1").fetchone()
        return 0.0 if row is None else float(row[0])

    def _spent_on(self, text_hash: bytes) -> float:
        row = self._connection.execute(
            "SELECT text_total FROM entries WHERE text_hash = ? ORDER BY sequence DESC LIMIT 1", (text_hash,)
        ).fetchone()
        return 0.0 if row is None else float(row[0])

    def _caps(self) -> Caps:
        stated = self._latest(CAP_HASH)
        return Caps() if stated is None else caps_from_json(stated)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guarded():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if self._process != os.getpid():
            raise UsageError("a ledger must be used in the process that opened it; open it again in each worker")
        with translate_sqlite_errors():
            yield


@contextmanager
def open_ledger(path: Path | str) -> Iterator[Ledger]:
    """A ledger to release through, made with a fresh key when nothing is there.

    Raises:
        LedgerError: It is not a ledger, its key is missing or another's, or it cannot be written.
    """
    with open_for_writing(Path(path)) as (connection, key):
        yield Ledger(connection, path=Path(path), key=key)


def _refuse_above(cap: float | None, *, total: float, asked: float, what: str, of: Release) -> None:
    if cap is not None and asked > 0 and total > cap * _SLACK:
        raise BudgetError(
            f"{name_record(of.position)} would spend more {what} than the ledger allows, asked={asked:g} "
            f"spent={total - asked:g} limit={cap:g}; release less, or raise the cap with `rapt ledger cap`"
        )


def privatize_through(
    ledger: Ledger,
    privatizer: TextPrivatizer,
    texts: Sequence[str],
    *,
    labels: Sequence[int] | None,
    response: RandomizedResponse | None,
    stream: RandomStream,
    first_position: int = 0,
    redraw: bool = False,
) -> list[PrivatizedRecord]:
    """One record for each text, every one of them accounted for when this returns.

    Args:
        ledger: Open ledger.
        privatizer: The setting.
        texts: Texts in clear; the ledger keeps a keyed hash of each.
        labels: Index of each text's true label, or None where no labels are sent.
        response: Randomizes labels; None sends them in clear, which the ledger does not count.
        stream: Source of labels, plain tokens and noise.
        first_position: Position of the first text in its file, for messages.
        redraw: Draw and pay anew for every record.

    Raises:
        BudgetError: A record would exceed a cap; none of these texts was released.
        LedgerError: The ledger is busy or damaged.
        CorpusError: The reasons of `Privatizer.privatize`.
        UsageError: The reasons of `Privatizer.privatize`.
    """
    setting = write_text_setting(privatizer, stream)
    hashes = [ledger.key.release_hash(text, setting=setting) for text in texts]
    found: list[str | None] = [None] * len(texts) if redraw else ledger.find(hashes)
    records = privatizer.privatize(
        texts,
        labels=labels,
        stream=stream,
        first_position=first_position,
        known=[None if stored is None else _ids(stored) for stored in found],
    )
    owners = [ledger.key.text_hash(text) for text in texts]
    eta = privatizer.mechanism.setting.eta
    releases = [
        Release(
            kind="text",
            setting=setting,
            text_hash=owner,
            release_hash=release_hash,
            released=json.dumps({"token_ids": record.token_ids}, separators=(",", ":")),
            position=position,
            tokens=len(record.token_ids),
            eta=eta,
        )
        for position, (record, owner, release_hash, stored) in enumerate(
            zip(records, owners, hashes, found, strict=True), first_position
        )
        if stored is None
    ]
    new = len(releases)
    if labels is not None and response is not None:
        drawn = response.randomize(labels, rng=stream.generator)
        releases += _label_releases(
            ledger, texts, labels, drawn, owners=owners, response=response, stream=stream, first_position=first_position
        )
    answers = ledger.commit(releases, redraw=redraw) if releases else []
    ids = iter(answers[:new])
    records = [
        record if stored is not None else replace(record, token_ids=_ids(next(ids)))
        for record, stored in zip(records, found, strict=True)
    ]
    if response is None or labels is None:
        return records
    return [replace(record, label=_label(answer)) for record, answer in zip(records, answers[new:], strict=True)]


def find_stored_token_ids(
    ledger: Ledger, privatizer: TextPrivatizer, texts: Sequence[str], *, stream: RandomStream
) -> list[tuple[int, ...] | None]:
    """M(x) of each text as it was last released with this setting, None where it never was; raises `LedgerError`."""
    setting = write_text_setting(privatizer, stream)
    found = ledger.find([ledger.key.release_hash(text, setting=setting) for text in texts])
    return [None if stored is None else _ids(stored) for stored in found]


def write_text_setting(privatizer: TextPrivatizer, stream: RandomStream) -> str:
    """All that M(x) depends on beside the text, as canonical JSON.

    A release drawn from a seed protects nothing, so it never answers for a secure one: the seed is part of the setting.
    """
    return _canonical(
        {
            "mechanism": dump_mechanism(privatizer.mechanism.setting),
            "vocabulary_hash": privatizer.vocabulary_hash,
            "truncate_to": privatizer.truncate_to,
            "insecure_seed": stream.provenance.insecure_seed,
        }
    )


def _label_releases(
    ledger: Ledger,
    texts: Sequence[str],
    labels: Sequence[int],
    drawn: Sequence[int],
    *,
    owners: Sequence[bytes],
    response: RandomizedResponse,
    stream: RandomStream,
    first_position: int,
) -> list[Release]:
    stated = {
        "mechanism": RANDOMIZED_RESPONSE,
        "epsilon": response.epsilon,
        "classes": response.classes,
        "insecure_seed": stream.provenance.insecure_seed,
    }
    setting = _canonical(stated)
    # The true label is part of the input, hence of the keyed hash, and of nothing that is written down.
    inputs = [_canonical(stated | {"label": label}) for label in range(response.classes)]
    return [
        Release(
            kind="label",
            setting=setting,
            text_hash=owner,
            release_hash=ledger.key.release_hash(text, setting=inputs[label]),
            released=json.dumps({"label": released}, separators=(",", ":")),
            position=position,
            label_epsilon=response.epsilon,
        )
        for position, (text, owner, label, released) in enumerate(
            zip(texts, owners, labels, drawn, strict=True), first_position
        )
    ]


def _canonical(value: dict[str, object]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _ids(stored: str) -> tuple[int, ...]:
    ids = _parse(stored).get("token_ids")
    if not isinstance(ids, list) or not all(type(item) is int and item >= 0 for item in ids):
        raise LedgerError("a stored release must be token ids, got a damaged row; see `rapt ledger verify`")
    return tuple(ids)


def _label(stored: str) -> int:
    label = _parse(stored).get("label")
    if type(label) is not int:
        raise LedgerError("a stored label must be a number, got a damaged row; see `rapt ledger verify`")
    return label


def _parse(stored: str) -> dict[str, object]:
    try:
        value = json.loads(stored)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}
