"""Word vectors of GloVe, word2vec and fastText as a vocabulary: text with a word a line, or the binary format.

The first line may be a header of two whole numbers, words and dimension. Fields have one space between them; a word may
hold spaces, as a few of GloVe do: the last fields are its numbers. A word that comes again is left out, so the first
one counts, which is said; blank lines may end the file. A file compressed with gzip is read as it is. The binary
format is that of word2vec: the header, then each word, a space and its numbers as little-endian float32.

A text is split at white space and around each punctuation mark. A word outside the table never leaves as it is: it
becomes [UNK], whose row is the mean of all rows, and is privatized like any other token; or, on request
(`Vocabulary.unknown`), the text is refused. [UNK], `</s>` and their like are never an output.

The file is read twice, a line or a row at a time, so memory stays at the table, its words and one line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError
from rapt.wire.vocabulary_bundle import VocabularyBundle, make_bundle, shorten_hash

UNKNOWN: Final = "[UNK]"
# No model bounds a text here. With ids of 7 digits a record stays far below the longest line of a privatized file.
_MAX_TOKENS: Final = 100_000
# 4,096 numbers of 20 characters are 80 KB.
_MOST_LINE_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 64 * 1024
_MOST_HEADER_BYTES: Final = 64
_MOST_WORD_BYTES: Final = 4096
_LINES_TO_COMPARE: Final = 1000
# Bytes that float32 numbers have among them, and lines of text do not.
_OF_NO_TEXT: Final = frozenset(range(32)) - frozenset(b"\t\n\r")
# Rows that mark ends or gaps of the training text; our own unknown token stands for all of them.
_MARKS: Final = frozenset({"<s>", "</s>", "<unk>", "<UNK>", "<pad>", "<PAD>"})


def read_word_vectors(
    path: Path | str, *, lowercase: bool | None = None, remark: Callable[[str], None] | None = None
) -> VocabularyBundle:
    """The bundle of a file of word vectors; its model is named after what the file holds, for its name may be private.

    Args:
        path: A text file in UTF-8 or word2vec's binary format; either may be compressed with gzip.
        lowercase: Whether texts are lower-cased before they are looked up; None does so when no word of the file has an
            upper-case letter.
        remark: Called with what was left out of the table: words that came again, blank lines at the end.

    Raises:
        VocabularyError: The file cannot be read, or a line is damaged; named by its number, never by what it holds.
    """
    path = Path(path)
    try:
        with _open_file(path) as stream:
            lines, size = _measure(stream)
            stream.seek(0)
            binary = _is_binary(stream)
            stream.seek(0)
            words, table, left_out = _read_binary(stream, size) if binary is not None else _read_rows(stream, lines)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged or cut off data"
        raise VocabularyError(f"word vectors must be readable, got {reason}; check the path") from None
    if remark is not None and left_out:
        remark(f"{left_out:,} words of the vectors came again, and were left out: the first of each counts")
    if lowercase is None:
        lowercase = all(word == word.lower() for word in words)
    tokenizer = _make_tokenizer(words, lowercase=lowercase)
    bundle = make_bundle(model="word-vectors", tokenizer_json=tokenizer, embeddings=table, max_tokens=_MAX_TOKENS)
    return replace(bundle, model=f"word-vectors-{shorten_hash(bundle.hash)}")


def _open_file(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if compressed else path.open("rb")


def _measure(stream: IO[bytes]) -> tuple[int, int]:
    """How many lines there are up to the last one that is not blank, and how many bytes."""
    lines = written = size = 0
    open_line = False
    while block := stream.read(_BLOCK_BYTES):
        size += len(block)
        *whole, rest = block.split(b"\n")
        for piece in whole:
            open_line = open_line or not _is_blank(piece)
            lines += 1
            written = lines if open_line else written
            open_line = False
        open_line = open_line or not _is_blank(rest)
    return (lines + 1 if open_line else written), size


def _is_blank(piece: bytes) -> bool:
    return not piece.strip(b" \r")


def _is_binary(stream: IO[bytes]) -> tuple[int, int] | None:
    """The words and the dimension of a file in word2vec's binary format; None for another one."""
    header = stream.readline(_MOST_HEADER_BYTES).split()
    if len(header) != 2 or not all(field.isdigit() for field in header):
        return None
    words, width = int(header[0]), int(header[1])
    if not 0 < width <= _MOST_LINE_BYTES // 4:
        return None
    _, space, row = stream.read(_MOST_WORD_BYTES + 4 * width).partition(b" ")
    row = row[: 4 * width]
    return (words, width) if space and len(row) == 4 * width and not _OF_NO_TEXT.isdisjoint(row) else None


