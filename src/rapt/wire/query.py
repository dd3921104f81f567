"""A query: some records and a manifest that counts exactly those, as one JSON value in place of a file.

The digest is over the lines that the records would be in a privatized file written here, so a whole file is a valid
query as it stands, and any part of one is after `seal`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rapt.errors import WireError
from rapt.wire.manifest import Manifest, manifest_from_json, manifest_to_json
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import PrivatizedRecord, record_from_json
from rapt.wire.privatized_writer import PrivatizedFileWriter
from rapt.wire.strict_json import parse_document


def without_labels(file: PrivatizedFile) -> PrivatizedFile:
    """The same texts with no label and no target: a prediction needs none, so none is sent."""
    manifest = replace(file.manifest, labels=None, label_privacy=None, targets=None)
    records = tuple(replace(record, label=None, target_ids=None) for record in file.records)
    return PrivatizedFile(manifest=seal(manifest, records), records=records)


def seal(manifest: Manifest, records: Sequence[PrivatizedRecord]) -> Manifest:
    """The manifest with the counts and the digest of these records.

    Raises:
        WireError: A record contradicts the manifest.
    """
    writer = PrivatizedFileWriter(io.BytesIO(), manifest)
    for record in records:
        writer.write(record)
    return writer.finish()


def query_to_json(file: PrivatizedFile) -> dict[str, Any]:
    """A manifest and its records as plain JSON values."""
    stream = io.BytesIO()
    writer = PrivatizedFileWriter(stream, file.manifest)
    for record in file.records:
        writer.write(record)
    manifest = writer.finish()
    lines = stream.getvalue().splitlines()[1:]
    return {
        "manifest": manifest_to_json(manifest),
        "records": [parse_document(line, what="a record") for line in lines],
    }


def query_from_json(manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> PrivatizedFile:
    """The query in two JSON values, checked as a file is.

    Raises:
        WireError: Something is malformed, of an unknown version, or not what the manifest counts.
        MechanismError: eta is not a finite number above 0.
    """
    stated = manifest_from_json(manifest)
    parsed = tuple(record_from_json(dict(record), position=position) for position, record in enumerate(records))
    counted = seal(stated, parsed)
    if (counted.records, counted.tokens) != (stated.records, stated.tokens):
        raise WireError(
            f"a query must hold what its manifest counts, got {counted.records} of {stated.records} records and "
            f"{counted.tokens} of {stated.tokens} tokens; count the records that are sent"
        )
    if counted.records_sha256 != stated.records_sha256:
        raise WireError("a query must match the digest in its manifest; take the digest of the records that are sent")
    return PrivatizedFile(manifest=stated, records=parsed)
