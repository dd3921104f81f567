"""The format of a corpus, the values that it is read into, and its lines, whatever their encoding and compression.

Messages name lines, counted from 1 with the header among them, never what stands there. JSON is read in `json_formats`,
CSV and TSV in `separated_formats`, Parquet and saved datasets in `columnar_formats`.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast, get_args

from rapt.errors import CorpusError, UsageError
from rapt.local.vocabulary import is_unicode

FileFormat = Literal["csv", "tsv", "jsonl", "parquet", "dataset"]

# A line is held in memory as a whole. The longest context of a backbone is about a million tokens, 5 MB of English.
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
_PEEK_BYTES: Final = 64 * 1024
_MAGIC_BYTES: Final = 4
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MOST_FAULTS_SHOWN: Final = 10


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """One record of a corpus. Its `repr` shows neither, so that no log or traceback does."""

    text: str = field(repr=False)
    label: str | None = field(default=None, repr=False)


@dataclass
class ReadingProgress:
    """How far a source has been read, for whoever shows progress; the reader moves it.

    Attributes:
        done: Bytes, or rows, that were read.
        total: Bytes, or rows, of the source; 0 until they are known.
    """

    done: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """From 0 to 1; 0 while nothing is known."""
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns to read of each record.

    Attributes:
        texts: Columns, or JSON fields, of the texts; in CSV and TSV a number from 1 will do.
        label: Column of the label; None where there is none.
        kept: Columns whose values are handed back as they are, beside the texts.
        skip_empty: Whether a record with a text that is empty, or null, is passed over.
        header: Whether the first line of a CSV or TSV file names its columns.
        privatized: Whether a command reads them that has `header`, `delimiter` and `target_column`, which
            errors then name.
    """

    texts: tuple[str, ...]
    label: str | None
    kept: tuple[str, ...] = ()
    skip_empty: bool = False
    header: bool = True
    privatized: bool = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """All of them: texts, kept ones, and the label last."""
        return (*self.texts, *self.kept, *(() if self.label is None else (self.label,)))


@dataclass(frozen=True)
class Row:
    """One record of a source. Its `repr` shows where it stands alone."""

    place: str
    texts: tuple[str, ...] = field(repr=False)
    label: str | None = field(repr=False)
    kept: tuple[Any, ...] = field(default=(), repr=False)


@dataclass
class Findings:
    """Findings of one pass over a source beside its records; the reader fills them in.

    Attributes:
        reading: Position that the reader has come to.
        collects: Whether the pass goes on after a fault, to name all of them at once.
        separator: Separator of the fields of a CSV or TSV file: given, or found by the reader.
        guessed: Whether the separator is another than the format's own, and nobody gave it.
        quoted: Whether quotes enclose the fields of a TSV file, or are letters; None where there is none.
        undecoded: Number of lines so far that are not UTF-8; a record with one of them is a fault already.
        spaced_labels: Labels that had spaces around them.
        class_names: Names of the classes in order, where the source declares them.
        faults: Records that are wrong.
        skipped: Records that were passed over, because a text of theirs is empty.
        utf16: Whether the file is UTF-16, as its byte order mark says.
        packed: Whether the file is compressed.
    """

    reading: ReadingProgress = field(default_factory=ReadingProgress)
    collects: bool = False
    separator: str | None = None
    guessed: bool = False
    quoted: bool | None = None
    undecoded: int = 0
    spaced_labels: int = 0
    class_names: tuple[str, ...] | None = None
    faults: int = 0
    skipped: int = 0
    utf16: bool = False
    packed: bool = False
    _shown: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def fault(self, place: str, rule: str) -> None:
        """Note that the record at a place breaks a rule; raises `CorpusError` unless faults are collected."""
        if not self.collects:
            raise CorpusError(f"{place} must {rule}")
        self.faults += 1
        if self.faults <= _MOST_FAULTS_SHOWN:
            self._shown.setdefault(rule, []).append(place)

    def refuse(self, error: CorpusError | None = None) -> NoReturn:
        """Raise a `CorpusError` with the faults so far, and with the error that ended the pass."""
        said = [f"{', '.join(places)} must {rule}" for rule, places in self._shown.items()]
        if error is not None:
            said.append(str(error))
        if self.faults > _MOST_FAULTS_SHOWN:
            said.insert(0, f"{self.faults} records must be mended, the first {_MOST_FAULTS_SHOWN} are these")
        raise CorpusError(" | ".join(said)) from None

    def label(self, place: str, label: str) -> str | None:
        """The label without the spaces around it, or None and a fault."""
        found = label.strip()
        if not found:
            self.fault(place, "have a label, got an empty one; label it or remove it")
            return None
        if not is_unicode(found):
            self.fault(place, "have a label of valid unicode, got a lone surrogate; write the label again")
            return None
        self.spaced_labels += found != label
        return found


