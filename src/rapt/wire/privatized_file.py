"""Privatized records, and the two forms they are read from: a file of lines, and a query in one JSON value.

A file is a manifest line, then one record a line, as token ids: ids and not words, because decoding and tokenizing
again changes ids. A query is a manifest with some records in one JSON value. The manifest counts the records and has
the digest of their lines, so that a file that was cut off or edited is refused. A whole file is a valid query as it
stands, and any part of one is after `seal_manifest`. `privatized_writer` writes the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from pathlib import Path
from typing import IO, Any, Final, Literal

from rapt.arguments import check_arguments
from rapt.errors import CorpusError, WireError, name_record
from rapt.narration import write_count
from rapt.wire.manifest import Manifest, count_codes, dump_manifest, parse_manifest
from rapt.wire.strict_json import check_fields, dump_line, parse_document, read_field, read_ids

# A text of a record that may have gone through the mechanism.
PrivatizedPart = Literal["first", "second", "target"]


@dataclass(frozen=True, kw_only=True, repr=False)
class PrivatizedRecord:
    """One privatized text: z = M([k; x]) of RAPT, Eq. 5, kept as its two parts.

    Attributes:
        token_ids: M(x), one id for each content token of the text, in order; in a file of codes, ids of codewords, as
            many for every text.
        label: Index into the manifest's labels, in clear; None without a label.
        privatized_plain_tokens: M(k), as many as the manifest's plain tokens.
        plain_tokens: k, when each record has its own; None when the manifest holds one for all, or there are none.
        second_token_ids: M(x2) of the second text of a pair; None in a file of single texts.
        target_ids: The text that is to be generated: M(t), or t itself when the manifest declares targets public.
    """

    token_ids: tuple[int, ...]
    label: int | None = None
    privatized_plain_tokens: tuple[int, ...] = ()
    plain_tokens: tuple[int, ...] | None = None
    second_token_ids: tuple[int, ...] | None = None
    target_ids: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        """Say how long the record is, and nothing that it holds."""
        label = "no label" if self.label is None else "a label"
        return f"PrivatizedRecord({write_count(len(self.token_ids), 'token')}, {label})"


@dataclass(frozen=True, kw_only=True)
class RecordLines:
    """Records as they stand in a file, with what its manifest will count.

    Attributes:
        lines: One line of ASCII JSON for each record.
        records: Number of the records.
        tokens: Number of their tokens that went through the mechanism; see `count_privatized_tokens`.
    """

    lines: bytes
    records: int
    tokens: int


def write_record_lines(records: Sequence[PrivatizedRecord], manifest: Manifest, *, first_position: int) -> RecordLines:
    """Return the lines of these records, each checked against the manifest.

    Args:
        records: Records in the order in which they stand in the file.
        manifest: Manifest of the file that the records belong to.
        first_position: Position of the first record in the file, for messages.

    Raises:
        WireError: A record contradicts the manifest.
    """
    for position, record in enumerate(records, first_position):
        check_record(record, manifest, position=position)
    return RecordLines(
        lines="".join(f"{dump_line(dump_record(record))}\n" for record in records).encode("ascii"),
        records=len(records),
        tokens=sum(count_privatized_tokens(record, manifest) for record in records),
    )


def count_privatized_tokens(record: PrivatizedRecord, manifest: Manifest) -> int:
    """Count the tokens of a record's texts that went through the mechanism, without plain tokens."""
    targets = len(record.target_ids or ()) if manifest.targets == "privatized" else 0
    return len(record.token_ids) + len(record.second_token_ids or ()) + targets


def list_privatized_parts(manifest: Manifest) -> tuple[PrivatizedPart, ...]:
    """List which texts of each record of a file went through the mechanism: all but public targets."""
    second: tuple[PrivatizedPart, ...] = ("second",) if manifest.pairs else ()
    target: tuple[PrivatizedPart, ...] = ("target",) if manifest.targets == "privatized" else ()
    return ("first", *second, *target)


def list_privatized_texts(record: PrivatizedRecord, manifest: Manifest) -> tuple[tuple[int, ...], ...]:
    """List the texts of a record that went through the mechanism, in the order of `list_privatized_parts`."""
    texts: dict[PrivatizedPart, tuple[int, ...] | None] = {
        "first": record.token_ids,
        "second": record.second_token_ids,
        "target": record.target_ids,
    }
    return tuple(texts[part] or () for part in list_privatized_parts(manifest))


