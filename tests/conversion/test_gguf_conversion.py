"""GGUF files: read by the format's own package, and held against what `transformers` makes of the same file."""

import hashlib
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from rapt.conversion import gguf_model
from rapt.conversion.gguf_model import convert_gguf, read_gguf
from rapt.errors import VocabularyError
from rapt.local.vocabulary import load_vocabulary
from rapt.public_models import PUBLIC_MODELS
from rapt.service.backbone.layout import encode_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone
from tokenizer_zoo import smollm2

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
TEXTS = ("the end 2024 of it's 12345", "naïve façade", "你好\n\n  x", "It's NICE,  isn't it?\r\n\ta_b")
F32, F16, BF16 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16"))
Q4_0, Q8_0 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
BESIDE = {"llama": {}, "qwen2": {f"attn_{name}.bias": (size,) for name, size in (("q", 32), ("k", 16), ("v", 16))}}
BESIDE["qwen3"] = {"attn_q_norm.weight": (8,), "attn_k_norm.weight": (8,)}


def tiny_gguf(path, *, family="llama", cut="smollm", kind=F32, leave_out=(), **changes):
    """One layer, 32 wide, with four heads that share two keys, and the tokens of a tokenizer of the zoo."""
    described = json.loads((smollm2(path.parent / "zoo") / "tokenizer.json").read_text())
    names = sorted(described["model"]["vocab"], key=described["model"]["vocab"].get)
    special = [token["content"] for token in described["added_tokens"] if token["special"]]
    writer = gguf.GGUFWriter(path, changes.pop("architecture", family))
    for add, value in (
        (writer.add_context_length, changes.pop("context_length", 64)),
        (writer.add_embedding_length, 32),
        (writer.add_block_count, changes.pop("block_count", 1)),
        (writer.add_feed_forward_length, 32),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_rope_freq_base, 10_000.0),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_tokenizer_model, changes.pop("tokenizer", "gpt2")),
        (writer.add_tokenizer_pre, cut),
        (writer.add_token_list, names),
        (writer.add_token_types, [3 if name in special else 1 for name in names]),
        (writer.add_token_merges, [" ".join(merge) for merge in described["model"]["merges"]]),
        (writer.add_bos_token_id, 0),
        (writer.add_eos_token_id, 2),
    ):
        add(value)
    if family == "qwen3":
        writer.add_key_length(8)
        writer.add_value_length(8)
    for name, value in changes.items():
        getattr(writer, f"add_{name}")(value)
    rng = np.random.default_rng(1)
    layer = {"attn_norm.weight": (32,), "attn_q.weight": (32, 32), "attn_k.weight": (16, 32), "attn_v.weight": (16, 32)}
    layer |= {"attn_output.weight": (32, 32), "ffn_norm.weight": (32,), **BESIDE[family]}
    layer |= dict.fromkeys(("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"), (32, 32))
    tensors = {"token_embd.weight": (len(names), 32), "output_norm.weight": (32,)}
    tensors |= {f"blk.0.{name}": shape for name, shape in layer.items() if name not in leave_out}
    for name, shape in tensors.items():
        numbers = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, numbers)
        else:
            packed = gguf.quants.quantize(numbers, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("family", "cut", "kind"),
    [("llama", "smollm", Q4_0), ("llama", "llama-bpe", F16), ("qwen2", "qwen2", Q8_0), ("qwen3", "qwen2", BF16)],
)
def test_a_converted_model_computes_what_transformers_makes_of_the_file(tmp_path, cache, family, cut, kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    source = tiny_gguf(tmp_path / "tiny.gguf", family=family, cut=cut, kind=kind)
    vocabulary = load_vocabulary(str(source))
    backbone = load_backbone(str(source), precision="float32", device="cpu")
    assert backbone.bundle.hash == vocabulary.hash
    assert (backbone.model, vocabulary.model) == ("tiny", f"model-{vocabulary.hash[7:19]}")
    ((ids,),) = (vocabulary.encode(["the film 12"]),)
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[ids])
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=source.name, dtype=torch.float32, config=AutoConfig.from_pretrained(convert_gguf(source))
    ).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=layout.token_ids).logits
    torch.testing.assert_close(backbone.word_logits(encode_with_prompts(backbone, layout, None)), wanted)


