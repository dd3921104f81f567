"""The privatized file: a manifest line, then one record a line, as token ids.

Ids and not words, because decoding and tokenizing again changes ids. A file appears under its name only when it is
whole: it is written beside it as `NAME.partial` and renamed at the end, so a failure leaves nothing that looks done.
The partial file begins with the manifest, its counts still 0, so a run that was killed can be continued, and only with
the same settings. No reader takes it for a whole file: counts and digest are wrong.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from rapt.errors import CorpusError, WireError
from rapt.wire.exclusive_file import open_alone
from rapt.wire.manifest import Manifest, manifest_from_json, manifest_to_json
from rapt.wire.strict_json import dump, exact_fields, field, id_tuple, parse_object

# Two counts of up to 19 digits are filled in when the file is whole; the line is padded with spaces until then.
_ROOM_FOR_COUNTS: Final = 40
# A line longer than this is not a record: 512 ids of 6 digits are 4 KB, long-context backbones need 1 MB.
MAX_LINE_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class PrivatizedRecord:
    """One privatized text: z = M([k; x]) of RAPT, Eq. 5, kept as its two parts.

    Attributes:
        token_ids: M(x), one id for each content token of the text, in order.
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


@dataclass(frozen=True, kw_only=True)
class PrivatizedFile:
    """A manifest and all of its records, in memory."""

    manifest: Manifest
    records: tuple[PrivatizedRecord, ...]


class PrivatizedFileWriter:
    """Takes records one at a time; `write_privatized_file` opens one and closes it."""

    def __init__(self, stream: IO[bytes], manifest: Manifest) -> None:
        """Write the manifest line with room for the counts, or find it there from a run that did not finish.

        Raises:
            WireError: The file begins otherwise: it was written with other settings.
        """
        self._stream = stream
        self._manifest = manifest
        self._digest = hashlib.sha256()
        self._records = 0
        self._tokens = 0
        empty = dump(manifest_to_json(_without_counts(manifest))).encode("ascii")
        self._width = len(empty) + _ROOM_FOR_COUNTS
        first = stream.readline(MAX_LINE_BYTES)
        if not first.endswith(b"\n"):
            stream.seek(0)
            stream.truncate()
            stream.write(empty.ljust(self._width) + b"\n")
        elif unfinished_manifest([first]) != _without_counts(manifest):
            raise WireError(
                "an unfinished output must be continued with the settings it was begun with, got others; "
                "repeat them, or remove its .partial file to begin again"
            )

    def kept(self) -> Iterator[PrivatizedRecord]:
        """The records of the run that did not finish, checked and counted, to be taken before any is written.

        A last line that was cut off is removed from the file.

        Raises:
            WireError: A whole line is damaged.
        """
        start = self._stream.tell()
        for line in bounded_lines(self._stream):
            if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                break
            record = record_from_json(
                parse_object(line, what=f"record {self._records} of the unfinished output"), position=self._records
            )
            check_record(record, self._manifest, position=self._records)
            self._count(line, record)
            start += len(line)
            yield record
        self._stream.seek(start)
        self._stream.truncate()

    def write(self, record: PrivatizedRecord) -> None:
        """Append one record, checked against the manifest.

        Raises:
            WireError: The record contradicts the manifest.
        """
        check_record(record, self._manifest, position=self._records)
        line = dump(_record_to_json(record)).encode("ascii") + b"\n"
        self._stream.write(line)
        self._count(line, record)

    def flush(self) -> None:
        """Hand what was written to the operating system, so that a killed process loses none of it."""
        self._stream.flush()

    def finish(self) -> Manifest:
        """Fill in the counts; returns the manifest as it stands in the file."""
        manifest = replace(
            self._manifest,
            records=self._records,
            tokens=self._tokens,
            records_sha256=self._digest.hexdigest(),
        )
        self._stream.seek(0)
        self._stream.write(dump(manifest_to_json(manifest)).encode("ascii").ljust(self._width))
        return manifest

    def _count(self, line: bytes, record: PrivatizedRecord) -> None:
        self._digest.update(line)
        self._records += 1
        self._tokens += privatized_tokens(record, self._manifest)


@contextmanager
def write_privatized_file(path: Path, manifest: Manifest, *, resume: bool = False) -> Iterator[PrivatizedFileWriter]:
    """A writer whose file appears at `path` only if the block ends without an error.

    The counts and the digest in `manifest` are ignored: they are counted while writing.

    Args:
        path: Of the file; `NAME.partial` beside it is taken for the work, and locked.
        manifest: Of the file.
        resume: Continue an unfinished file if there is one, whose records `PrivatizedFileWriter.kept` gives, and leave
            the file unfinished after an error. Otherwise begin anew, and remove it after an error.

    Raises:
        CorpusError: The disk is full, the folder cannot be written, or another process is writing the file.
        WireError: The unfinished file was written with other settings, or is damaged.
    """
    partial = partial_path(path)
    try:
        with open_alone(partial) as stream:
            try:
                if not resume:
                    stream.truncate()
                writer = PrivatizedFileWriter(stream, manifest)
                yield writer
                writer.finish()
                stream.flush()
                os.fsync(stream.fileno())
                partial.replace(path)
            except BaseException:
                if not resume:
                    partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise CorpusError(
            f"the output must be writable, got {error.strerror or type(error).__name__}; "
            "free space or choose another folder"
        ) from None


