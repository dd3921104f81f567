"""GGUF files by hand: every quantization in closed form, rotary positions as a law, a whole model that computes."""

import hashlib
import json
import struct

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers

from gguf_writer import F16, F32, Q4_0, Q4_1, Q8_0, write_gguf
from rapt.conversion.gguf_file import read_gguf
from rapt.conversion.gguf_llama import convert_llama, reorder_halves
from rapt.errors import VocabularyError
from rapt.local.vocabulary import load_vocabulary
from rapt.public_models import PUBLIC_MODELS
from rapt.service.backbone.backbone import load_backbone
from rapt.service.backbone.layout import encode_with_prompts, lay_out

# A block of 4-bit numbers: byte i holds number i in its low half and number i + 16 in its high half.
NIBBLES = bytes((i % 16) | ((15 - i % 16) << 4) for i in range(16))
WHOLE = np.array([i % 16 for i in range(16)] + [15 - i % 16 for i in range(16)], dtype=np.float32)
HALF = struct.pack("<e", 0.5)


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        (F32, np.arange(32, dtype="<f4").tobytes(), np.arange(32)),
        (F16, np.arange(32, dtype="<f2").tobytes(), np.arange(32)),
        (Q4_0, HALF + NIBBLES, 0.5 * (WHOLE - 8)),
        (Q4_1, HALF + struct.pack("<e", -3.25) + NIBBLES, 0.5 * WHOLE - 3.25),
        (Q8_0, HALF + bytes(range(112, 144)), 0.5 * np.r_[112:128, -128:-112]),
    ],
)
def test_a_block_is_what_its_format_says(tmp_path, kind, raw, expected):
    tensors = {"before": ((1,), F32, b"\0\0\0\0"), "t": ((1, 32), kind, raw)}
    path = write_gguf(tmp_path / "one.gguf", {"general.name": "x"}, tensors)
    found = read_gguf(path)
    assert found.names == ("before", "t")
    assert found.metadata == {"general.name": "x"}
    np.testing.assert_array_equal(found.tensor("t").reshape(-1), np.asarray(expected, np.float32))


