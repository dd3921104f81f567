"""Vocabularies small enough to work out by hand: a table, one word a row."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import ArrayLike

from rapt.local.vocabulary import Vocabulary
from rapt.wire.vocabulary_bundle import make_bundle


def toy_vocabulary(table: ArrayLike, *, special: tuple[int, ...] = (), max_tokens: int = 64) -> Vocabulary:
    """Row i of the table is `toy_word(i)`; the rows in `special` are special tokens, the first [UNK].

    As around a text of BERT, two special tokens go around one of these.
    """
    rows = np.asarray(table, dtype=np.float32)
    names = [toy_word(i) for i in range(len(rows))]
    for place, row in enumerate(special):
        names[row] = "[UNK]" if place == 0 else f"[SPECIAL{place}]"
    added = [
        {
            "id": row,
            "content": names[row],
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for row in special
    ]
    unknown = names[special[0]] if special else names[0]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "cls": [names[0], 0], "sep": [names[0], 0]},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(names)}, "unk_token": unknown},
    }
    bundle = make_bundle(
        model="toy", tokenizer_json=json.dumps(tokenizer).encode(), embeddings=rows, max_tokens=max_tokens
    )
    return Vocabulary(bundle)


def toy_word(row: int) -> str:
    """The word of a row: `w` and the row's number in letters."""
    return "w" + "".join(chr(ord("a") + int(digit)) for digit in str(row))