def partial_path(path: Path) -> Path:
    """Where a file is while it is not whole."""
    return path.with_name(path.name + ".partial")


def read_unfinished_manifest(path: Path) -> Manifest | None:
    """The manifest, without counts, of the unfinished file that is to become `path`; None if none was begun.

    Raises:
        CorpusError: It cannot be read.
        WireError: It is damaged.
    """
    try:
        with partial_path(path).open("rb") as stream:
            return unfinished_manifest(bounded_lines(stream))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorpusError(
            f"an unfinished output must be readable, got {error.strerror or type(error).__name__}; check its folder"
        ) from None


def unfinished_manifest(lines: Iterable[bytes]) -> Manifest | None:
    """The manifest in the first of the lines, its counts taken out; None if that line was cut off."""
    first = next(iter(lines), b"")
    if not first.endswith(b"\n"):
        return None
    return _without_counts(manifest_from_json(parse_object(first, what="the manifest of an unfinished output")))


def _without_counts(manifest: Manifest) -> Manifest:
    return replace(manifest, records=0, tokens=0, records_sha256="0" * 64)


def iterate_privatized_lines(lines: Iterable[bytes]) -> Iterator[Manifest | PrivatizedRecord]:
    """The manifest, then every record, in constant memory.

    Counts and digest are known to be right only when the iteration ends without an error.

    Raises:
        WireError: The file is malformed, truncated, edited, or of an unknown version.
    """
    stream = iter(lines)
    first = next(stream, b"")
    if len(first) > MAX_LINE_BYTES:
        raise WireError(f"the manifest must be at most {MAX_LINE_BYTES} bytes, got {len(first)}")
    try:
        described = parse_object(first, what="the first line")
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
            raise WireError(f"record {records} must be at most {MAX_LINE_BYTES} bytes, got {len(line)}")
        record = record_from_json(parse_object(line, what=f"record {records}"), position=records)
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
        raise WireError("a privatized file must match the digest in its manifest; it was edited: privatize it again")


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


def read_privatized_file(path: Path) -> PrivatizedFile:
    """A whole privatized file in memory, checked.

    Raises:
        CorpusError: It cannot be opened.
        WireError: It is malformed, truncated, edited, or of an unknown version.
    """
    try:
        with path.open("rb") as stream:
            return read_privatized_lines(bounded_lines(stream))
    except OSError as error:
        raise CorpusError(
            f"a privatized file must be readable, got {error.strerror or type(error).__name__}; check the path"
        ) from None


def privatized_tokens(record: PrivatizedRecord, manifest: Manifest) -> int:
    """How many tokens of a record went through the mechanism: those of its texts, plain tokens not counted."""
    targets = len(record.target_ids or ()) if manifest.targets == "privatized" else 0
    return len(record.token_ids) + len(record.second_token_ids or ()) + targets


def check_record(record: PrivatizedRecord, manifest: Manifest, *, position: int) -> None:
    """Refuse a record that contradicts its manifest: labels out of range, plain tokens missing or unexpected."""
    plain = manifest.plain_tokens
    what = f"record {position}"
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


def record_from_json(value: dict[str, Any], *, position: int) -> PrivatizedRecord:
    """The record in a JSON object. Raises `WireError` for a missing, unknown or mistyped field."""
    what = f"record {position}"
    exact_fields(
        value,
        required={"token_ids"},
        optional={"label", "privatized_plain_tokens", "plain_tokens", "second_token_ids", "target_ids"},
        what=what,
    )
    return PrivatizedRecord(
        token_ids=id_tuple(value, "token_ids", what=what),
        label=field(value, "label", int, what=what) if value.get("label") is not None else None,
        privatized_plain_tokens=(
            id_tuple(value, "privatized_plain_tokens", what=what) if "privatized_plain_tokens" in value else ()
        ),
        plain_tokens=id_tuple(value, "plain_tokens", what=what) if "plain_tokens" in value else None,
        second_token_ids=id_tuple(value, "second_token_ids", what=what) if "second_token_ids" in value else None,
        target_ids=id_tuple(value, "target_ids", what=what) if "target_ids" in value else None,
    )


def _record_to_json(record: PrivatizedRecord) -> dict[str, Any]:
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
