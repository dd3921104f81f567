"""The user's own texts and file in numbers, for a preview and a statement: lengths, repetition, how often tokens come.

The file says how long its texts are and whether two of them left as the same tokens; the texts in clear say which
tokens come in many records, each of which adds its own loss. Both are read on this machine alone. What is counted is
private, but for what the file shows to anybody.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from rapt.local.corpus import read_corpus
from rapt.local.policy.policy import Policy
from rapt.local.retention import STOP_WORDS
from rapt.local.vocabulary import Vocabulary
from rapt.wire.privatized_file import list_privatized_texts, read_privatized_file

# Records that are encoded at once.
_CHUNK: Final = 512
# A token that comes in so many texts is released as often.
OFTEN: Final = 10


@dataclass(frozen=True, kw_only=True)
class OwnTexts:
    """Tokens of texts in clear, counted; private.

    Attributes:
        texts: Number of texts.
        counts: Number of times that each token comes.
        first: Tokens of the first texts.
        often: Tokens, stop words and marks apart, that come in ten texts or more.
        most: Largest number of texts that one such token comes in.
        alike: Texts whose tokens are those of an earlier one.
    """

    texts: int
    counts: Counter[int] = field(repr=False)
    first: tuple[tuple[int, ...], ...] = field(repr=False)
    often: int
    most: int
    alike: int


def count_own_texts(
    path: Path,
    vocabulary: Vocabulary,
    *,
    text_column: str = "text",
    shown: int = 0,
    policy: Policy | None = None,
) -> OwnTexts:
    """Count the tokens of a corpus as a policy leaves it, and keep those of the first `shown` texts.

    Raises:
        CorpusError: The corpus cannot be read.
        VocabularyError: The reasons of `Vocabulary.encode`.
    """
    counts: Counter[int] = Counter()
    holding: Counter[int] = Counter()
    first: list[tuple[int, ...]] = []
    seen: set[tuple[int, ...]] = set()
    position = alike = 0
    waiting: list[str] = []

    def count() -> None:
        nonlocal position, alike
        for ids in vocabulary.encode(waiting, first_position=position):
            text = tuple(ids)
            counts.update(text)
            holding.update(set(text))
            alike += text in seen
            seen.add(text)
            if len(first) < shown:
                first.append(text)
        position += len(waiting)
        waiting.clear()

    with closing(read_corpus(path, text_column=text_column, label_column=None, policy=policy)) as records:
        for record in records:
            waiting.append(record.text)
            if len(waiting) == _CHUNK:
                count()
    count()
    known = list(holding)
    telling = [
        holding[token]
        for token, written in zip(known, vocabulary.tokens(known), strict=True)
        if len(word := written.lstrip("\u2581\u0120").lower()) > 1 and word.isalpha() and word not in STOP_WORDS
    ]
    return OwnTexts(
        texts=position,
        counts=counts,
        first=tuple(first),
        often=sum(times >= OFTEN for times in telling),
        most=max(telling, default=0),
        alike=alike,
    )


@dataclass(frozen=True, kw_only=True)
class FileShape:
    """Shape of a privatized file, which shows anybody something of its texts.

    Attributes:
        texts: Texts that went through the mechanism, two for each record of a file of pairs.
        shortest, median, longest: Tokens of a text.
        alike: Texts that left as the same tokens as an earlier one of two tokens or more: equal texts, very likely.
    """

    texts: int
    shortest: int
    median: int
    longest: int
    alike: int


def measure_file(path: Path) -> FileShape:
    """The shape of a privatized file of tokens. Raises as `read_privatized_file`."""
    file = read_privatized_file(path)
    texts = [text for record in file.records for text in list_privatized_texts(record, file.manifest)]
    lengths = np.array([len(text) for text in texts])
    long = [text for text in texts if len(text) > 1]
    return FileShape(
        texts=len(texts),
        shortest=int(lengths.min()),
        median=int(np.quantile(lengths, 0.5, method="higher")),
        longest=int(lengths.max()),
        alike=len(long) - len(set(long)),
    )