def check_record(record: PrivatizedRecord, manifest: Manifest, *, position: int) -> None:
    """Refuse a record that contradicts its manifest: labels out of range, plain tokens missing or unexpected."""
    plain = manifest.plain_tokens
    what = name_record(position)
    if manifest.labels is None and record.label is not None:
        raise WireError(f"{what} must have no label, because the manifest names none")
    if manifest.labels is not None and (record.label is None or not 0 <= record.label < len(manifest.labels)):
        raise WireError(f"{what} must have a label from 0 to {len(manifest.labels) - 1}, as the manifest names them")
    if len(record.privatized_plain_tokens) != plain.count:
        raise WireError(
            f"{what} must have {plain.count} privatized plain tokens, got {len(record.privatized_plain_tokens)}"
        )
    fresh = plain.count > 0 and plain.fixed is None
    if fresh and (record.plain_tokens is None or len(record.plain_tokens) != plain.count):
        raise WireError(f"{what} must have {plain.count} plain tokens of its own, because the manifest fixes none")
    if fresh and not plain.pool_set.issuperset(record.plain_tokens or ()):
        raise WireError(f"{what} must have plain tokens of the manifest's pool")
    if not fresh and record.plain_tokens is not None:
        raise WireError(f"{what} must have no plain tokens of its own, because the manifest fixes them")
    if (record.second_token_ids is not None) != manifest.pairs:
        wanted = "a" if manifest.pairs else "no"
        raise WireError(f"{what} must have {wanted} second text, as the manifest says")
    if (record.target_ids is not None) != (manifest.targets is not None):
        wanted = "no" if manifest.targets is None else "a"
        raise WireError(f"{what} must have {wanted} target, as the manifest says")
    if manifest.unit == "text":
        codes, size = count_codes(manifest), manifest.mechanism.parameters["codewords"]
        for ids in (record.token_ids, *(() if record.second_token_ids is None else (record.second_token_ids,))):
            if len(ids) != codes or not all(0 <= code < int(size) for code in ids):
                raise WireError(f"{what} must have {codes} codes below {size} for each text, as the manifest says")


def parse_record(value: dict[str, Any], *, position: int) -> PrivatizedRecord:
    """Return the record in a JSON object. Raises `WireError` for a missing, unknown or mistyped field."""
    what = name_record(position)
    check_fields(
        value,
        required={"token_ids"},
        optional={"label", "privatized_plain_tokens", "plain_tokens", "second_token_ids", "target_ids"},
        what=what,
    )
    return PrivatizedRecord(
        token_ids=read_ids(value, "token_ids", what=what),
        label=read_field(value, "label", int, what=what) if value.get("label") is not None else None,
        privatized_plain_tokens=(
            read_ids(value, "privatized_plain_tokens", what=what) if "privatized_plain_tokens" in value else ()
        ),
        plain_tokens=read_ids(value, "plain_tokens", what=what) if "plain_tokens" in value else None,
        second_token_ids=read_ids(value, "second_token_ids", what=what) if "second_token_ids" in value else None,
        target_ids=read_ids(value, "target_ids", what=what) if "target_ids" in value else None,
    )


def dump_record(record: PrivatizedRecord) -> dict[str, Any]:
    """Return a record as plain JSON values."""
    value: dict[str, Any] = {"token_ids": record.token_ids}
    if record.label is not None:
        value["label"] = record.label
    if record.privatized_plain_tokens:
        value["privatized_plain_tokens"] = record.privatized_plain_tokens
    if record.plain_tokens is not None:
        value["plain_tokens"] = record.plain_tokens
    if record.second_token_ids is not None:
        value["second_token_ids"] = record.second_token_ids
    if record.target_ids is not None:
        value["target_ids"] = record.target_ids
    return value


# A line longer than this is not a record: 512 ids of 6 digits are 4 KB, long-context backbones need 1 MB.
MAX_LINE_BYTES: Final = 8 * 1024 * 1024
# Different lines of codes that are read once: of one codeword a text, all that a file has. A million texts then share
# some thousand records, and a file of them takes 8 bytes a text in memory.
_MOST_KNOWN: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class PrivatizedFile:
    """A manifest and all of its records, in memory."""

    manifest: Manifest
    records: tuple[PrivatizedRecord, ...] = field_of(repr=False)