@pytest.mark.parametrize(("family", "cut"), [("llama", "smollm"), ("llama", "llama-bpe"), ("qwen2", "qwen2")])
def test_the_tokenizer_that_is_put_together_reads_as_published_ones_do(tmp_path, cache, family, cut):
    source = tiny_gguf(tmp_path / "tiny.gguf", family=family, cut=cut)
    tokenizer = Tokenizer.from_file(str(convert_gguf(source) / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert (ids[:1] == [0]) == (cut == "llama-bpe")
        assert tokenizer.decode(ids) == text
    pieces = [text for text, _ in tokenizer.pre_tokenizer.pre_tokenize_str("it's 12345!")]
    digits = {"smollm": ["1", "2", "3", "4", "5"], "llama-bpe": ["123", "45"], "qwen2": ["1", "2", "3", "4", "5"]}
    assert [piece for piece in pieces if piece.isdigit()] == digits[cut]


def test_a_chat_template_comes_along_and_it_is_converted_once(tmp_path, cache):
    source = tiny_gguf(tmp_path / "tiny.gguf", chat_template="[{{ messages[0].content }}]")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    folder = convert_gguf(source, sha256=digest)
    assert folder.parent == cache / "models"
    assert (folder / "chat_template.jinja").read_text() == "[{{ messages[0].content }}]"
    assert json.loads((folder / "config.json").read_text())["rms_norm_eps"] == 1e-5
    assert load_backbone(str(folder), precision="float32", device="cpu").chat is not None
    written = (folder / "config.json").stat().st_mtime_ns
    assert convert_gguf(source) == folder
    source.unlink()  # a file that is named by its digest is not read the second time
    assert convert_gguf(source, sha256=digest) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_large_model_becomes_several_files_with_the_same_weights(tmp_path, cache, monkeypatch):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    whole = load_backbone(str(convert_gguf(source)), precision="float32", device="cpu")
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "other"))
    monkeypatch.setattr(gguf_model, "_MOST_OF_A_FILE", 10_000)
    folder = convert_gguf(source)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    parted = load_backbone(str(folder), precision="float32", device="cpu")
    for name, weight in whole.encoder.state_dict().items():
        assert torch.equal(weight, parted.encoder.state_dict()[name])


def test_another_file_is_refused_and_leaves_nothing(tmp_path, cache):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(VocabularyError, match="must be the file that was named"):
        convert_gguf(source, sha256="0" * 64)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "must be of a family llama, qwen2, qwen3"),
        ({"tokenizer": "llama"}, "must be of a family llama, qwen2, qwen3"),
        ({"cut": "elsewhere"}, "must have a tokenizer that cuts text as gpt-2, smollm, llama-bpe, qwen2"),
        ({"rope_scaling_type": gguf.RopeScalingType.YARN}, "plain rotary positions"),
        ({"context_length": 0}, r"must state llama\.context_length as a number above 0"),
        ({"block_count": 2}, r"must hold the tensor 'blk\.1\.attn_norm\.weight'"),
        ({"leave_out": ("ffn_up.weight",)}, r"must hold the tensor 'blk\.0\.ffn_up\.weight'"),
    ],
)
def test_a_model_that_is_not_understood_is_refused_and_leaves_nothing(tmp_path, cache, changes, message):
    source = tiny_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(VocabularyError, match=message):
        convert_gguf(source)
    assert list((cache / "models").iterdir()) == []


@pytest.mark.parametrize("cut", [0, 2, 20, 100, 3000, 30_000])
def test_a_file_that_was_cut_off_is_refused(tmp_path, cache, cut):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    source.write_bytes(source.read_bytes()[:cut])
    with pytest.raises(VocabularyError, match="GGUF file"):
        convert_gguf(source)


def test_counts_without_an_end_and_other_versions_are_refused_at_once(tmp_path):
    for version, count in ((1, 1), (3, 2**60)):
        path = tmp_path / f"{version}.gguf"
        path.write_bytes(b"GGUF" + np.array([version], "<u4").tobytes() + np.array([count, count], "<u8").tobytes())
        with pytest.raises(VocabularyError, match="whole GGUF file"):
            read_gguf(path)


def test_the_decoder_of_the_list_is_named_by_its_digest():
    name, digest = PUBLIC_MODELS["smollm2"].gguf
    assert name.endswith(".gguf")
    assert len(digest) == 64


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france():
    backbone = load_backbone("smollm2", precision="float32", device="cpu")
    assert backbone.bundle.hash == load_vocabulary("smollm2").hash
    ids = list(backbone.tokenize("The capital of France is"))
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[[]], texts=[ids])
    states = encode_with_prompts(backbone, layout, None)
    assert int(backbone.word_logits(states[0, -1]).argmax()) == backbone.tokenize(" Paris")[0]
