"""A vocabulary: ids and texts; words that are encoded once; a tokenizer that panics, which is no `Exception`."""

import base64
import copy
import json
import pickle
import shutil
from functools import cache
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapt.errors import CorpusError, VocabularyError, WireError
from rapt.local import vocabulary as vocabulary_module
from rapt.local.vocabulary import Vocabulary, WordCache, load_vocabulary, works_on_words
from rapt.public_models import find_model_folder
from rapt.wire.model_files import catch_panic, make_tokenizer
from rapt.wire.vocabulary_bundle import make_bundle, write_bundle


@pytest.fixture(scope="module")
def minilm():
    return load_vocabulary("minilm")


def test_minilm_has_its_table_and_its_limit(minilm):
    assert (minilm.model, minilm.size, minilm.dimension, minilm.bundle.max_tokens) == ("minilm", 30522, 384, 512)
    assert minilm.embeddings.shape == (30522, 384)
    assert minilm.hash.startswith("sha256:")
    assert len(minilm.eligible) == 29523  # 30,522 rows without 5 special and 994 unused tokens


def test_nothing_is_cut_off_filled_up_or_added(minilm):
    # MiniLM's tokenizer.json says: cut at 128, fill up to 128 with [PAD], put [CLS] and [SEP] around.
    assert [len(ids) for ids in minilm.encode(["good " * 600, "good"])] == [600, 1]


def test_a_literal_special_token_in_a_text_is_text(bert_tiny):
    ids = bert_tiny.encode(["a [CLS] b [SEP] [PAD] [MASK]"])[0]
    assert bert_tiny.tokens(ids)[:5] == ["a", "[", "cl", "##s", "]"]
    assert not {0, 101, 102, 103} & set(ids)


def test_a_word_without_tokens_is_the_unknown_token(bert_tiny):
    assert bert_tiny.tokens(bert_tiny.encode(["so 🎉 good"])[0]) == ["so", "[UNK]", "good"]


@pytest.mark.parametrize("text", ["你好，世界", "שלום עולם", "مرحبا", "naïve café", "a\u200bb", "x" * 100_000, "\x00"])
def test_any_unicode_text_is_tokenized(bert_tiny, text):
    ids = bert_tiny.encode([text])[0]
    assert all(0 <= i < bert_tiny.size for i in ids)


def test_no_text_and_an_empty_text(bert_tiny):
    assert bert_tiny.encode([]) == []
    assert bert_tiny.encode([""]) == [[]]


def test_a_lone_surrogate_is_refused_by_its_position(bert_tiny):
    with pytest.raises(CorpusError, match="record 12 must be valid unicode text") as caught:
        bert_tiny.encode(["fine", "secretword \ud800"], first_position=10)
    assert "secretword" not in str(caught.value)


def test_decode_is_readable(bert_tiny):
    assert bert_tiny.decode(bert_tiny.encode(["Unbelievable, friends!"])[0]) == "unbelievable, friends!"


def test_the_written_form_of_an_id_outside_is_refused(bert_tiny):
    with pytest.raises(VocabularyError, match="token 1 must be in the vocabulary"):
        bert_tiny.tokens([2000, 30522])


def test_a_bundle_folder_gives_the_same_vocabulary(bert_tiny, tmp_path):
    write_bundle(bert_tiny.bundle, tmp_path / "bundle")
    again = load_vocabulary(str(tmp_path / "bundle"))
    assert (again.hash, again.model) == (bert_tiny.hash, "bert-tiny")
    assert again.encode(["the same"]) == bert_tiny.encode(["the same"])


def test_a_model_folder_is_named_after_what_it_holds_and_has_the_same_hash(bert_tiny, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(find_model_folder("bert-tiny") / name, folder / name)
    loaded = load_vocabulary(str(folder))
    assert (loaded.model, loaded.hash) == (f"model-{bert_tiny.hash.removeprefix('sha256:')[:12]}", bert_tiny.hash)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(VocabularyError, match="a model must be a known name or a folder"):
        load_vocabulary("bert-enormous")


def test_a_tokenizer_that_is_none_is_refused(bert_tiny, tmp_path):
    from dataclasses import replace

    from rapt.local.vocabulary import Vocabulary

    broken = Vocabulary(replace(bert_tiny.bundle, tokenizer_json=b"{}"))
    with pytest.raises(VocabularyError, match=r"tokenizer\.json of model='bert-tiny' must be"):
        broken.encode(["text"])


def test_a_bundle_of_another_version_is_refused(bert_tiny, tmp_path):
    write_bundle(bert_tiny.bundle, tmp_path)
    description = tmp_path / "vocabulary.json"
    description.write_text(description.read_text().replace("rapt.vocabulary/1", "rapt.vocabulary/9"))
    with pytest.raises(WireError, match="must be of schema"):
        load_vocabulary(str(tmp_path))


# Accents that move, a sigma that knows its place, Chinese, Korean, control and zero-width characters, other spaces.
ODD = "a b  é e\u0301 \u0301\u0323 ΣΑΣ 电影 한국 [CLS] [ MASK ]##s don't İ ﬁ \t\n\x00\u200d\u00a0\u2003\ufffd🎬 "
texts = st.lists(st.text() | st.text(alphabet=ODD) | st.sampled_from(["", " ", ODD, "good film"]), max_size=6)


def whole(vocabulary, many):
    return [each.ids for each in vocabulary._tokenizer.encode_batch_fast(many, add_special_tokens=False)]


@cache
def tiny_vocabulary():
    return load_vocabulary("bert-tiny")


@settings(deadline=None, max_examples=300)
@given(many=texts)
def test_the_words_of_a_text_give_its_ids(many):
    bert_tiny = tiny_vocabulary()
    if any(0xD800 <= ord(letter) < 0xE000 for text in many for letter in text):
        return
    assert WordCache(bert_tiny._tokenizer).encode(many) == whole(bert_tiny, many)
    assert bert_tiny.encode(many) == [bert_tiny._list_content(ids, 0) for ids in whole(bert_tiny, many)]


@pytest.mark.parametrize(("text", "at"), [("films", 2), ("e\u0301te", 1), ("a zanzibar", 5)])
def test_a_cut_that_is_not_at_a_space_would_show(bert_tiny, text, at):
    pieces = whole(bert_tiny, [text[:at], text[at:]])
    assert whole(bert_tiny, [text]) != [list(chain.from_iterable(pieces))]


def test_what_was_kept_and_what_was_dropped_changes_no_id(bert_tiny, monkeypatch):
    monkeypatch.setattr(vocabulary_module, "_MOST_WORDS", 8)
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


def charsmap_vocabulary(charsmap, *, pieces=False):
    table = np.eye(3, dtype=np.float32)
    content = tokenizer_json(charsmap, pieces=pieces)
    return Vocabulary(make_bundle(model="m", tokenizer_json=content, embeddings=table, max_tokens=8))


@pytest.mark.parametrize("pieces", [False, True])
def test_a_tokenizer_that_panics_when_it_is_read_is_no_tokenizer(pieces):
    made = charsmap_vocabulary(AT_ONCE, pieces=pieces)
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
    made = charsmap_vocabulary(AT_A_TEXT, pieces=pieces)
    for use in (made.encode, made.spans):
        with pytest.raises(VocabularyError, match=r"must take any text, and failed") as refused:
            use([f"a {SECRET}"])
        assert SECRET not in str(refused.value)


def test_what_is_no_panic_goes_its_way():
    for error in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(error), catch_panic():
            raise error
