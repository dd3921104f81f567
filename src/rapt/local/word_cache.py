"""Token ids of the words seen last: a WordPiece tokenizer spends its time on the same few thousand words.

Only for tokenizers that work on each word by itself, so that the ids of a text are those of its words, one after the
other: BERT's normalizer treats characters one by one (its decomposition reorders accents, and none moves over a space),
its pre-tokenizer splits at every space, and WordPiece sees one piece of that at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from tokenizers import Tokenizer

# At most this many words of this many characters: 20 MB of usual ones.
_MOST_WORDS: Final = 2**16
_LONGEST_WORD: Final = 256


class WordCache:
    """Encodes texts word by word, and keeps the ids of words.

    The words are private: they stay in this process, and a pickled copy starts empty. No id depends on what is kept.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Nothing is kept yet; the tokenizer must be one that `works_on_words`."""
        self._tokenizer = tokenizer
        self._kept: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """An empty one with the same tokenizer."""
        return WordCache, (self._tokenizer,)

    def encode(self, texts: Sequence[str]) -> list[list[int]] | None:
        """The ids of each text, without special tokens; None where a word is too long to be kept.

        Raises:
            Exception: The tokenizer refuses a text; its message may quote it.
        """
        split = [text.split(" ") for text in texts]
        kept = self._kept
        new = {word for words in split for word in words if word not in kept}
        if new:
            if max(map(len, new)) > _LONGEST_WORD:
                return None
            if len(kept) + len(new) > _MOST_WORDS:
                # Begin anew. Another thread may still read the old one, so that is left as it is.
                kept, new = {}, {word for words in split for word in words}
            listed = list(new)
            encodings = self._tokenizer.encode_batch_fast(listed, add_special_tokens=False)
            kept.update(zip(listed, (encoding.ids for encoding in encodings), strict=True))
            self._kept = kept if len(kept) <= _MOST_WORDS else {}
        return [[token for word in words for token in kept[word]] for words in split]


def works_on_words(tokenizer_json: bytes) -> bool:
    """Whether the tokenizer is of BERT's kind, and adds nothing to its vocabulary but control tokens."""
    described = json.loads(tokenizer_json)
    kinds = {part: (described.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")}
    return kinds == {
        "normalizer": "BertNormalizer",
        "pre_tokenizer": "BertPreTokenizer",
        "model": "WordPiece",
    } and all(added.get("special") is True for added in described.get("added_tokens") or ())