def _read_binary(stream: IO[bytes], size: int) -> tuple[dict[str, int], NDArray[np.float32], int]:
    """Return what `_read_rows` does, read from the binary format."""
    count, width = (int(field) for field in stream.readline(_MOST_HEADER_BYTES).split())
    if count < 1 or count * (4 * width + 2) > size:
        raise VocabularyError(
            f"the header of the word vectors must count them, got {count} words of {width} numbers for {size} bytes; "
            "the file is cut off or edited"
        )
    words: dict[str, int] = {}
    table = np.empty((count + 1, width), dtype=np.float32)
    for number in range(1, count + 1):
        word = bytearray()
        while (letter := stream.read(1)) != b" ":
            if not letter or len(word) > _MOST_WORD_BYTES:
                raise VocabularyError(
                    f"word {number} of the word vectors must end with a space; the file is cut off or edited"
                )
            word += letter
        read = stream.read(4 * width)
        row = np.frombuffer(read if len(read) == 4 * width else b"", dtype="<f4")
        try:
            name = word.lstrip(b"\n").decode("utf-8")
        except UnicodeDecodeError:  # its message quotes the bytes
            name = ""
        if not name or name == UNKNOWN or len(row) != width or not np.isfinite(row).all():
            raise VocabularyError(
                f"word {number} of the word vectors must be utf-8 text, not {UNKNOWN}, with {width} finite numbers; "
                "the file is cut off or edited"
            )
        if name not in words:
            table[len(words)] = row
            words[name] = len(words)
    return words, _add_mean(table, len(words)), count - len(words)


def _add_mean(table: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """The rows that are filled, and one more: their mean, for [UNK]."""
    table[rows] = table[:rows].mean(axis=0, dtype=np.float64)
    return table[: rows + 1]


def _read_rows(stream: IO[bytes], lines: int) -> tuple[dict[str, int], NDArray[np.float32], int]:
    """The words with their rows, the table with one row more, and how many words came again."""
    _, first = next(_iterate_fields(stream), (0, []))
    if not lines:
        raise VocabularyError("word vectors must have at least one line, got an empty file; check the path")
    header = len(first) == 2 and all(field.isascii() and field.isdigit() for field in first)
    stream.seek(0)
    # A word with spaces makes its line longer, so the width is that of most lines.
    lengths = Counter(len(fields) for _, fields in islice(_iterate_fields(stream), min(lines, _LINES_TO_COMPARE)))
    usual = lengths.most_common(1)[0][0]
    stream.seek(0)
    expected, width = (int(first[0]), int(first[1])) if header else (lines, usual - 1)
    if expected != lines - header:
        raise VocabularyError(
            f"the header of the word vectors must count them, got {expected} for {lines - header} lines; "
            "the file is cut off or edited"
        )
    if width < 1:
        raise VocabularyError(
            "line 1 of the word vectors must be a word and its numbers, or words and dimension; give the text format"
        )
    # A line has at least two bytes a number, so what the header says cannot ask for more memory than the file has.
    if width * 2 > _MOST_LINE_BYTES or expected < 1:
        raise VocabularyError(f"word vectors must be some lines of some numbers, got {expected} lines of {width}")
    words: dict[str, int] = {}
    table: NDArray[np.float32] | None = None
    for number, fields in islice(_iterate_fields(stream), int(header), lines):
        parts = fields[:-width]
        # Else a number too many would become a part of the word.
        if len(fields) <= width or (len(parts) > 1 and _is_number(parts[-1])):
            raise VocabularyError(
                f"line {number} of the word vectors must have a word and {width} numbers, got {len(fields) - 1}; "
                "mend it"
            )
        if table is None:  # only after one line was as wide as it should be
            table = np.empty((expected + 1, width), dtype=np.float32)
        word = " ".join(parts)
        if word.strip() == "" or word == UNKNOWN:
            raise VocabularyError(
                f"line {number} of the word vectors must have a word, and none that is {UNKNOWN}; remove the line"
            )
        row = _parse_numbers(fields[-width:], number)
        if word not in words:
            table[len(words)] = row
            words[word] = len(words)
    assert table is not None
    return words, _add_mean(table, len(words)), expected - len(words)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _iterate_fields(stream: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line; fastText leaves a space at the end of each."""
    number = 0
    while line := stream.readline(_MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > _MOST_LINE_BYTES:
            raise VocabularyError(
                f"line {number} of the word vectors must be at most {_MOST_LINE_BYTES} bytes; give the text format"
            )
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            # The decoder's own message quotes the bytes: it is dropped on purpose.
            raise VocabularyError(
                f"line {number} of the word vectors must be utf-8 text; convert the file, binary formats too"
            ) from None
        yield number, text.rstrip(" \r\n").split(" ")


def _parse_numbers(fields: list[str], number: int) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # a number too large becomes inf, which is refused below
            row = np.array([float(field) for field in fields], dtype=np.float64).astype(np.float32)
    except ValueError:
        raise VocabularyError(
            f"line {number} of the word vectors must have numbers after its word; mend or remove the line"
        ) from None
    if not np.isfinite(row).all():
        raise VocabularyError(
            f"line {number} of the word vectors must have finite numbers, got nan or inf; mend or remove the line"
        )
    return row


def _make_tokenizer(words: dict[str, int], *, lowercase: bool) -> bytes:
    """A `tokenizer.json`: words at white space and punctuation, joined again with a space between them."""
    special = [(UNKNOWN, len(words)), *((word, row) for word, row in words.items() if word in _MARKS)]
    description: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": row, "content": word, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for word, row in sorted(special, key=lambda item: item[1])
        ],
        "normalizer": {"type": "Lowercase"} if lowercase else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"}],
        },
        "post_processor": None,
        # Joins with spaces, none before a full stop. No word begins with this prefix, so no two are glued together.
        "decoder": {"type": "WordPiece", "prefix": "\0", "cleanup": True},
        "model": {"type": "WordLevel", "vocab": words | {UNKNOWN: len(words)}, "unk_token": UNKNOWN},
    }
    return json.dumps(description, ensure_ascii=False).encode("utf-8")
