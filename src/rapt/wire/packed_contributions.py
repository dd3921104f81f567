"""Contributions of codes as bytes: a receipt of 12, and as many of a record as its codewords and its label need.

A body is the digest of the setting, 32 bytes, and one contribution after the other, all of one length: the receipt,
each codeword's id in one byte or two, as the codebook's size asks, and the label in none, one or two. A code of one
codeword with one of 256 labels takes 14 or 15 bytes, with one of 1,000 16. All numbers are little-endian.

*Receipts.* 96 random bits: whoever guesses a million times a second for a year takes back one of a million
contributions with a probability below 10^-9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rapt.errors import UsageError, WireError
from rapt.wire.manifest import Manifest, count_codes
from rapt.wire.privatized_file import PrivatizedRecord

RECEIPT_BYTES: Final = 12
_SETTING_BYTES: Final = 32
_A_BYTE: Final = 256
MOST_AT_ONCE: Final = 1_000


def measure_contribution(manifest: Manifest) -> int:
    """Return how many bytes a contribution to a pool of codes has.

    Raises:
        UsageError: Records are of tokens, whose number differs from text to text.
    """
    label, ids = _measure_record(manifest)
    return RECEIPT_BYTES + label + ids * _measure_id(manifest)


def pack_contributions(
    records: Sequence[PrivatizedRecord], receipts: Sequence[str], *, manifest: Manifest, setting: str
) -> bytes:
    """Return the body of a request that gives records to a pool.

    Args:
        records: Records, privatized by the manifest.
        receipts: 24 hexadecimal digits for each.
        manifest: Manifest of the pool.
        setting: Hex digest of it.

    Raises:
        UsageError: Records are of tokens.
    """
    label_bytes, each = _measure_record(manifest)[0], _measure_id(manifest)
    parts = [bytes.fromhex(setting)]
    for record, receipt in zip(records, receipts, strict=True):
        parts.append(bytes.fromhex(receipt))
        parts += [one.to_bytes(each, "little") for one in (*record.token_ids, *(record.second_token_ids or ()))]
        parts.append((record.label or 0).to_bytes(label_bytes, "little"))
    return b"".join(parts)


def unpack_contributions(body: bytes, *, manifest: Manifest) -> tuple[str, list[tuple[str, PrivatizedRecord]]]:
    """Return the digest of the setting, and each contribution's receipt and record, not yet checked against a code.

    Raises:
        UsageError: Records are of tokens, or there are too many at once.
        WireError: The body is cut.
    """
    size, each = measure_contribution(manifest), _measure_id(manifest)
    label_bytes, ids = _measure_record(manifest)
    count, rest = divmod(len(body) - _SETTING_BYTES, size)
    if count < 1 or rest:
        raise WireError(f"contributions must be {_SETTING_BYTES} bytes and {size} for each, got {len(body)}")
    if count > MOST_AT_ONCE:
        raise UsageError(f"a request must have at most {MOST_AT_ONCE} contributions, got {count}; send several")
    found = []
    for start in range(_SETTING_BYTES, len(body), size):
        one = body[start : start + size]
        numbers = tuple(
            int.from_bytes(one[place : place + each], "little")
            for place in range(RECEIPT_BYTES, size - label_bytes, each)
        )
        half = ids // 2 if manifest.pairs else ids
        record = PrivatizedRecord(
            token_ids=numbers[:half],
            second_token_ids=numbers[half:] if manifest.pairs else None,
            label=None if manifest.labels is None else int.from_bytes(one[size - label_bytes :], "little"),
        )
        found.append((one[:RECEIPT_BYTES].hex(), record))
    return body[:_SETTING_BYTES].hex(), found


def _measure_record(manifest: Manifest) -> tuple[int, int]:
    """Return the bytes of a label, and the number of ids."""
    if manifest.unit != "text":
        raise UsageError("contributions of tokens must be JSON, because texts have different numbers of them")
    names = 0 if manifest.labels is None else len(manifest.labels)
    return (names > 1) + (names > _A_BYTE), count_codes(manifest) * (2 if manifest.pairs else 1)


def _measure_id(manifest: Manifest) -> int:
    return 1 + (int(manifest.mechanism.parameters["codewords"]) > _A_BYTE)
