"""Folders as people have them: what is missing is named before any work, and a list of words becomes a tokenizer."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import BertTokenizer

from rapt.errors import VocabularyError
from rapt.public_models import find_model_folder
from rapt.wire.model_folder import read_folder
from rapt.wire.vocabulary_bundle import read_model_bundle
from tokenizer_zoo import bert, smollm2

CLS = {"__type": "AddedToken", "content": "[CLS]", "lstrip": False, "rstrip": False, "normalized": False}
TEXTS = ("The FILM was good!", "Käse, naïve façade", "你好 world", "[MASK] and [SEP]", "a\tb\x00c", "x" * 120)


@pytest.fixture
def old(tmp_path):
    """A BERT of the years before tokenizer.json: its words in the order of their ids."""
    folder = bert(tmp_path / "old")
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").rename(folder / "before.json")
    return folder


@pytest.mark.parametrize(
    "settings", [{}, {"do_lower_case": False}, {"strip_accents": False, "tokenize_chinese_chars": False}]
)
def test_a_list_of_words_tokenizes_as_the_library_makes_it(old, settings):
    (old / "tokenizer_config.json").write_text(json.dumps(settings | {"cls_token": CLS}))
    made = read_folder(find_model_folder(str(old)), model="old").tokenizer_json
    theirs = BertTokenizer.from_pretrained(str(old), **settings)
    ours = Tokenizer.from_str(made.decode())
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.encode("a film", "good").ids == theirs("a film", "good")["input_ids"]
    assert ours.decode(ours.encode("the film was good").ids) == "the film was good"
    assert made == read_folder(old, model="old").tokenizer_json


def test_a_list_of_words_gives_the_vocabulary_of_the_same_tokenizer(old):
    found = read_model_bundle(old, model="old")
    (old / "tokenizer.json").write_bytes((old / "before.json").read_bytes())
    new = read_model_bundle(old, model="new")
    assert found.eligible.tolist() == new.eligible.tolist()
    assert (found.embeddings == new.embeddings).all()
    assert found.special_tokens == new.special_tokens == 2


def remove_shard(folder):
    next(folder.glob("model-00002-*")).unlink()


def pickle_weights(folder):
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def forget_weights(folder):
    for path in folder.glob("model*.safetensors*"):
        path.unlink()


def forget_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def change_tokenizer(folder):
    forget_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"\n")


def put_a_code_there(folder):
    (folder / "config.json").unlink()
    (folder / "code.json").write_text("{}")


def shrink_table(folder):
    (folder / "tokenizer.json").write_bytes((bert(folder.parent / "other") / "tokenizer.json").read_bytes())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove_shard, r"every file that its index names, got 1 too few, .* model-00002-of-00002\.safetensors"),
        (pickle_weights, r"in its folder: python -c \"from transformers import LlamaForCausalLM as M; "),
        (forget_weights, r"must have config\.json, tokenizer\.json and model\.safetensors"),
        (forget_tokenizer, r"or the vocab\.txt of a BERT; install it again"),
        (change_tokenizer, r"import AutoTokenizer as T; T\.from_pretrained\('\.'\)\.save_pretrained"),
        (put_a_code_there, r"must be a model, got a code of whole texts; name a model, or .* with `codes`"),
        (shrink_table, r"a tokenizer must fit its embedding table, got ids up to \d+ for \d+ rows"),
    ],
)
def test_what_a_folder_lacks_is_one_line_with_a_way_out(tmp_path, damage, says):
    folder = smollm2(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    damage(folder)
    with pytest.raises(VocabularyError, match=says) as refused:
        read_model_bundle(folder, model="mine")
    assert "\n" not in str(refused.value)


def test_the_command_of_an_error_holds_no_word_of_a_config(tmp_path):
    folder = smollm2(tmp_path / "model")
    pickle_weights(folder)
    (folder / "config.json").write_text(json.dumps({"architectures": ["X; import os"]}))
    with pytest.raises(VocabularyError, match="import AutoModel as M"):
        read_model_bundle(folder, model="mine")


@pytest.mark.parametrize("settings", ['{"cls_token": 3}', "[]", '{"unk_token": "absent"}'])
def test_settings_that_fit_no_list_of_words_are_refused(old, settings):
    (old / "tokenizer_config.json").write_text(settings)
    with pytest.raises(VocabularyError, match=r"or the vocab\.txt of a BERT"):
        read_folder(old, model="old")
