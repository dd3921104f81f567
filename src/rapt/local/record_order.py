"""The order of the records in a file: drawn from a key that stays on the trusted side.

The order of a source says when a text was written, or which texts belong together. Whoever has the receipt of a run can
put the records back, as an audit must, which compares them with the source.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from randomgen import ChaCha  # type: ignore[import-untyped]  # it ships no type stubs

from rapt.errors import LedgerError, UsageError
from rapt.local.ledger_place import find_receipt, name_receipt, read_receipt
from rapt.wire.manifest import Randomness
from rapt.wire.privatized_file import PrivatizedFile, read_privatized_file


def make_order_key(randomness: Randomness) -> bytes:
    """Make a fresh key of 32 bytes; under an insecure seed, the one that follows from the seed."""
    if randomness.insecure_seed is None:
        return secrets.token_bytes(32)
    return hashlib.sha256(f"rapt order {randomness.insecure_seed}".encode()).digest()


def draw_order(count: int, *, key: bytes) -> NDArray[np.int64]:
    """Draw a permutation, (count,): the place in the source of each record of the file, every order as likely.

    Numbers of 64 bits from ChaCha20 under the key are sorted, so it is the same wherever it is drawn again.
    """
    numbers = ChaCha(key=int.from_bytes(key, "little"), rounds=20).random_raw(count)
    return np.argsort(np.asarray(numbers, dtype=np.uint64).reshape(count), kind="stable")


def restore_order(file: PrivatizedFile, *, key: bytes) -> PrivatizedFile:
    """Return the records of a file in the order of their source."""
    records = list(file.records)
    for record, place in zip(file.records, draw_order(len(records), key=key).tolist(), strict=True):
        records[place] = record
    return replace(file, records=tuple(records))


def read_in_order_of_source(path: Path, *, receipt: Path | None, ledger: Path | None) -> PrivatizedFile:
    """Read a privatized file with its records in the order of its source, as comparing it with the source needs.

    Args:
        path: Path of the privatized file.
        receipt: Receipt of the run that wrote it; None looks for it.
        ledger: Ledger to look beside; None looks beside those in the folder of the file and above.

    Raises:
        LedgerError: The records were shuffled, and there is no receipt of them, or it cannot be read.
        UsageError: Both a receipt and a ledger are given.
        WireError: The reasons of `read_privatized_file`.
    """
    if receipt is not None and ledger is not None:
        raise UsageError("`receipt` and `ledger` both name the receipt; give one of them")
    file = read_privatized_file(path)
    manifest = file.manifest
    if not manifest.arrangement.shuffled:
        return file
    if manifest.randomness.insecure_seed is not None:
        return restore_order(file, key=make_order_key(manifest.randomness))
    if ledger is not None:
        place: Path | None = name_receipt(ledger, manifest.records_sha256)
    else:
        place = receipt or find_receipt(path, manifest.records_sha256)
    if place is None or not place.is_file():
        where = "in its folder or above" if place is None else "there"
        raise LedgerError(
            "the records of this file were shuffled: the receipt of the run that wrote them must be at hand to compare "
            f"them with their source, got none {where}; name the run's ledger (`ledger`), or the receipt (`receipt`)"
        )
    found = read_receipt(place)
    key = found.get("order_key")
    if found.get("records_sha256") != manifest.records_sha256 or not isinstance(key, str):
        raise LedgerError("the receipt must be that of this file, got another; name the one that its run wrote")
    try:
        return restore_order(file, key=bytes.fromhex(key))
    except ValueError:
        raise LedgerError("the receipt must have the key of the order; name the one that the run wrote") from None
