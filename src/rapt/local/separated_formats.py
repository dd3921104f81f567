"""CSV and TSV as people have them: fields between separators, with or without quotes around them.

A field that begins with a quote ends with one, as RFC 4180 says; a quote elsewhere is a letter. In TSV that is so only
where every quote of the file fits into that rule, as in the files that pandas writes; else all quotes are letters, as
in the files of GLUE. A separator other than the format's own is recognized by the columns that are asked for. Messages
name lines, separators and counts, never what stands in the file, and so no column either that nobody asked for: the
first line of a file without a header is somebody's text.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from rapt.errors import CorpusError, UsageError
from rapt.local.corpus_formats import (
    MAX_LINE_BYTES,
    Columns,
    FileFormat,
    Findings,
    Reader,
    Row,
    is_empty,
    read_lines,
    skip_blank_lines,
)
from rapt.local.json_formats import read_json

SEPARATOR_NAMES: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# The first line of what Excel writes for itself where the comma is taken by decimals.
_EXCEL_SEPARATOR: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_ENDS: Final = "\r\n"


def read_separated(path: Path, columns: Columns, found: Findings, *, usual: str) -> Generator[Row | None, None, None]:
    """The records of a CSV or TSV file; None for one that is a fault.

    Args:
        path: Path of the file.
        columns: Columns to read.
        found: Findings, whose separator is used where it is set and else set here.
        usual: The separator of the format.

    Raises:
        CorpusError: A column is missing, a quote is not closed, or the file cannot be read.
        UsageError: Two columns are the same.
    """
    _recognize(path, columns, found, usual=usual)
    assert found.separator is not None
    with closing(read_lines(path, found)) as lines:
        rows = _iterate_fields(lines, found.separator, quotes=usual == "," or found.quoted is True)
        header: list[str] | None = None
        undecoded = 0
        for number, row in skip_blank_lines(rows, found, skip=columns.skip_empty):
            if header is None:
                header = row if columns.header else [""] * len(row)
                places = [find_column(header, column, found.separator, columns) for column in columns.wanted]
                if len(set(places)) != len(places):
                    raise UsageError("texts and label must be different columns, got one twice; labels leave in clear")
                if columns.header:
                    continue
            if found.undecoded > undecoded:
                undecoded = found.undecoded
                yield None
                continue
            if columns.skip_empty and len(row) == len(header):
                if any(is_empty(row[place]) for place in places[: len(columns.texts)]):
                    found.skipped += 1
                    continue
            yield _make_row(row, number, len(header), places, columns, found)
        if header is None:
            raise explain_missing_column([], columns.wanted[0])


def _make_row(
    row: list[str], number: int, width: int, places: list[int], columns: Columns, found: Findings
) -> Row | None:
    where = f"line {number}"
    if len(row) != width:
        found.fault(where, f"have {width} fields like the first line, got {len(row)}; check its separators and quotes")
        return None
    texts = tuple(row[place] for place in places[: len(columns.texts)])
    kept = tuple(row[place] for place in places[len(columns.texts) :][: len(columns.kept)])
    if columns.label is None:
        return Row(where, texts, None, kept)
    label = found.label(where, row[places[-1]])
    return None if label is None else Row(where, texts, label, kept)


def find_column(header: list[str], column: str, separator: str, columns: Columns) -> int:
    """The place of the column of that name, or of that number from 1; raises `CorpusError`."""
    names = [name.strip() for name in header]
    if names.count(column) == 1:
        return names.index(column)
    if column not in names and column.isascii() and column.isdigit() and 1 <= int(column[:9]) <= len(names):
        return int(column) - 1
    raise explain_missing_column(names, column, separator=separator, privatized=columns.privatized)


def explain_missing_column(
    header: list[str], column: str, *, separator: str | None = None, privatized: bool = False
) -> CorpusError:
    """Explain a header that does not have a column once, without a name that nobody asked for."""
    if column in header:
        return CorpusError(
            f"column {column!r} must stand once in the header, got it {header.count(column)} times; rename one"
        )
    if not header:
        return CorpusError(f"the first line must name the columns, got an empty file; add {column!r} as a header")
    ways = "name the right column"
    if separator is not None:
        how = "and `header=False`" if privatized else "after a line of names is added,"
        ways += f", or give its number from 1 to {len(header)}, {how} if the first line is a record already"
        if len(header) == 1:
            ways += f"; if another character than {SEPARATOR_NAMES.get(separator, separator)!r} stands between fields, "
            ways += "give it as `delimiter`" if privatized else "put one of comma, semicolon, tab and bar there"
    return CorpusError(f"the columns must have {column!r} among them, got {len(header)} columns without it; {ways}")


def _recognize(path: Path, columns: Columns, found: Findings, *, usual: str) -> None:
    """Set the separator, unless it is known, and whether the quotes of a TSV file enclose fields."""
    first = _read_first_line(path)
    if found.separator is None:
        excel = _EXCEL_SEPARATOR.fullmatch(first)
        choices = [usual, *(separator for separator in SEPARATOR_NAMES if separator != usual)]
        known = (choice for choice in choices if _has_columns(first, choice, columns))
        found.separator = excel[1] if excel else next(known, usual)
        found.guessed = found.separator != usual
    if usual == "\t" and found.quoted is None:
        found.quoted = _quotes_enclose(path, found.separator)


def _read_first_line(path: Path) -> str:
    with closing(read_lines(path, Findings())) as lines:
        return next(lines, "").rstrip(_ENDS)


def _has_columns(line: str, separator: str, columns: Columns) -> bool:
    header = [name.strip().strip('"') if columns.header else "" for name in line.split(separator)]
    try:
        for column in columns.wanted:
            find_column(header, column, separator, columns)
    except CorpusError:
        return False
    return True


def _quotes_enclose(path: Path, separator: str) -> bool | None:
    """Whether every quote of a file encloses a field or is doubled in one; None where it has no quote."""
    seen = False

    def watched(lines: Iterator[str]) -> Iterator[str]:
        nonlocal seen
        for line in lines:
            seen = seen or '"' in line
            yield line

    with closing(read_lines(path, Findings(collects=True))) as lines:
        try:
            for _ in _iterate_fields(watched(lines), separator, quotes=True, letters=False):
                pass
        except CorpusError:
            return False
    return True if seen else None


def _iterate_fields(
    lines: Iterator[str], separator: str, *, quotes: bool, letters: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """The number of each record's first line and its fields; none for a blank line.

    Args:
        lines: Lines with their ends.
        separator: Character between two fields.
        quotes: Whether a quote at the beginning of a field encloses it.
        letters: Whether a quote elsewhere is a letter; otherwise it is refused.

    Raises:
        CorpusError: A quote is not closed where a field ends, named by the line where it opens.
    """
    number = 0
    for line in lines:
        number += 1
        if number == 1 and _EXCEL_SEPARATOR.fullmatch(line):
            continue
        if not quotes or '"' not in line:
            bare = line.rstrip(_ENDS)
            yield number, bare.split(separator) if bare else []
        else:
            row, more = _read_quoted_fields(line, number, lines, separator, letters=letters)
            yield number, row
            number += more


def _read_quoted_fields(
    line: str, number: int, lines: Iterator[str], separator: str, *, letters: bool
) -> tuple[list[str], int]:
    """The fields of the record that begins with a line, and how many more lines it takes."""
    fields: list[str] = []
    at = more = 0
    while True:
        if not line.startswith('"', at):
            end = line.find(separator, at)
            fields.append(line[at:].rstrip(_ENDS) if end < 0 else line[at:end])
            if not letters and '"' in fields[-1]:
                raise CorpusError(f"line {number + more} must have quotes around whole fields only")
            if end < 0:
                return fields, more
            at = end + 1
            continue
        opened, parts, size, at = number + more, [], 0, at + 1
        while True:
            end = line.find('"', at)
            if end >= 0 and line.startswith('"', end + 1):
                parts.append(line[at : end + 1])
                at = end + 2
            elif end >= 0:
                parts.append(line[at:end])
                at = end + 1
                break
            else:
                parts.append(line[at:])
                size += len(line)
                following = next(lines, None) if size <= MAX_LINE_BYTES else None
                if following is None:
                    raise _make_never_closed_error(
                        opened, "the end of the file" if size <= MAX_LINE_BYTES else "too much text"
                    )
                line, at, more = following, 0, more + 1
        fields.append("".join(parts))
        if not line[at:].rstrip(_ENDS):
            return fields, more
        if not line.startswith(separator, at):
            raise _make_never_closed_error(opened, f"a quote in the middle of line {number + more}")
        at += 1


def _make_never_closed_error(opened: int, instead: str) -> CorpusError:
    return CorpusError(
        f"line {opened} must close the quote that opens there at the end of its field, got {instead}; close it, or "
        "write two quotes for one inside a text"
    )


LINE_READERS: Final[dict[FileFormat, Reader]] = {
    "csv": partial(read_separated, usual=","),
    "tsv": partial(read_separated, usual="\t"),
    "jsonl": read_json,
}
