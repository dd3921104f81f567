"""How the rows of a table are written: words, and pieces of words."""

from __future__ import annotations

from functools import lru_cache

from rapt.errors import VocabularyError
from rapt.local.vocabulary import Vocabulary
from rapt.wire.vocabulary_bundle import VocabularyBundle


@lru_cache(maxsize=2)
def written_rows(bundle: VocabularyBundle) -> tuple[str, ...]:
    """The written form of each row of the table; empty where no token stands there."""
    vocabulary = Vocabulary(bundle)
    written = []
    for row in range(vocabulary.size):
        try:
            written += vocabulary.tokens([row])
        except VocabularyError:  # a table padded to a round number of rows
            written.append("")
    return tuple(written)
