"""A Llama-style GGUF file as a folder in Hugging Face's layout: config.json, tokenizer.json, model.safetensors.

Two things are not copies. The rows of the query and key matrices are reordered: ggml turns neighbouring coordinates
together (Su et al. 2021, Eq. 34), Hugging Face's Llama the first half with the second. And the tokenizer is put
together from its list of tokens and merges; its way of cutting text into words is named, not described, in the file.
Converted models are kept in the cache folder, one folder each, made once, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rapt.conversion.gguf_file import GgufFile, read_gguf
from rapt.errors import UsageError, VocabularyError
from rapt.this_machine import find_cache_folder
from rapt.whole_files import open_whole_folder

# Hugging Face's name of each tensor of a layer, by ggml's.
_OF_LAYER: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL: Final = 3  # ggml's number of the kind of token that is no text
# How text is cut before merging, by the name that the file gives it: the pre-tokenizers in `tokenizer.json`.
_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_CUTS: Final[Mapping[str, dict[str, Any]]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
}


def write_llama(source: GgufFile, folder: Path) -> None:
    """Write the three files into an existing folder, and the chat template if the source has one.

    Raises:
        VocabularyError: It is not a Llama with a byte-level tokenizer that is known here, or lacks a tensor.
    """
    about = source.metadata
    if about.get("general.architecture") != "llama" or about.get("tokenizer.ggml.model") != "gpt2":
        raise VocabularyError("a GGUF file must be a Llama with a byte-level tokenizer; take another model")
    if about.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in source.names:
        raise VocabularyError("a GGUF file must have plain rotary positions, got scaled ones; take another model")
    config = _config(source)
    tokenizer = _tokenizer(about)
    weights = _weights(source, layers=config["num_hidden_layers"], heads=config["num_attention_heads"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="ascii")
    template = about.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _config(source: GgufFile) -> dict[str, Any]:
    def number(name: str) -> Any:
        value = source.metadata.get(name)
        if not isinstance(value, int | float) or value <= 0:
            raise VocabularyError(f"a GGUF file must state {name} as a number above 0; install the model again")
        return value

    heads = number("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(source.metadata.get("tokenizer.ggml.tokens", ())),
        "hidden_size": number("llama.embedding_length"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_hidden_layers": number("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": source.metadata.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": number("llama.context_length"),
        "rope_theta": number("llama.rope.freq_base"),
        # Stored in 32 bits: written short, it is the number that the authors wrote.
        "rms_norm_eps": float(np.format_float_scientific(np.float32(number("llama.attention.layer_norm_rms_epsilon")))),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in source.names,
        "bos_token_id": source.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": source.metadata.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def _weights(source: GgufFile, *, layers: int, heads: int) -> dict[str, NDArray[np.float32]]:
    key_heads = source.metadata.get("llama.attention.head_count_kv", heads)
    weights = {
        "model.embed_tokens.weight": source.tensor("token_embd.weight"),
        "model.norm.weight": source.tensor("output_norm.weight"),
    }
    if "output.weight" in source.names:
        weights["lm_head.weight"] = source.tensor("output.weight")
    for layer in range(layers):
        for theirs, ours in _OF_LAYER.items():
            tensor = source.tensor(f"blk.{layer}.{theirs}.weight")
            if theirs in ("attn_q", "attn_k"):
                tensor = reorder_halves(tensor, heads=heads if theirs == "attn_q" else key_heads)
            weights[f"model.layers.{layer}.{ours}.weight"] = tensor
    return weights


def reorder_halves(rows: NDArray[np.float32], *, heads: int) -> NDArray[np.float32]:
    """The rows of a query or key matrix, (heads * d, h), the coordinates 0, 2, 4 of each head before 1, 3, 5."""
    width = rows.shape[1]
    return np.ascontiguousarray(rows.reshape(heads, -1, 2, width).swapaxes(1, 2).reshape(-1, width))


def _tokenizer(about: Mapping[str, Any]) -> dict[str, Any]:
    cut = _CUTS.get(about.get("tokenizer.ggml.pre", ""))
    tokens, kinds, merges = (about.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    if cut is None or not tokens or not kinds or not merges or len(tokens) != len(kinds):
        raise VocabularyError(
            f"a GGUF file must have a tokenizer that cuts text as {' or '.join(_CUTS)}; take another model"
        )
    added = [
        {
            "id": place,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for place, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": cut,
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: place for place, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


# Part of a folder's name: a change of what is written makes new folders.
_VERSION: Final = 2


def convert_llama(source: Path, *, sha256: str) -> Path:
    """The folder of a Llama-style GGUF file in Hugging Face's layout, converted if it is not there yet.

    Two processes that convert at once both succeed, and one result is kept.

    Args:
        source: The GGUF file.
        sha256: Hex digest of the file; another one is refused.

    Raises:
        VocabularyError: The file is not the expected one, cannot be read, or the result cannot be written.
    """
    folder = find_cache_folder() / "models" / f"{source.stem}-{sha256[:12]}-{_VERSION}"
    if (folder / "config.json").is_file():
        return folder
    try:
        with source.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise VocabularyError(
                f"a model must be the file that was named, got digest {found[:12]} for {sha256[:12]}; install it again"
            )
        with open_whole_folder(folder) as partial:
            write_llama(read_gguf(source), partial)
    except (OSError, UsageError) as error:
        if (folder / "config.json").is_file():  # another process was first
            return folder
        kind = getattr(error, "strerror", None) or type(error).__name__
        raise VocabularyError(
            f"a model must be readable and its cache writable, got {kind}; "
            "free 600 MB, or choose another folder with RAPT_CACHE_DIR"
        ) from None
    return folder