def iterate_privatized_lines(lines: Iterable[bytes]) -> Iterator[Manifest | PrivatizedRecord]:
    """Yield the manifest, then every record, in constant memory; of codes, equal lines as one record.

    Counts and digest are known to be right only when the iteration ends without an error.

    Raises:
        WireError: The file is malformed, truncated, edited, or of an unknown version.
    """
    # Mail and version control change the ends of lines; nothing else may differ.
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
    manifest = parse_manifest(described)
    yield manifest
    digest, records, tokens = hashlib.sha256(), 0, 0
    known: dict[bytes, PrivatizedRecord] = {}
    for line in stream:
        if len(line) > MAX_LINE_BYTES:
            raise WireError(f"{name_record(records)} must be at most {MAX_LINE_BYTES} bytes, got {len(line)}")
        record = known.get(line)
        if record is None:
            record = parse_record(parse_document(line, what=name_record(records)), position=records)
            check_record(record, manifest, position=records)
            if manifest.unit == "text" and len(known) < _MOST_KNOWN:
                known[line] = record
        yield record
        digest.update(line)
        records += 1
        tokens += count_privatized_tokens(record, manifest)
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


def read_bounded_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield lines of at most one byte more than a record may have, so that one endless line fills no memory."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line


def read_privatized_lines(lines: Iterable[bytes]) -> PrivatizedFile:
    """Read a whole privatized file from its lines, and check it. Raises as `iterate_privatized_lines`."""
    items = iterate_privatized_lines(lines)
    manifest = next(items)
    assert isinstance(manifest, Manifest)
    return PrivatizedFile(
        manifest=manifest,
        records=tuple(item for item in items if isinstance(item, PrivatizedRecord)),
    )


@check_arguments
def read_privatized_file(path: Path | str) -> PrivatizedFile:
    """Read a whole privatized file into memory, and check it.

    Raises:
        CorpusError: It cannot be opened.
        WireError: It is malformed, truncated, edited, or of an unknown version.
    """
    with _open(path) as lines:
        return read_privatized_lines(lines)


def read_manifest(path: Path | str) -> Manifest:
    """Read the manifest of a privatized file; the records behind it are not read.

    Raises:
        CorpusError: The file cannot be opened.
        WireError: It does not begin with a manifest.
    """
    with _open(path) as lines:
        manifest = next(iterate_privatized_lines(lines))
    assert isinstance(manifest, Manifest)
    return manifest


@contextmanager
def _open(path: Path | str) -> Iterator[Iterator[bytes]]:
    try:
        with Path(path).open("rb") as stream:
            yield read_bounded_lines(stream)
    except OSError as error:
        raise CorpusError(
            f"a privatized file must be readable, got {error.strerror or type(error).__name__}; check the path"
        ) from None


def remove_labels(file: PrivatizedFile) -> PrivatizedFile:
    """Return the same texts without labels and targets: a prediction needs neither, so neither is sent."""
    manifest = replace(file.manifest, labels=None, label_privacy=None, targets=None)
    records = tuple(replace(record, label=None, target_ids=None) for record in file.records)
    return PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)


def seal_manifest(manifest: Manifest, records: Sequence[PrivatizedRecord]) -> Manifest:
    """Return the manifest with the counts and the digest of these records.

    Raises:
        WireError: A record contradicts the manifest.
    """
    return _count(manifest, write_record_lines(records, manifest, first_position=0))


def dump_query(file: PrivatizedFile) -> dict[str, Any]:
    """Return a manifest and its records as plain JSON values."""
    lines = write_record_lines(file.records, file.manifest, first_position=0)
    return {
        "manifest": dump_manifest(_count(file.manifest, lines)),
        "records": [parse_document(line, what="a record") for line in lines.lines.splitlines()],
    }


def _count(manifest: Manifest, lines: RecordLines) -> Manifest:
    digest = hashlib.sha256(lines.lines).hexdigest()
    return replace(manifest, records=lines.records, tokens=lines.tokens, records_sha256=digest)


def parse_query(manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> PrivatizedFile:
    """Return the query in two JSON values, checked as a file is.

    Raises:
        WireError: Something is malformed, of an unknown version, or not what the manifest counts.
        MechanismError: eta is not a finite number above 0.
    """
    stated = parse_manifest(manifest)
    parsed = tuple(parse_record(dict(record), position=position) for position, record in enumerate(records))
    counted = seal_manifest(stated, parsed)
    if (counted.records, counted.tokens) != (stated.records, stated.tokens):
        raise WireError(
            f"a query must hold what its manifest counts, got {counted.records} of {stated.records} records and "
            f"{counted.tokens} of {stated.tokens} tokens; count the records that are sent"
        )
    if counted.records_sha256 != stated.records_sha256:
        raise WireError("a query must match the digest in its manifest; take the digest of the records that are sent")
    return PrivatizedFile(manifest=stated, records=parsed)