def read_lines(path: Path, found: Findings) -> Generator[str, None, None]:
    """The lines of a file, their ends kept, each decoded on its own so that an error can say where.

    Lines end with a line feed; in a file that has none, with a carriage return. A file that gzip or zstd compressed is
    read as what it holds, and one that begins with a byte order mark of UTF-16 as that.
    """
    with open_corpus(path, found) as (file, stream), _cut(stream, found) as cut:
        for number, line in enumerate(cut, 1):
            if len(line) > MAX_LINE_BYTES:
                raise CorpusError(
                    f"line {number} must be at most {MAX_LINE_BYTES} bytes; split its text, because no backbone "
                    "takes so many tokens"
                )
            found.reading.done = file.tell() if found.packed else found.reading.done + len(line)
            text = _decode(line, encoding="utf-8-sig" if number == 1 else "utf-8")
            if text is None:
                rule = "be utf-8; convert the file, for instance with iconv"
                if number == 1:  # it names the columns
                    raise CorpusError(f"line 1 must {rule}")
                found.fault(f"line {number}", rule)
                found.undecoded += 1
                text = line.decode("utf-8", errors="replace")  # to go on; nothing of it is used
            yield text


@contextmanager
def open_corpus(path: Path, found: Findings) -> Iterator[tuple[io.FileIO, io.BufferedReader[Any]]]:
    """The file of a corpus, and the stream of what it holds, by its first bytes; `found` learns what it is.

    Raises:
        CorpusError: The file cannot be read; also while the block reads it, where it is damaged.
        UsageError: It is compressed by zstd, and pyarrow is not installed.
    """
    if path.exists() and not path.is_file():
        raise CorpusError("a corpus must be a regular file, because it may be read twice; write it to one first")
    try:
        with path.open("rb", buffering=0) as file:
            found.reading.total = os.fstat(file.fileno()).st_size
            begin = file.read(_MAGIC_BYTES)
            file.seek(0)
            unpack = next((way for magic, way in _UNPACKERS.items() if begin.startswith(magic)), None)
            found.packed = unpack is not None
            with io.BufferedReader(file if unpack is None else unpack(file), _PEEK_BYTES) as stream:
                peeked = stream.peek()
                # That of UTF-32 begins with that of UTF-16, and no text begins with the zero that follows there.
                found.utf16 = peeked.startswith(_UTF16) and not peeked.startswith(codecs.BOM_UTF32_LE)
                yield file, stream
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise _explain_damage() from None
    except UnicodeError:  # of what is decoded as a stream; its message quotes the bytes
        if found.utf16:
            raise CorpusError("a corpus in utf-16 must be whole; write it again, in utf-8 if you can") from None
        raise CorpusError("a corpus must be utf-8; convert the file, for instance with iconv") from None
    except OSError as error:
        if found.packed and error.errno is None:  # what pyarrow raises
            raise _explain_damage() from None
        raise CorpusError(
            f"a corpus must be readable, got {error.strerror or type(error).__name__}; check the path"
        ) from None


def _explain_damage() -> CorpusError:
    return CorpusError("a compressed corpus must be whole; it is damaged or cut off")


def _decode(line: bytes, *, encoding: str) -> str | None:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:  # its message quotes the bytes: it is dropped on purpose
        return None


def _unpack_gzip(file: io.FileIO) -> io.RawIOBase:
    return cast(io.RawIOBase, gzip.GzipFile(fileobj=file, mode="rb"))


