"""Where a ledger lies, and the files that belong to it.

A ledger is a project's, found like `.git`: the nearest `.rapt/ledger.sqlite` in the folder of the output or above. One
that lies in a home folder counts for all that is written below. Beside it lie its key, unless another place is chosen,
and a receipt for each file that was made: which records, what they cost, and the head of the ledger at that moment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rapt.errors import LedgerError, UsageError, WireError
from rapt.local.ledger_key import KeyPlace, check_keyring
from rapt.whole_files import DATABASE_SUFFIXES, write_whole
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_writer import name_partial
from rapt.wire.strict_json import parse_document

FOLDER: Final = ".rapt"
DEFAULT_NAME: Final = "ledger.sqlite"
# Suffix of the folder, beside a ledger, that holds a receipt for each file that was made with it.
RECEIPTS: Final = ".receipts"


def find_ledger(beside: Path) -> Path:
    """Find the ledger of a project: the nearest `.rapt/ledger.sqlite` in the folder of a file or above, like `.git`.

    Where there is none, return the place beside the file, at which one can be made.

    Args:
        beside: File, which may be missing.

    Raises:
        LedgerError: The file that is found belongs to another user, who would learn what is released.
    """
    folder = beside.resolve().parent
    for place in (folder, *folder.parents):
        found = place / FOLDER / DEFAULT_NAME
        try:
            if not found.is_file():
                continue
            own = _is_own(found)
        except OSError:  # a folder above that must not be looked into
            continue
        if not own:
            raise LedgerError(
                f"a ledger that is found must be your own, got another user's at {str(found)!r}; name yours with "
                "`ledger`, or say `ledger=None`"
            )
        return found
    return folder / FOLDER / DEFAULT_NAME


def _is_own(path: Path) -> bool:
    """Whether a file and its folder belong to who runs this."""
    return not hasattr(os, "geteuid") or {found.stat().st_uid for found in (path, path.parent)} == {os.geteuid()}


def make_folder(ledger: Path) -> None:
    """Make the folder of a project's ledger, for its owner alone, and closed to version control.

    Raises:
        LedgerError: It cannot be written.
    """
    folder = ledger.parent
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700)
            (folder / ".gitignore").write_text("*\n", encoding="ascii")
    except OSError as error:
        raise LedgerError(
            f"a ledger must be writable, got {error.strerror}; name another place with `ledger`, or say `ledger=None`"
        ) from None


def refuse_ledger_files(target: Path, source: Path, *, ledger: Path, key: KeyPlace | None = None) -> None:
    """Refuse an output or a source that is a ledger, its key, or a file that belongs to either, by any name.

    Raises:
        UsageError: The output, the name under which it is written until it is whole, or the source is one of them.
    """
    own = [ledger.with_name(ledger.name + suffix) for suffix in (*DATABASE_SUFFIXES, RECEIPTS)]
    for used in (target, name_partial(target), source):
        for path in [*own, key] if isinstance(key, Path) else own:
            if used.resolve() == path.resolve() or (used.exists() and path.exists() and used.samefile(path)):
                raise UsageError(
                    "the output and the source must be other files than the ledger and its key; choose another name"
                )


def refuse_place(ledger: Path, *, key: KeyPlace | None) -> None:
    """Refuse a ledger that is a folder or its own key, and a keyring that keeps no secrets; nothing is made.

    Args:
        ledger: Path of the ledger, which may be missing.
        key: Place of its key, which may be missing; None for beside it.

    Raises:
        LedgerError: The ledger is a folder, the key is the same file, or this machine has no keyring.
    """
    if ledger.is_dir():
        raise LedgerError(f"a ledger must be a file, got the folder {str(ledger)!r}; name a file in it")
    if isinstance(key, Path) and (
        ledger.resolve() == key.resolve() or (ledger.exists() and key.exists() and ledger.samefile(key))
    ):
        raise LedgerError(
            f"a ledger and its key must be two files, got {str(key)!r} for both; name another file with `key`"
        )
    if key is not None and not isinstance(key, Path):
        check_keyring()


def refuse_receipts(ledger: Path) -> None:
    """Refuse to begin a ledger beside the receipts of an older one: what that one counted would be forgotten.

    Raises:
        LedgerError: A receipt lies there.
    """
    folder = ledger.with_name(ledger.name + RECEIPTS)
    if folder.is_dir() and any(folder.glob("*.json")):
        raise LedgerError(
            f"a new ledger must have no receipts beside it, got some in {str(folder)!r}: the ledger was emptied or "
            "removed; restore it from a backup, or move the receipts away to begin anew"
        )


SCHEMA: Final = "rapt.receipt/1"
_MOST_BYTES: Final = 64 * 1024
_MOST_RECEIPTS: Final = 100_000


def name_receipt(ledger: Path, records_sha256: str) -> Path:
    """Return the place of the receipt of a file with these records."""
    return ledger.with_name(ledger.name + RECEIPTS) / f"{records_sha256}.json"


def find_receipt(beside: Path, records_sha256: str) -> Path | None:
    """Find the receipt of a file, beside any ledger in the folder of the file or above; None where there is none.

    A receipt has the name of the records that it is of, so it is the same whichever ledger it lies beside. One that
    belongs to another user is passed over: it would give the records another order.

    Args:
        beside: File that the receipt may lie beside.
        records_sha256: Digest of its records.
    """
    folder = beside.resolve().parent
    for place in (folder, *folder.parents):
        try:
            with os.scandir(place) as entries:
                names = sorted(entry.name for entry in islice(entries, _MOST_RECEIPTS) if entry.name.endswith(RECEIPTS))
        except OSError:  # a folder above that must not be looked into
            names = []
        for ledger in (place / FOLDER / DEFAULT_NAME, *(place / name.removesuffix(RECEIPTS) for name in names)):
            found = name_receipt(ledger, records_sha256)
            try:
                if found.is_file() and _is_own(found):
                    return found
            except OSError:
                continue
    return None


def describe_run(
    manifest: Manifest,
    *,
    order_key: bytes | None,
    unchanged: Mapping[str, float] | None,
    counted: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Describe a run for its receipt.

    Args:
        manifest: Manifest of the whole file.
        order_key: Key of the order of its records; None where they stand in that of their source.
        unchanged: Shares of tokens that stay as they are; None of whole texts.
        counted: Releases that the ledger counted; None without one.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "records_sha256": manifest.records_sha256,
        "records": manifest.records,
        "tokens": manifest.tokens,
        "order_key": None if order_key is None else order_key.hex(),
        "unchanged": unchanged,
        **(counted or {}),
    }


def write_receipt(path: Path, receipt: Mapping[str, Any]) -> None:
    """Write what a run did, for its owner only; the folder is made where it is missing.

    Raises:
        LedgerError: It cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(path, json.dumps({"schema": SCHEMA} | dict(receipt), indent=1) + "\n", private=True)
    except OSError as error:
        raise LedgerError(
            f"the receipt of a run must be writable, got {error.strerror or type(error).__name__}; choose another place"
        ) from None


def read_receipt(path: Path) -> dict[str, Any]:
    """Read a receipt, as its writer gave it.

    Raises:
        LedgerError: It cannot be read, or is none.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise WireError("too long")
        receipt = parse_document(content, what="the receipt")
    except (OSError, WireError):
        receipt = {}
    if receipt.get("schema") != SCHEMA:
        raise LedgerError(f"a receipt must be a file of schema {SCHEMA!r}; name the one that the run wrote")
    return receipt


def read_noted_heads(ledger: Path) -> list[str]:
    """Read the heads in all receipts beside a ledger, hex.

    Raises:
        LedgerError: There are too many, or one cannot be read.
    """
    folder = ledger.with_name(ledger.name + RECEIPTS)
    paths = sorted(islice(folder.glob("*.json"), _MOST_RECEIPTS + 1)) if folder.is_dir() else []
    if len(paths) > _MOST_RECEIPTS:
        raise LedgerError(f"a ledger must have at most {_MOST_RECEIPTS} receipts, got more; move older ones away")
    heads = (read_receipt(path).get("head") for path in paths)
    return [head for head in heads if isinstance(head, str) and head]
