"""The formats of a corpus that are lines, read strictly: CSV, TSV and JSONL.

Messages name lines, from 1, never what stands there. CSV quotes as RFC 4180 says; in TSV a quote is a letter like any
other, as in the files of GLUE; JSONL holds one object a line.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from rapt.errors import CorpusError, WireError
from rapt.wire.strict_json import parse_object

FileFormat = Literal["csv", "tsv", "jsonl", "parquet", "dataset"]

# A line is held in memory as a whole. The longest context of a backbone is about a million tokens, 5 MB of English.
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
# A header that reads like names may be quoted in a message; the first line of a file without a header may not.
_COLUMN_NAME: Final = re.compile(r"[^\W\d][\w.:-]{0,30}( [\w.:-]{1,15}){0,1}")


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """One record of a corpus. Its `repr` shows neither, so that no log or traceback does."""

    text: str = field(repr=False)
    label: str | None = field(default=None, repr=False)


@dataclass
class Reading:
    """How far a source has been read, for whoever shows progress; the reader moves it.

    Attributes:
        done: Bytes, or rows, that were read.
        total: Of the source; 0 until it is known.
    """

    done: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """From 0 to 1; 0 while nothing is known."""
        return min(1.0, self.done / self.total) if self.total else 0.0


def read_lines(path: Path, reading: Reading) -> Generator[str, None, None]:
    """The lines of a file, their ends kept, each decoded on its own so that an error can say where."""
    if path.exists() and not path.is_file():
        raise CorpusError("a corpus must be a regular file, because it may be read twice; write it to one first")
    try:
        with path.open("rb") as stream:
            reading.total = os.fstat(stream.fileno()).st_size
            for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise CorpusError(
                        f"line {number} must be at most {MAX_LINE_BYTES} bytes; split its text, because no backbone "
                        "takes so many tokens"
                    )
                reading.done += len(line)
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    # The decoder's own message quotes the bytes: it is dropped on purpose.
                    raise CorpusError(
                        f"line {number} must be utf-8; convert the file, for instance with iconv"
                    ) from None
    except OSError as error:
        raise CorpusError(
            f"a corpus must be readable, got {error.strerror or type(error).__name__}; check the path"
        ) from None


def _read_csv(lines: Iterator[str], text_column: str, label_column: str | None) -> Iterator[LabelledText]:
    rows = csv.reader(lines, strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        while True:
            try:
                row = next(rows, None)
            except csv.Error:
                raise CorpusError(
                    f"line {rows.line_num} must be csv with fields of at most {csv.field_size_limit()} characters; "
                    "check the quotes that are open there, or write the file as tsv or jsonl"
                ) from None
            if row is None:
                return
            yield rows.line_num, row

    return _records_of(numbered(), text_column, label_column)


def _read_tsv(lines: Iterator[str], text_column: str, label_column: str | None) -> Iterator[LabelledText]:
    stripped = (line.rstrip("\r\n") for line in lines)
    return _records_of(
        ((number, line.split("\t") if line else []) for number, line in enumerate(stripped, 1)),
        text_column,
        label_column,
    )


def _records_of(
    rows: Iterator[tuple[int, list[str]]], text_column: str, label_column: str | None
) -> Iterator[LabelledText]:
    """Records from rows of fields, the first of which names the columns."""
    _, header = next(rows, (0, []))
    text = _place(header, text_column)
    label = None if label_column is None else _place(header, label_column)
    for number, row in _no_blank_between(rows):
        if len(row) != len(header):
            raise CorpusError(
                f"line {number} must have {len(header)} fields like the header, got {len(row)}; check its separators"
            )
        yield LabelledText(text=row[text], label=None if label is None else _named(row[label], number))


def _place(header: list[str], column: str) -> int:
    if header.count(column) == 1:
        return header.index(column)
    raise missing_column(header, column)


def missing_column(header: list[str], column: str) -> CorpusError:
    """What to say of a header that does not have a column once; it shows only names that look like names."""
    if column in header:
        return CorpusError(f"column {column!r} must stand once in the header, got it {header.count(column)} times")
    if not header:
        return CorpusError(f"the first line must name the columns, got an empty one; add {column!r} as a header")
    shown = ", ".join(header) if all(_COLUMN_NAME.fullmatch(name) for name in header) else "not names, so not shown"
    return CorpusError(
        f"the header must have the column {column!r}, got {len(header)} columns ({shown}); name the right column"
    )


def _no_blank_between(rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    blank = 0
    for number, row in rows:
        if not row:
            blank = blank or number
            continue
        if blank:
            raise CorpusError(f"line {blank} must not be blank, because others follow; remove it")
        yield number, row


def _read_jsonl(lines: Iterator[str], text_column: str, label_column: str | None) -> Iterator[LabelledText]:
    numbered = ((number, [line] if line.strip() else []) for number, line in enumerate(lines, 1))
    for number, (line,) in _no_blank_between(numbered):
        try:
            value = parse_object(line, what=f"line {number}")
        except WireError as error:
            raise CorpusError(str(error)) from None
        text = value.get(text_column)
        if not isinstance(text, str):
            kind = type(text).__name__ if text_column in value else "nothing"
            raise CorpusError(f"line {number} must have a text in {text_column!r}, got {kind}; name the right field")
        label = None if label_column is None else value.get(label_column)
        if label_column is not None and type(label) not in (str, int):
            kind = type(label).__name__ if label_column in value else "nothing"
            raise CorpusError(
                f"line {number} must have a name or a whole number in {label_column!r}, got {kind}; "
                "name the right field"
            )
        yield LabelledText(text=text, label=None if label is None else _named(str(label), number))


def _named(label: str, number: int) -> str:
    if not label:
        raise CorpusError(f"line {number} must have a label, got an empty one; label it or remove it")
    return label


READERS: Final[Mapping[FileFormat, Callable[[Iterator[str], str, str | None], Iterator[LabelledText]]]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
}