def _unpack_zstd(file: io.FileIO) -> io.RawIOBase:
    try:
        arrow = import_module("pyarrow")
    except ImportError:
        raise UsageError(
            "a corpus that zstd compressed must be read with pyarrow; unpack it with zstd -d, or run in the checkout: "
            "pip install -e '.[parquet]'"
        ) from None
    return cast(io.RawIOBase, arrow.CompressedInputStream(file, "zstd"))


# What unpacks a file, by the bytes that it begins with. Neither takes more memory for a file that holds more.
_UNPACKERS: Final[Mapping[bytes, Callable[[io.FileIO], io.RawIOBase]]] = {
    b"\x1f\x8b": _unpack_gzip,
    b"\x28\xb5\x2f\xfd": _unpack_zstd,
}


@contextmanager
def _cut(stream: io.BufferedReader[Any], found: Findings) -> Iterator[Iterator[bytes]]:
    """Lines as bytes of UTF-8, none longer than one byte above the limit; of UTF-16 so many letters."""
    begin = stream.peek()
    # Latin-1 maps every byte to a character and back, so with it this cuts bytes.
    encoding, back = ("utf-16", "utf-8") if found.utf16 else ("latin-1", "latin-1")
    start = begin.decode(encoding, errors="ignore") if found.utf16 else begin.decode(encoding)
    returns = "\r" in start and "\n" not in start
    if found.utf16 or returns:
        with io.TextIOWrapper(stream, encoding=encoding, newline="\r" if returns else "\n") as letters:
            yield (line.encode(back) for line in iter(lambda: letters.readline(MAX_LINE_BYTES + 1), ""))
    else:
        yield iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b"")


def skip_blank_lines(
    rows: Iterator[tuple[int, Any]], found: Findings, *, skip: bool = False
) -> Iterator[tuple[int, Any]]:
    """The rows that are not empty; a blank line with others after it is a fault, unless it is to be skipped."""
    blank = several = 0
    for number, row in rows:
        if not row:
            blank, several = blank or number, several + 1
            continue
        if blank and skip:
            found.skipped += several
        elif blank:
            found.fault(f"line {blank}", "not be blank, because others follow; remove it")
        blank = several = 0
        yield number, row


def is_empty(value: object) -> bool:
    """Whether a cell is null, or a text of spaces alone."""
    return value is None or (isinstance(value, str) and not value.strip())


Reader = Callable[[Path, Columns, Findings], Generator[Row | None, None, None]]


def find_source(
    path: Path | str, file_format: FileFormat | None, *, delimiter: str | None, header: bool
) -> tuple[Path, FileFormat]:
    """Return the source and its format, which a delimiter must fit.

    Raises:
        UsageError: The format is none that is read, or a delimiter or a missing header is of another one.
    """
    kind = _find_format(Path(path), file_format)
    if (delimiter is not None or not header) and kind not in ("csv", "tsv"):
        raise UsageError(
            f"a delimiter, and columns without a header, must be of csv or tsv, got {kind}; leave them out"
        )
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n' or not is_unicode(delimiter)):
        raise UsageError("a delimiter must be one character, and no quote or line end; such as ; or a tab")
    return Path(path), kind


_FORMATS: Final[tuple[FileFormat, ...]] = get_args(FileFormat)


def _find_format(path: Path, file_format: FileFormat | None) -> FileFormat:
    packed = path.suffix.lower() in (".gz", ".zst")
    suffix = (Path(path.stem) if packed else path).suffix.lower().removeprefix(".")
    suffix = file_format or {"ndjson": "jsonl", "json": "jsonl"}.get(suffix, suffix)
    if packed and suffix in ("parquet", "dataset"):
        raise UsageError(f"a corpus in columns must not be compressed, got {suffix}; unpack it first")
    for known in _FORMATS:
        if suffix == known:
            return known
    if file_format is None and path.is_dir():  # what `save_to_disk` wrote has Arrow files alone
        return "parquet" if any(path.glob("*.parquet")) else "dataset"
    raise UsageError(
        f"the format of a corpus must be one of {', '.join(_FORMATS)}, got {suffix!r}; state it (`file_format`)"
    )
