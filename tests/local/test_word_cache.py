"""Words that are encoded once give the ids of whole texts, whatever the texts are and whatever is kept."""

import copy
import json
import pickle
from functools import cache
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapt.errors import CorpusError
from rapt.local import word_cache
from rapt.local.vocabulary import load_vocabulary
from rapt.local.word_cache import WordCache, works_on_words

# Accents that move, a sigma that knows its place, Chinese, Korean, control and zero-width characters, other spaces.
ODD = "a b  é e\u0301 \u0301\u0323 ΣΑΣ 电影 한국 [CLS] [ MASK ]##s don't İ ﬁ \t\n\x00\u200d\u00a0\u2003\ufffd🎬 "
texts = st.lists(st.text() | st.text(alphabet=ODD) | st.sampled_from(["", " ", ODD, "good film"]), max_size=6)


def whole(vocabulary, many):
    return [each.ids for each in vocabulary._tokenizer.encode_batch_fast(many, add_special_tokens=False)]


@cache
def vocabulary():
    return load_vocabulary("bert-tiny")


@settings(deadline=None, max_examples=300)
@given(many=texts)
def test_the_words_of_a_text_give_its_ids(many):
    bert_tiny = vocabulary()
    if any(0xD800 <= ord(letter) < 0xE000 for text in many for letter in text):
        return
    assert WordCache(bert_tiny._tokenizer).encode(many) == whole(bert_tiny, many)
    assert bert_tiny.encode(many) == [bert_tiny._content(ids, 0) for ids in whole(bert_tiny, many)]


@pytest.mark.parametrize(("text", "at"), [("films", 2), ("e\u0301te", 1), ("a zanzibar", 5)])
def test_a_cut_that_is_not_at_a_space_would_show(bert_tiny, text, at):
    pieces = whole(bert_tiny, [text[:at], text[at:]])
    assert whole(bert_tiny, [text]) != [list(chain.from_iterable(pieces))]


def test_what_was_kept_and_what_was_dropped_changes_no_id(bert_tiny, monkeypatch):
    monkeypatch.setattr(word_cache, "_MOST_WORDS", 8)
    cache = WordCache(bert_tiny._tokenizer)
    for start in range(60):
        many = [" ".join(f"film{(start + i) * i % 23}" for i in range(start % 12)), "good film"]
        assert cache.encode(many) == whole(bert_tiny, many)
        assert len(cache._kept) <= 8


def test_a_word_without_end_is_not_kept_and_encoded_all_the_same(bert_tiny):
    many = ["film " * 3 + "a!" * 200, "good"]
    assert WordCache(bert_tiny._tokenizer).encode(many) is None
    assert bert_tiny.encode(many) == whole(bert_tiny, many)


def test_no_word_of_a_text_travels_with_the_vocabulary(bert_tiny):
    own = copy.copy(bert_tiny)
    own.encode(["zanzibarsecret"])
    assert "zanzibarsecret" in own._words._kept
    assert b"zanzibarsecret" not in pickle.dumps(own)
    assert "zanzibarsecret" not in repr(own)
    assert pickle.loads(pickle.dumps(own)).encode(["good film"]) == own.encode(["good film"])


def test_an_error_still_says_where_it_is(bert_tiny):
    with pytest.raises(CorpusError, match="record 5 must be valid unicode"):
        bert_tiny.encode(["good", "bad \ud800"], first_position=3)


@pytest.mark.parametrize(
    ("change", "works"),
    [
        ({}, True),
        ({"pre_tokenizer": {"type": "Whitespace"}}, False),
        ({"normalizer": None}, False),
        ({"model": {"type": "BPE"}}, False),
        ({"added_tokens": [{"content": "New York", "special": False}]}, False),
    ],
)
def test_only_tokenizers_of_berts_kind_are_taken_word_by_word(bert_tiny, change, works):
    described = json.loads(bert_tiny.bundle.tokenizer_json)
    assert works_on_words(json.dumps(described | change).encode()) is works
