"""Where the tokens of texts lie when the texts stand one after another, and which texts are read in one batch.

How the rows of a table are written: words, and pieces of words.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError
from rapt.local.vocabulary import Vocabulary
from rapt.wire.vocabulary_bundle import VocabularyBundle

Ints = NDArray[np.int64]


def number_tokens(lengths: Ints) -> Ints:
    """Place of each token within its own text, from 0, (n,)."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def pad_places(lengths: Ints, group: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Places of the tokens of some texts among all tokens, and which are any, (B, T) each.

    Behind its end a text has the place of its first token.

    Args:
        lengths: Tokens of each text.
        group: Texts, (B,); none is empty.
    """
    starts = (np.cumsum(lengths) - lengths)[group, None]
    along = np.arange(int(lengths[group].max()))
    inside = along < lengths[group, None]
    return np.where(inside, starts + along, starts), inside


def batch_texts(lengths: Ints, texts: Ints, *, together: int) -> Iterator[Ints]:
    """Texts of nearly one length, up to `together` of them; those without tokens are left out.

    Args:
        lengths: Tokens of each text.
        texts: Texts to choose from; texts of one length come in this order.
        together: Texts of a batch.
    """
    texts = texts[lengths[texts] > 0]
    ordered = texts[np.argsort(lengths[texts], kind="stable")]
    for start in range(0, len(ordered), together):
        yield ordered[start : start + together]


@lru_cache(maxsize=2)
def write_rows(bundle: VocabularyBundle) -> tuple[str, ...]:
    """The written form of each row of the table; empty where no token stands there."""
    vocabulary = Vocabulary(bundle)
    written = []
    for row in range(vocabulary.size):
        try:
            written += vocabulary.tokens([row])
        except VocabularyError:  # a table padded to a round number of rows
            written.append("")
    return tuple(written)


_PIECE: Final = "##"
_STARTS: Final = ("\u2581", "\u0120")  # sentencepiece, byte-level BPE


@lru_cache(maxsize=2)
def mark_pieces(bundle: VocabularyBundle) -> NDArray[np.bool_]:
    """Whether each row of the table goes on the word before it, (V,)."""
    written = write_rows(bundle)
    marked = any(name.startswith(_STARTS) for name in written)
    return np.array([not name.startswith(_STARTS) if marked else name.startswith(_PIECE) for name in written])
