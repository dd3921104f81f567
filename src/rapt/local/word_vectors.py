"""Word vectors in the text format of GloVe, word2vec and fastText as a vocabulary: a word a line, then its numbers.

The first line may be a header of two whole numbers, words and dimension. Fields have one space between them. A text is
split at white space and around each punctuation mark. A word outside the table never leaves as it is: it becomes [UNK],
whose row is the mean of all rows, and is privatized like any other token; or, on request (`Vocabulary.unknown`), the
text is refused. [UNK], `</s>` and their like are never an output.

The file is read twice, line by line, so memory stays at the table, its words and one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError
from rapt.wire.vocabulary_bundle import VocabularyBundle, make_bundle

UNKNOWN: Final = "[UNK]"
# No model bounds a text here. With ids of 7 digits a record stays far below the longest line of a privatized file.
_MAX_TOKENS: Final = 100_000
# 4,096 numbers of 20 characters are 80 KB.
_MOST_LINE_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 64 * 1024
# Rows that mark ends or gaps of the training text; our own unknown token stands for all of them.
_MARKS: Final = frozenset({"<s>", "</s>", "<unk>", "<UNK>", "<pad>", "<PAD>"})


def read_word_vectors(path: Path, *, lowercase: bool | None = None) -> VocabularyBundle:
    """The bundle of a file of word vectors; its model is named after the file.

    Args:
        path: A text file in UTF-8.
        lowercase: Whether texts are lower-cased before they are looked up; None does so when no word of the file has an
            upper-case letter.

    Raises:
        VocabularyError: The file cannot be read, or a line is damaged; named by its number, never by what it holds.
    """
    try:
        with path.open("rb") as stream:
            lines = _count_lines(stream)
            stream.seek(0)
            words, table = _read_rows(stream, lines)
    except OSError as error:
        raise VocabularyError(
            f"word vectors must be readable, got {error.strerror or type(error).__name__}; check the path"
        ) from None
    if lowercase is None:
        lowercase = all(word == word.lower() for word in words)
    tokenizer = _tokenizer(words, lowercase=lowercase)
    return make_bundle(model=path.stem, tokenizer_json=tokenizer, embeddings=table, max_tokens=_MAX_TOKENS)


def _count_lines(stream: IO[bytes]) -> int:
    lines, last = 0, b"\n"
    while block := stream.read(_BLOCK_BYTES):
        lines += block.count(b"\n")
        last = block[-1:]
    return lines + (last != b"\n")


def _read_rows(stream: IO[bytes], lines: int) -> tuple[dict[str, int], NDArray[np.float32]]:
    """The words with their rows, and the table with one row more: the mean, for [UNK]."""
    rows = _fields(stream)
    _, first = next(rows, (0, []))
    if not first:
        raise VocabularyError("word vectors must have at least one line, got an empty file; check the path")
    header = len(first) == 2 and all(field.isascii() and field.isdigit() for field in first)
    expected, width = (int(first[0]), int(first[1])) if header else (lines, len(first) - 1)
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
    for number, fields in rows if header else chain([(1, first)], rows):
        if len(fields) != width + 1:
            raise VocabularyError(
                f"line {number} of the word vectors must have a word and {width} numbers, got {len(fields) - 1}; "
                "mend it"
            )
        if table is None:  # only after one line was as wide as it should be
            table = np.empty((expected + 1, width), dtype=np.float32)
        word = fields[0]
        if word in words:
            raise VocabularyError(
                f"line {number} of the word vectors must have another word than those before; remove the line"
            )
        if word in ("", UNKNOWN):
            raise VocabularyError(
                f"line {number} of the word vectors must have a word, and none that is {UNKNOWN}; remove the line"
            )
        table[len(words)] = _numbers(fields[1:], number)
        words[word] = len(words)
    assert table is not None
    table[-1] = table[:-1].mean(axis=0, dtype=np.float64)
    return words, table


def _fields(stream: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
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


def _numbers(fields: list[str], number: int) -> NDArray[np.float32]:
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


def _tokenizer(words: dict[str, int], *, lowercase: bool) -> bytes:
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
