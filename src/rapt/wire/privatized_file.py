"""Reading the privatized file: a manifest line, then one record a line, as token ids.

Every line is checked, and the counts and the digest of the manifest at the end, so that a file that was cut off or
edited is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from rapt.errors import CorpusError, WireError, record_at
from rapt.wire.manifest import Manifest, manifest_from_json
from rapt.wire.privatized_record import PrivatizedRecord, check_record, privatized_tokens, record_from_json
from rapt.wire.strict_json import parse_document

# A line longer than this is not a record: 512 ids of 6 digits are 4 KB, long-context backbones need 1 MB.
MAX_LINE_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class PrivatizedFile:
    """A manifest and all of its records, in memory."""

    manifest: Manifest
    records: tuple[PrivatizedRecord, ...] = field(repr=False)


def iterate_privatized_lines(lines: Iterable[bytes]) -> Iterator[Manifest | PrivatizedRecord]:
    """The manifest, then every record, in constant memory.

    Counts and digest are known to be right only when the iteration ends without an error.

    Raises:
        WireError: The file is malformed, truncated, edited, or of an unknown version.
    """
    # Mail and version control end lines as their system does; nothing else about the file is other than it was written.
    stream = (line[:-2] + b"\n" if line.endswith(b"\r\n") else line for line in lines)
    first = next(stream, b"")
    if len(first) > MAX_LINE_BYTES:
        raise WireError(f"the manifest must be at most {MAX_LINE_BYTES} bytes, got {len(first)}")
    try:
        described = parse_document(first, what="the first line")
    except WireError:
        raise WireError(
            "the first line must be one JSON object, the manifest; the file is not a privatized one or is damaged: "
            "run `rapt privatize` to make one"
        ) from None
    manifest = manifest_from_json(described)
    yield manifest
    digest, records, tokens = hashlib.sha256(), 0, 0
    for line in stream:
        if len(line) > MAX_LINE_BYTES:
            raise WireError(f"{record_at(records)} must be at most {MAX_LINE_BYTES} bytes, got {len(line)}")
        record = record_from_json(parse_document(line, what=record_at(records)), position=records)
        check_record(record, manifest, position=records)
        yield record
        digest.update(line)
        records += 1
        tokens += privatized_tokens(record, manifest)
    if (records, tokens) != (manifest.records, manifest.tokens):
        raise WireError(
            f"a privatized file must hold what its manifest counts, got {records} of {manifest.records} records; "
            "it was cut off or edited: privatize or upload it again"
        )
    if digest.hexdigest() != manifest.records_sha256:
        raise WireError(
            "a privatized file must match the digest in its manifest; it was edited: take it as it was written, "
            "because to privatize again would spend again"
        )


def bounded_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of at most one byte more than a record may have, so that a file of one endless line fills no memory."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line


def read_privatized_lines(lines: Iterable[bytes]) -> PrivatizedFile:
    """A whole privatized file from its lines, checked. Raises as `iterate_privatized_lines`."""
    items = iterate_privatized_lines(lines)
    manifest = next(items)
    assert isinstance(manifest, Manifest)
    return PrivatizedFile(
        manifest=manifest,
        records=tuple(item for item in items if isinstance(item, PrivatizedRecord)),
    )


def read_privatized_file(path: Path | str) -> PrivatizedFile:
    """A whole privatized file in memory, checked.

    Raises:
        CorpusError: It cannot be opened.
        WireError: It is malformed, truncated, edited, or of an unknown version.
    """
    try:
        with Path(path).open("rb") as stream:
            return read_privatized_lines(bounded_lines(stream))
    except OSError as error:
        raise CorpusError(
            f"a privatized file must be readable, got {error.strerror or type(error).__name__}; check the path"
        ) from None
