"""Public texts as token ids: cut to the length of a sentence, each once, a part held out to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapt.errors import CorpusError
from rapt.local.corpus import read_corpus
from rapt.local.vocabulary import Vocabulary

# Shorter texts have no context to learn from; longer ones are cut into windows, which cost less than their square.
SHORTEST: Final = 4
WINDOW: Final = 48
# Texts held out: enough for a figure to two digits, too few to be missed.
MOST_HELD_OUT: Final = 512
LEAST_TEXTS: Final = 64


@dataclass(frozen=True, kw_only=True)
class PublicTexts:
    """Content tokens of public texts; no window is in both parts."""

    training: tuple[tuple[int, ...], ...]
    held_out: tuple[tuple[int, ...], ...]


def read_public_texts(files: Iterable[Path], *, vocabulary: Vocabulary, text_column: str = "text") -> PublicTexts:
    """The windows of all files, in the order of a hash, a twentieth of them held out.

    Raises:
        CorpusError: A file cannot be read, or all of them hold fewer than `LEAST_TEXTS` windows.
    """
    found: dict[tuple[int, ...], bytes] = {}
    for path in files:
        texts = [record.text for record in read_corpus(path, text_column=text_column, label_column=None)]
        for ids in vocabulary.encode(texts):
            for start in range(0, len(ids), WINDOW):
                window = tuple(ids[start : start + WINDOW])
                if len(window) >= SHORTEST:
                    found.setdefault(window, hashlib.sha256(repr(window).encode()).digest())
    if len(found) < LEAST_TEXTS:
        raise CorpusError(
            f"a warm-up needs at least {LEAST_TEXTS} different public texts of {SHORTEST} tokens, got {len(found)}; "
            "add public text"
        )
    ordered = sorted(found, key=found.__getitem__)
    held_out = min(MOST_HELD_OUT, len(ordered) // 20 + 1)
    return PublicTexts(training=tuple(ordered[held_out:]), held_out=tuple(ordered[:held_out]))