def turned(vector, position, *, neighbours):
    """Rotary positions of one head, on neighbouring coordinates or on halves."""
    width = len(vector)
    angles = position * 100.0 ** (-2 * np.arange(width // 2) / width)
    first, second = (vector[0::2], vector[1::2]) if neighbours else (vector[: width // 2], vector[width // 2 :])
    left = first * np.cos(angles) - second * np.sin(angles)
    right = first * np.sin(angles) + second * np.cos(angles)
    return np.stack([left, right], 1).reshape(-1) if neighbours else np.r_[left, right]


def test_reordered_heads_have_the_same_scores_at_every_distance():
    rng = np.random.default_rng(0)
    heads, width, hidden = 3, 8, 16
    query, key = (rng.standard_normal((heads * width, hidden)).astype(np.float32) for _ in range(2))
    x, y = rng.standard_normal((2, hidden))
    for at, other in ((0, 0), (5, 2), (1, 9)):
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            theirs = turned(query[rows] @ x, at, neighbours=True) @ turned(key[rows] @ y, other, neighbours=True)
            q, k = reorder_halves(query, heads=heads)[rows], reorder_halves(key, heads=heads)[rows]
            ours = turned(q @ x, at, neighbours=False) @ turned(k @ y, other, neighbours=False)
            assert ours == pytest.approx(theirs, rel=1e-5)
            if at != other:  # the law can fail: rows that are left as they are give another score
                q, k = query[rows], key[rows]
                wrong = turned(q @ x, at, neighbours=False) @ turned(k @ y, other, neighbours=False)
                assert wrong != pytest.approx(theirs, rel=1e-3)


def tiny_gguf(path, **changes):
    """A Llama of one layer with two query heads on one key head, and a byte-level tokenizer without long words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *letters, "Ġt", "he", "Ġthe"]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, *[1] * (len(tokens) - 1)],
        "tokenizer.ggml.merges": ["Ġ t", "h e", "Ġt he"],
        "tokenizer.ggml.eos_token_id": 0,
    } | changes
    rng = np.random.default_rng(1)

    def tensor(*shape):
        return shape, F32, rng.standard_normal(shape).astype("<f4").tobytes()

    layer = {
        "attn_norm": (32,),
        "attn_q": (32, 32),
        "attn_k": (16, 32),
        "attn_v": (16, 32),
        "attn_output": (32, 32),
        "ffn_norm": (32,),
        "ffn_gate": (32, 32),
        "ffn_up": (32, 32),
        "ffn_down": (32, 32),
    }
    tensors = {"token_embd.weight": tensor(len(tokens), 32), "output_norm.weight": tensor(32)}
    tensors |= {f"blk.0.{name}.weight": tensor(*shape) for name, shape in layer.items()}
    return write_gguf(path, metadata, tensors)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_converted_model_serves_both_sides(tmp_path, cache):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    folder = convert_llama(source, sha256=digest_of(source))
    assert folder.parent == cache / "models"
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert json.loads((folder / "config.json").read_text())["rms_norm_eps"] == 1e-5
    vocabulary = load_vocabulary(str(folder))
    ((ids,),) = (vocabulary.encode(["the the 12"]),)
    assert vocabulary.tokens(ids) == ["t", "he", "Ġthe", "Ġ", "1", "2"]
    backbone = load_backbone(str(folder), precision="float32", device="cpu")
    assert backbone.bundle.hash == vocabulary.hash
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[ids])
    assert encode_with_prompts(backbone, layout, None).isfinite().all()


def test_a_chat_template_comes_along(tmp_path, cache):
    source = tiny_gguf(tmp_path / "tiny.gguf", **{"tokenizer.chat_template": "[{{ messages[0].content }}]"})
    folder = convert_llama(source, sha256=digest_of(source))
    assert (folder / "chat_template.jinja").read_text() == "[{{ messages[0].content }}]"
    backbone = load_backbone(str(folder), precision="float32", device="cpu")
    assert backbone.chat is not None


def test_it_is_converted_once_and_nothing_else_is_left(tmp_path, cache):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    digest = digest_of(source)
    folder = convert_llama(source, sha256=digest)
    written = (folder / "config.json").stat().st_mtime_ns
    source.unlink()  # the second time it is not read
    assert convert_llama(source, sha256=digest) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_file_is_refused_and_leaves_nothing(tmp_path, cache):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(VocabularyError, match="must be the file that was named"):
        convert_llama(source, sha256="0" * 64)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "must be a Llama"),
        ({"tokenizer.ggml.model": "llama"}, "must be a Llama"),
        ({"tokenizer.ggml.pre": "elsewhere"}, "must have a tokenizer that cuts text as gpt-2 or smollm"),
        ({"llama.rope.scaling.type": "yarn"}, "plain rotary positions"),
        ({"llama.context_length": 0}, "must state llama.context_length as a number above 0"),
        ({"llama.block_count": 2}, "must hold the tensor 'blk.1.attn_norm.weight'"),
    ],
)
def test_a_model_that_is_not_understood_is_refused_and_leaves_nothing(tmp_path, cache, changes, message):
    source = tiny_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(VocabularyError, match=message):
        convert_llama(source, sha256=digest_of(source))
    assert list((cache / "models").iterdir()) == []


@pytest.mark.parametrize("cut", [2, 20, 100, 3000, 30_000])
def test_a_file_that_was_cut_off_is_refused(tmp_path, cache, cut):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    source.write_bytes(source.read_bytes()[:cut])
    with pytest.raises(VocabularyError, match="GGUF file"):
        convert_llama(source, sha256=digest_of(source))


def test_a_file_of_another_version_or_quantization_is_refused(tmp_path):
    old = write_gguf(tmp_path / "old.gguf", {"general.name": "x"}, {}, version=2)
    with pytest.raises(VocabularyError, match="must be of version 3"):
        read_gguf(old)
    other = write_gguf(tmp_path / "other.gguf", {"general.name": "x"}, {"t": ((1, 32), 12, b"\0" * 32)})
    with pytest.raises(VocabularyError, match="got type number 12"):
        read_gguf(other)
    endless = tmp_path / "endless.gguf"
    endless.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))
    with pytest.raises(VocabularyError, match="whole GGUF file"):
        read_gguf(endless)


def test_the_decoder_of_the_list_is_named_by_its_digest():
    name, digest = PUBLIC_MODELS["smollm2"].gguf
    assert name.endswith(".gguf")
    assert len(digest) == 64


def test_the_tokenizer_that_is_put_together_reads_back_what_it_reads(tmp_path, cache):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    tokenizer = Tokenizer.from_file(str(convert_llama(source, sha256=digest_of(source)) / "tokenizer.json"))
    for text in ("the end", "naïve façade 2024", "你好\n\n  x"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france():
    backbone = load_backbone("smollm2", precision="float32", device="cpu")
    assert backbone.bundle.hash == load_vocabulary("smollm2").hash
    ids = list(backbone.tokenize("The capital of France is"))
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[ids])
    states = encode_with_prompts(backbone, layout, None)
    assert int(backbone.word_logits(states[0, -1]).argmax()) == backbone.tokenize(" Paris")[0]
