"""Writing the privatized file: a manifest line, then one record a line, as token ids.

A file appears under its name only when it is whole: it is written beside it as `NAME.partial` and renamed at the end,
so a failure leaves nothing that looks done. The partial file begins with the manifest, its counts still 0, so a run
that was killed can be continued, and only with the same settings. No reader takes it for a whole file: counts and
digest are wrong.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Final

from rapt.arguments import check_arguments
from rapt.errors import CorpusError, UsageError, WireError, name_record
from rapt.whole_files import check_target, flush, free_name, open_alone, put_in_place
from rapt.wire.manifest import Manifest, dump_manifest, parse_manifest
from rapt.wire.privatized_file import (
    MAX_LINE_BYTES,
    PrivatizedRecord,
    RecordLines,
    check_record,
    count_privatized_tokens,
    parse_record,
    read_bounded_lines,
    write_record_lines,
)
from rapt.wire.strict_json import dump_line, parse_document

# Two counts of up to 19 digits are filled in when the file is whole; the line is padded with spaces until then.
_ROOM_FOR_COUNTS: Final = 40
# What an unfinished file of ours begins with, whatever its version; also when it was cut off within its first line.
_BEGINNINGS: Final = (b'{"schema":"rapt.privatized/', b'{"schema":"rapt.codes/')


class PrivatizedFileWriter:
    """Writes records in order; `write_privatized_file` opens a writer and closes it."""

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
        empty = dump_line(dump_manifest(_remove_counts(manifest))).encode("ascii")
        self._width = len(empty) + _ROOM_FOR_COUNTS
        first = stream.readline(MAX_LINE_BYTES)
        if not first.endswith(b"\n"):
            stream.seek(0)
            stream.truncate()
            stream.write(empty.ljust(self._width) + b"\n")
        elif parse_unfinished_manifest([first]) != _remove_counts(manifest):
            raise WireError(
                "an unfinished output must be continued with the settings it was begun with, got others; "
                "repeat them, or remove its .partial file to begin again"
            )

    def kept(self) -> Iterator[PrivatizedRecord]:
        """Yield the records of the run that did not finish, checked and counted; take them before writing any.

        A last line that was cut off is removed from the file.

        Raises:
            WireError: A whole line is damaged.
        """
        start = self._stream.tell()
        for line in read_bounded_lines(self._stream):
            if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                break
            record = parse_record(
                parse_document(line, what=f"{name_record(self._records)} of the unfinished output"),
                position=self._records,
            )
            check_record(record, self._manifest, position=self._records)
            tokens = count_privatized_tokens(record, self._manifest)
            self._count(RecordLines(lines=line, records=1, tokens=tokens))
            start += len(line)
            yield record
        self._stream.seek(start)
        self._stream.truncate()

    def write(self, record: PrivatizedRecord) -> None:
        """Append one record, checked against the manifest.

        Raises:
            WireError: The record contradicts the manifest.
        """
        self.append(write_record_lines([record], self._manifest, first_position=self._records))

    def append(self, encoded: RecordLines) -> None:
        """Append the lines of records that were checked against this manifest, as `write_record_lines` makes them."""
        self._stream.write(encoded.lines)
        self._count(encoded)

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
        self._stream.write(dump_line(dump_manifest(manifest)).encode("ascii").ljust(self._width))
        return manifest

    def _count(self, encoded: RecordLines) -> None:
        self._digest.update(encoded.lines)
        self._records += encoded.records
        self._tokens += encoded.tokens


@check_arguments
@contextmanager
def write_privatized_file(
    path: Path | str,
    manifest: Manifest,
    *,
    resume: bool = False,
    overwrite: bool = False,
    order: Callable[[int], Sequence[int]] | None = None,
) -> Iterator[PrivatizedFileWriter]:
    """Open a writer whose file appears at `path` only if the block ends without an error.

    The counts and the digest in `manifest` are ignored: they are counted while writing.

    Args:
        path: Name of the file; `NAME.partial` beside it is taken for the work, and locked.
        manifest: Manifest of the file.
        resume: Continue an unfinished file if there is one, whose records `PrivatizedFileWriter.kept` gives, and leave
            the file unfinished after an error. Otherwise remove it after an error.
        overwrite: Replace a file of that name, and, without `resume`, an unfinished one.
        order: Places of the records in the order in which they are to stand in the file, for so many records; None
            leaves them in the order in which they were written. 16 bytes of memory for each record.

    Raises:
        CorpusError: The disk is full, the folder cannot be written, or another process is writing the file.
        UsageError: A file is there that must not be replaced, or a `NAME.partial` that is not ours or must not be lost.
        WireError: No reader would take the manifest; or the unfinished file was written with other settings, or is
            damaged.
    """
    path = Path(path)
    # Before anything is drawn and paid for.
    parse_manifest(dump_manifest(_remove_counts(manifest)))
    partial = name_partial(path)
    try:
        check_target(path, overwrite=overwrite)
        with open_alone(partial) as stream:
            _check_unfinished(stream, partial, resume=resume, overwrite=overwrite)
            try:
                if not resume:
                    stream.truncate()
                writer = PrivatizedFileWriter(stream, manifest)
                yield writer
                whole = writer.finish()
                flush(stream)
                if order is None:
                    free_name(stream)
                    put_in_place(partial, path, overwrite=overwrite)
                else:
                    with _write_in_order(stream, partial, whole, order=order) as ordered:
                        put_in_place(ordered, path, overwrite=overwrite)
                    free_name(stream)
                    partial.unlink(missing_ok=True)
            except BaseException:
                if not resume:
                    free_name(stream)
                    partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise CorpusError(
            f"the output must be writable, got {error.strerror or type(error).__name__}; "
            "free space or choose another folder"
        ) from None


@contextmanager
def _write_in_order(
    stream: IO[bytes], partial: Path, manifest: Manifest, *, order: Callable[[int], Sequence[int]]
) -> Iterator[Path]:
    """Write a second file with the lines of a whole one in another order; it is removed unless it is moved away."""
    path = partial.with_name(partial.name + ".ordered")
    digest, starts = hashlib.sha256(), array("q")
    try:
        with mmap(stream.fileno(), 0, access=ACCESS_READ) as lines, open_alone(path) as ordered:
            ordered.truncate()
            start = first = lines.find(b"\n") + 1
            while start < len(lines):
                starts.append(start)
                start = lines.find(b"\n", start) + 1
            ordered.write(b" " * (first - 1) + b"\n")
            for place in order(len(starts)):
                line = lines[starts[place] : lines.find(b"\n", starts[place]) + 1]
                digest.update(line)
                ordered.write(line)
            ordered.seek(0)
            stated = dump_manifest(replace(manifest, records_sha256=digest.hexdigest()))
            ordered.write(dump_line(stated).encode("ascii").ljust(first - 1))
            flush(ordered)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _check_unfinished(stream: IO[bytes], partial: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to take what somebody else put under the name, and to throw an unfinished run away unasked."""
    first, more = stream.readline(MAX_LINE_BYTES), stream.read(1)
    stream.seek(0)
    _check_begun(first, partial)
    if more and not (resume or overwrite):
        raise UsageError(
            f"an unfinished run of this output must not be lost, got one at {str(partial)!r}; go on with "
            "`resume=True`, or begin anew with `overwrite=True`"
        )


