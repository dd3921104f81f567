"""A GGUF file as a folder in Hugging Face's layout: config.json, tokenizer.json, and the weights as safetensors.

The file is read by the package `gguf` of the format's own project (extra `[gguf]`), which knows all its quantizations;
the weights become float32, to the last bit what the format says. Three things are not copies. The rows of a Llama's
query and key matrices are reordered: ggml turns neighbouring coordinates together (Su et al. 2021, Eq. 34), Hugging
Face's Llama the first half with the second. The tokenizer is put together from its list of tokens and merges; its way
of cutting text into words is named, not described, in the file. And what stands before a text is named, too.

Converted models are kept in the cache folder, one folder each, made once, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rapt.errors import UsageError, VocabularyError
from rapt.this_machine import find_cache_folder
from rapt.whole_files import open_whole_folder

# Hugging Face's name of each tensor of a layer, by ggml's; those that a family has not are not in its files.
_OF_LAYER: Final[Mapping[str, str]] = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class _Family:
    """What distinguishes a family: the tensors of a layer that it has beside those of a Llama, and its class."""

    kind: str
    beside: tuple[str, ...] = ()
    reordered: bool = False


_FAMILIES: Final[Mapping[str, _Family]] = {
    "llama": _Family("LlamaForCausalLM", reordered=True),
    "qwen2": _Family("Qwen2ForCausalLM", ("attn_q.bias", "attn_k.bias", "attn_v.bias")),
    "qwen3": _Family("Qwen3ForCausalLM", ("attn_q_norm.weight", "attn_k_norm.weight")),
}
_BESIDE: Final = frozenset(name for family in _FAMILIES.values() for name in family.beside)

# How text is cut before merging, by the name that the file gives it: the pre-tokenizers in `tokenizer.json`, as the
# models' authors publish them.
_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _cut_by(digits: str) -> dict[str, Any]:
    """Words, `digits` digits, signs and line ends apart: Llama 3's rule, and Qwen2's with single digits."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL | {"use_regex": False}]}


_CUTS: Final[Mapping[str, dict[str, Any]]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
    "llama-bpe": _cut_by(r"\p{N}{1,3}"),
    "qwen2": _cut_by(r"\p{N}"),
}
_COMPOSED: Final = ("qwen2",)  # letters and their accents are put together first
_BEGUN: Final = ("llama-bpe",)  # every text begins with the token bos, whatever the file says
# ggml's numbers of the kinds of token that are no text: control, and user-defined.
_CONTROL, _DEFINED = 3, 4
# Bytes of one file of weights: a larger model becomes several, so that they are never all in memory.
_MOST_OF_A_FILE: Final = 4 * 2**30


