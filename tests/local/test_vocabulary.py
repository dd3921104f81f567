import shutil

import pytest

from rapt.errors import CorpusError, VocabularyError, WireError
from rapt.local.vocabulary import load_vocabulary
from rapt.public_models import model_directory
from rapt.wire.vocabulary_bundle import write_bundle


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


def test_a_model_folder_is_named_after_itself_and_has_the_same_hash(bert_tiny, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(model_directory("bert-tiny") / name, folder / name)
    loaded = load_vocabulary(str(folder))
    assert (loaded.model, loaded.hash) == ("mine", bert_tiny.hash)


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