def _check_begun(first: bytes, partial: Path) -> None:
    """Refuse a first line that no writer of ours begins with."""
    if not any(first.startswith(beginning) or beginning.startswith(first) for beginning in _BEGINNINGS):
        raise UsageError(
            f"the name {str(partial)!r} must be free for the work, got a file that rapt did not begin; "
            "move it away, or choose another output"
        )


def name_partial(path: Path) -> Path:
    """Return the path at which a file is written until it is whole."""
    return path.parent / f"{path.name}.partial"


def read_unfinished_manifest(path: Path) -> Manifest | None:
    """Read the manifest, without counts, of the unfinished file that is to become `path`; None if none was begun.

    Raises:
        CorpusError: It cannot be read.
        UsageError: It is not ours.
        WireError: It is damaged.
    """
    partial = name_partial(path)
    try:
        with partial.open("rb") as stream:
            _check_begun(stream.readline(MAX_LINE_BYTES), partial)
            stream.seek(0)
            return parse_unfinished_manifest(read_bounded_lines(stream), what=f"the manifest of {partial.name!r}")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorpusError(
            f"an unfinished output must be readable, got {error.strerror or type(error).__name__}; check its folder"
        ) from None


def parse_unfinished_manifest(
    lines: Iterable[bytes], *, what: str = "the manifest of an unfinished output"
) -> Manifest | None:
    """Parse the manifest in the first of the lines, its counts taken out; None if that line was cut off."""
    first = next(iter(lines), b"")
    if not first.endswith(b"\n"):
        return None
    return _remove_counts(parse_manifest(parse_document(first, what=what)))


def _remove_counts(manifest: Manifest) -> Manifest:
    return replace(manifest, records=0, tokens=0, records_sha256="0" * 64)
