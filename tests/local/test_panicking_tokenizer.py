"""The library of tokenizers may panic, which is no `Exception`: it is an error of the vocabulary all the same."""

import base64
import json

import numpy as np
import pytest

from rapt.errors import VocabularyError
from rapt.local.vocabulary import Vocabulary
from rapt.service.backbone.frame import make_tokenizer
from rapt.wire.model_files import no_panic
from rapt.wire.vocabulary_bundle import make_bundle

SECRET = "sesame"


def tokenizer_json(charsmap, *, pieces=False):
    words = {"[UNK]": 0, "a": 1, "b": 2}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    if pieces:
        model = {"type": "Unigram", "vocab": [["[UNK]", 0.0], ["a", -1.0], ["b", -1.0]], "unk_id": 0}
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "post_processor": None,
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
            "pre_tokenizer": {"type": "Whitespace"}, "decoder": None, "model": model,
        }
    ).encode()  # fmt: skip


# An empty table cannot be read; one whose only entry points outside of it is read, and fails at the first text.
AT_ONCE, AT_A_TEXT = b"", b"\x04\0\0\0\xff\xff\xff\xff"


def vocabulary(charsmap, *, pieces=False):
    table = np.eye(3, dtype=np.float32)
    content = tokenizer_json(charsmap, pieces=pieces)
    return Vocabulary(make_bundle(model="m", tokenizer_json=content, embeddings=table, max_tokens=8))


@pytest.mark.parametrize("pieces", [False, True])
def test_a_tokenizer_that_panics_when_it_is_read_is_no_tokenizer(pieces):
    made = vocabulary(AT_ONCE, pieces=pieces)
    for use in (made.encode, made.spans):
        with pytest.raises(VocabularyError, match=r"must be a Hugging Face tokenizer"):
            use([SECRET])
    for ids in (made.decode, made.tokens):
        with pytest.raises(VocabularyError, match=r"must be a Hugging Face tokenizer"):
            ids([1])
    with pytest.raises(VocabularyError, match=r"must be a Hugging Face tokenizer"):
        make_tokenizer(tokenizer_json(AT_ONCE, pieces=pieces))


@pytest.mark.parametrize("pieces", [False, True])
def test_a_tokenizer_that_panics_at_a_text_is_an_error_without_a_word_of_it(pieces):
    made = vocabulary(AT_A_TEXT, pieces=pieces)
    for use in (made.encode, made.spans):
        with pytest.raises(VocabularyError, match=r"must take any text, and failed") as refused:
            use([f"a {SECRET}"])
        assert SECRET not in str(refused.value)


def test_what_is_no_panic_goes_its_way():
    for error in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(error), no_panic():
            raise error
