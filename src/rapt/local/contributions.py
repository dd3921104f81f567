"""Contributions to a pool: privatized records sent one by one, each with a receipt that only its contributor knows.

The receipts are written beside the privatized file before anything is sent. So a run that was cut off goes on where it
was, nothing is given twice, and everything that was given can be taken back until the pool is closed.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rapt.arguments import check_arguments
from rapt.errors import CorpusError, NotFoundError, UsageError, WireError
from rapt.local.client import ServiceClient
from rapt.local.client.pool_steps import check_pool_setting
from rapt.narration import SILENT, Narrator
from rapt.whole_files import write_whole
from rapt.wire.manifest import digest_setting
from rapt.wire.packed_contributions import RECEIPT_BYTES
from rapt.wire.privatized_file import PrivatizedFile, read_privatized_file
from rapt.wire.strict_json import check_fields, parse_document, read_field, read_name

SCHEMA: Final = "rapt.contributions/1"
_DIGITS: Final = 2 * RECEIPT_BYTES
_EARLIER_DIGITS: Final = 64
_AT_ONCE: Final = 250  # contributions of one request
_MOST_BYTES: Final = 128 * 2**20


@dataclass(frozen=True, kw_only=True)
class Receipts:
    """Receipts that take contributions back; only their holder can do so.

    Attributes:
        pool: Id of the pool.
        records_sha256: Digest of the records that they are of.
        receipts: 24 hexadecimal digits for each record, in order; 64 in files of earlier versions.
    """

    pool: str
    records_sha256: str
    receipts: tuple[str, ...] = field(repr=False)


def name_receipts(file: Path) -> Path:
    """Return where the receipts of a privatized file lie: `FILE.contributions.json`."""
    return file.with_name(file.name + ".contributions.json")


@check_arguments
def contribute_file(file: Path, client: ServiceClient, *, pool: str, narrator: Narrator = SILENT) -> int:
    """Give the records of a privatized file to a pool, and return their number.

    Args:
        file: Privatized as the pool asks; receipts are kept beside it.
        client: Connection to the service, with the key of a contributor.
        pool: Id of the pool.
        narrator: Receiver of progress.

    Raises:
        CorpusError: The file cannot be read, or the receipts cannot be written: then nothing was sent.
        WireError: The file, or the receipts beside it, are malformed.
        UsageError: The file has another setting than the pool, was made from a seed, or was given to another pool.
        ServiceError: The service refused, or could not be reached; the same call goes on.
    """
    records = read_privatized_file(file)
    if records.manifest.randomness.insecure_seed is not None:
        raise UsageError("a contribution must not come from a seed, which protects nothing; privatize again")
    asked, setting = client.pool(pool), digest_setting(records.manifest)
    check_pool_setting(asked, setting)
    kept = _find_receipts(file, records, pool=asked.id)
    with narrator.meter("contributing", total=len(records.records), unit="texts") as show_progress:
        for first in range(0, len(records.records), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            client.contribute(asked, records.records[part], setting=setting, receipts=kept.receipts[part])
            show_progress(min(first + _AT_ONCE, len(records.records)))
    return len(records.records)


@check_arguments
def take_file_back(file: Path, client: ServiceClient, *, pool: str, narrator: Narrator = SILENT) -> int:
    """Take back what was given of a privatized file, and return how many contributions that were.

    Raises:
        CorpusError: There are no receipts beside the file.
        WireError: They are malformed.
        UsageError: They are of another pool.
        ServiceError: The pool is closed, or the service could not be reached.
    """
    place = name_receipts(file)
    kept = read_receipts(place)
    if kept.pool != pool:
        raise UsageError("the receipts beside the file must be of the pool, got those of another; name that one")
    taken = 0
    with narrator.meter("taking back", total=len(kept.receipts), unit="texts") as show_progress:
        for done, receipt in enumerate(kept.receipts, 1):
            with suppress(NotFoundError):  # it never came, or was taken back before
                client.take_back(kept.pool, receipt=receipt)
                taken += 1
            show_progress(done)
    place.unlink(missing_ok=True)
    return taken


def read_receipts(path: Path) -> Receipts:
    """Read receipts. Raises `CorpusError` or `WireError`."""
    what = f"the receipts in {path.name[:80]!r}"
    try:
        with path.open("rb") as stream:
            found = parse_document(stream.read(_MOST_BYTES), what=what)
    except OSError as error:
        raise CorpusError(
            f"the receipts of a contribution must lie beside its file as {path.name[:80]!r}, got "
            f"{error.strerror or type(error).__name__}"
        ) from None
    check_fields(found, required={"schema", "pool", "records_sha256", "receipts"}, optional=set(), what=what)
    receipts = read_field(found, "receipts", list, what=what)
    if found["schema"] != SCHEMA or not all(
        type(item) is str and len(item) in (_DIGITS, _EARLIER_DIGITS) for item in receipts
    ):
        raise WireError(f"{what} must be of schema {SCHEMA!r}, {_DIGITS} digits each; take the file as it was written")
    return Receipts(
        pool=read_name(found, "pool", what=what),
        records_sha256=read_name(found, "records_sha256", what=what),
        receipts=tuple(receipts),
    )


def _find_receipts(file: Path, records: PrivatizedFile, *, pool: str) -> Receipts:
    """The receipts beside a file, made and written now where there are none."""
    place = name_receipts(file)
    if place.exists():
        kept = read_receipts(place)
        if (kept.pool, kept.records_sha256) != (pool, records.manifest.records_sha256):
            raise UsageError(
                "a privatized file must be given to one pool, got receipts of another pool or file beside it; take "
                "that back first, or move the receipts away"
            )
        return kept
    made = Receipts(
        pool=pool,
        records_sha256=records.manifest.records_sha256,
        receipts=tuple(secrets.token_hex(_DIGITS // 2) for _ in records.records),
    )
    content = {"schema": SCHEMA, **vars(made), "receipts": list(made.receipts)}
    try:
        write_whole(place, json.dumps(content) + "\n", overwrite=False, private=True)
    except OSError as error:
        raise CorpusError(
            f"receipts must be written before anything is sent, got {error.strerror or type(error).__name__}; free "
            "space, or choose another folder for the file"
        ) from None
    return made