@dataclass(frozen=True)
class GgufFile:
    """An open file; tensors are widened when they are asked for.

    Attributes:
        metadata: Key-value pairs of the file.
        tensors: Tensors of the file by name, as the package describes them.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, the slowest axis first (`VocabularyError` where there is none of this name)."""
        if name not in self.tensors:
            raise VocabularyError(f"a GGUF file must hold the tensor {name!r}; take a whole model of this architecture")
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, the slowest axis first (`VocabularyError` where it cannot be widened)."""
        from gguf.quants import dequantize

        shape, found = self.shape(name), self.tensors[name]
        try:
            return np.ascontiguousarray(dequantize(found.data, found.tensor_type), dtype=np.float32).reshape(shape)
        except (NotImplementedError, ValueError):
            kind = found.tensor_type.name
            raise VocabularyError(
                f"a GGUF file must be of types that the installed package gguf widens, got {kind}; upgrade it, or take "
                "another file of the model"
            ) from None


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file.

    Raises:
        VocabularyError: It is none, or it is damaged; or the package that reads it is missing.
        OSError: It cannot be read.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise VocabularyError("a GGUF file is read by the package gguf; run: pip install gguf") from None
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        return GgufFile(metadata=metadata, tensors={tensor.name: tensor for tensor in reader.tensors})
    # What the package makes of bytes that are no GGUF file, or the beginning of one.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
        raise VocabularyError(
            "the weights must be a whole GGUF file; it is damaged, cut off or of another version: get it again"
        ) from None


def write_model(source: GgufFile, folder: Path) -> None:
    """Write the files into an existing folder, and the chat template if the source has one.

    Raises:
        VocabularyError: It is of a family or has a tokenizer that is not known here, or lacks a tensor.
    """
    about = source.metadata
    family = _FAMILIES.get(str(about.get("general.architecture")))
    if family is None or about.get("tokenizer.ggml.model") != "gpt2":
        raise VocabularyError(
            f"a GGUF file must be of a family {', '.join(_FAMILIES)} with a byte-level tokenizer; take another model, "
            "or one in Hugging Face's layout"
        )
    scaling = about.get(f"{about['general.architecture']}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in source.tensors:
        raise VocabularyError("a GGUF file must have plain rotary positions, got scaled ones; take another model")
    config, tokenizer = _make_config(source, family), _make_tokenizer(about)
    _write_weights(source, folder, _name_tensors(source, family, layers=config["num_hidden_layers"]), config, family)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="ascii")
    template = about.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _make_config(source: GgufFile, family: _Family) -> dict[str, Any]:
    about = source.metadata
    name = str(about["general.architecture"])

    def number(key: str) -> Any:
        value = about.get(f"{name}.{key}")
        if not isinstance(value, int | float) or value <= 0:
            raise VocabularyError(f"a GGUF file must state {name}.{key} as a number above 0; install the model again")
        return value

    heads, width = number("attention.head_count"), number("embedding_length")
    head_size = about.get(f"{name}.attention.key_length")
    return {
        "architectures": [family.kind],
        "model_type": name,
        "vocab_size": len(about.get("tokenizer.ggml.tokens", ())),
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": about.get(f"{name}.attention.head_count_kv", heads),
        **({} if head_size is None else {"head_dim": head_size}),
        "max_position_embeddings": number("context_length"),
        "rope_theta": number("rope.freq_base"),
        # Stored in 32 bits: written short, it is the number that the authors wrote.
        "rms_norm_eps": float(np.format_float_scientific(np.float32(number("attention.layer_norm_rms_epsilon")))),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "bos_token_id": about.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": about.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": about.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def _name_tensors(source: GgufFile, family: _Family, *, layers: int) -> dict[str, str]:
    """Hugging Face's names, and ggml's of each."""
    named = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if "output.weight" in source.tensors:
        named["lm_head.weight"] = "output.weight"
    for layer in range(layers):
        for theirs, ours in _OF_LAYER.items():
            if theirs in family.beside or theirs not in _BESIDE:
                named[f"model.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
    return named


def _write_weights(
    source: GgufFile, folder: Path, named: Mapping[str, str], config: Mapping[str, Any], family: _Family
) -> None:
    """One file, or several with an index, none of them larger than `_MOST_OF_A_FILE` but for a single tensor."""
    parts = list(_divide({ours: 4 * int(np.prod(source.shape(theirs))) for ours, theirs in named.items()}))
    places: dict[str, str] = {}
    for part, names in enumerate(parts, 1):
        file = "model.safetensors" if len(parts) == 1 else f"model-{part:05}-of-{len(parts):05}.safetensors"
        weights = {name: source.tensor(named[name]) for name in names}
        if family.reordered:
            for name in names:
                for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
                    if name.endswith(f"{projection}.weight"):
                        weights[name] = reorder_halves(weights[name], heads=config[heads])
        save_file(weights, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(parts) > 1:
        index = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(index, encoding="ascii")


def _divide(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if names and filled + size > _MOST_OF_A_FILE:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def reorder_halves(rows: NDArray[np.float32], *, heads: int) -> NDArray[np.float32]:
    """The rows of a query or key matrix, (heads * d, h), the coordinates 0, 2, 4 of each head before 1, 3, 5."""
    width = rows.shape[1]
    return np.ascontiguousarray(rows.reshape(heads, -1, 2, width).swapaxes(1, 2).reshape(-1, width))


def _make_tokenizer(about: Mapping[str, Any]) -> dict[str, Any]:
    name = str(about.get("tokenizer.ggml.pre", ""))
    cut = _CUTS.get(name)
    tokens, kinds, merges = (about.get(f"tokenizer.ggml.{part}") for part in ("tokens", "token_type", "merges"))
    if cut is None or not tokens or not kinds or not merges or len(tokens) != len(kinds):
        raise VocabularyError(
            f"a GGUF file must have a tokenizer that cuts text as {', '.join(_CUTS)}; take another model, or one in "
            "Hugging Face's layout"
        )
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": place, "content": token, **plain, "special": kind == _CONTROL}
        for place, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _DEFINED)
    ]
    first = about.get("tokenizer.ggml.bos_token_id")
    around = None
    if (
        type(first) is int
        and 0 <= first < len(tokens)
        and (name in _BEGUN or about.get("tokenizer.ggml.add_bos_token"))
    ):
        begin = {"SpecialToken": {"id": tokens[first], "type_id": 0}}
        one, two = ({"Sequence": {"id": text, "type_id": segment}} for text, segment in (("A", 0), ("B", 1)))
        around = {
            "type": "TemplateProcessing",
            "single": [begin, one],
            "pair": [begin, one, {"SpecialToken": {"id": tokens[first], "type_id": 1}}, two],
            "special_tokens": {tokens[first]: {"id": tokens[first], "ids": [first], "tokens": [tokens[first]]}},
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if name in _COMPOSED else None,
        "pre_tokenizer": cut,
        "post_processor": around,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": name in _BEGUN,  # Llama 3 takes a word that is a token as it is
            "vocab": {token: place for place, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


# Part of a folder's name: a change of what is written makes new folders.
_VERSION: Final = 2


def convert_gguf(source: Path, *, sha256: str | None = None) -> Path:
    """The folder of a GGUF file in Hugging Face's layout, converted if it is not there yet.

    Two processes that convert at once both succeed, and one result is kept.

    Args:
        source: The GGUF file.
        sha256: Hex digest of the file, where it is known: another one is refused. None takes the file as it is.

    Raises:
        VocabularyError: The file is not the expected one, cannot be read, or the result cannot be written.
    """
    expected = sha256
    try:
        if sha256 is None:
            sha256 = _digest(source)
        folder = find_cache_folder() / "models" / f"{source.stem}-{sha256[:12]}-{_VERSION}"
        if (folder / "config.json").is_file():
            return folder
        if expected is not None and (found := _digest(source)) != expected:
            raise VocabularyError(
                f"a model must be the file that was named, got digest {found[:12]} for {expected[:12]}; "
                "install it again"
            )
        with open_whole_folder(folder) as partial:
            write_model(read_gguf(source), partial)
    except (OSError, UsageError) as error:
        if sha256 is not None and (folder / "config.json").is_file():  # another process was first
            return folder
        kind = getattr(error, "strerror", None) or type(error).__name__
        raise VocabularyError(
            f"a model must be readable and its cache writable, got {kind}; free four bytes for each of its weights, or "
            "choose another folder with RAPT_CACHE_DIR"
        ) from None
    return folder


def _digest(source: Path) -> str:
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
