"""The order of the records in a file: drawn from a key that stays on the trusted side.

The order of a source says when a text was written, or which texts belong together. Whoever has the receipt of a run can
put the records back, as an audit must, which compares them with the source.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from randomgen import ChaCha  # type: ignore[import-untyped]  # it ships no type stubs

from rapt.wire.manifest import Randomness
from rapt.wire.privatized_file import PrivatizedFile


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
