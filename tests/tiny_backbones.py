"""Real backbones of every architecture, small and random: a few kilobytes in Hugging Face's layout, from a fixed seed.

The tokenizers are those of `tokenizer_zoo`. Weights are random, so no test may expect sense of them; what they compute
is what a large model of the same architecture computes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import tokenizer_zoo
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import load_backbone

WIDTH = 32


def bert(rows: int) -> PreTrainedModel:
    """Two layers and a masked-word head."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=rows,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            pad_token_id=0,
            initializer_range=0.3,
        )
    )


def t5(rows: int) -> PreTrainedModel:
    """Two layers a half; the table is shared, and states are scaled before it."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=rows,
            d_model=WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def llama(rows: int) -> PreTrainedModel:
    """Four query heads share two key heads; the head has a table of its own."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=2,
            initializer_range=0.3,
        )
    )


def gpt2(rows: int) -> PreTrainedModel:
    """Two layers with a table of positions."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=rows,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.3,
        )
    )


# Architecture -> the tokenizer's maker and the model's.
TINY = {
    "bert": (tokenizer_zoo.bert, bert),
    "t5": (tokenizer_zoo.t5, t5),
    "llama": (tokenizer_zoo.smollm2, llama),
    "gpt2": (tokenizer_zoo.gpt2, gpt2),
}


_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "initializer_range": 0.3,
}
_ENCODER = _SIZES | {"pad_token_id": 0}
_DECODER = _SIZES | {"num_key_value_heads": 2, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
_DISTILBERT = {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
_OPT = {"hidden_size": WIDTH, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.3}
_GPT_IDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}

_T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_BART = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "scale_embedding": True,
    "init_std": 0.3,
}
_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# What is admitted by laws: architecture -> the tokenizer's maker, the head of the saved model, its sizes.
FAMILIES: dict[str, tuple[Callable[[Path], Path], str, dict[str, object]]] = {
    "roberta": (tokenizer_zoo.roberta, "masked", _ENCODER | {"type_vocab_size": 1}),
    "xlm-roberta": (tokenizer_zoo.bert, "masked", _ENCODER | {"type_vocab_size": 1}),
    "distilbert": (tokenizer_zoo.bert, "masked", _DISTILBERT | {"pad_token_id": 0, "initializer_range": 0.3}),
    "albert": (tokenizer_zoo.bert, "masked", _ENCODER | {"embedding_size": WIDTH // 2}),
    "electra": (tokenizer_zoo.bert, "masked", _ENCODER | {"embedding_size": WIDTH // 2}),
    "deberta-v2": (
        tokenizer_zoo.bert,
        "masked",
        _ENCODER
        | {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    ),
    "mpnet": (tokenizer_zoo.bert, "masked", _ENCODER),
    "modernbert": (tokenizer_zoo.bert, "masked", _ENCODER),
    "gpt_neox": (tokenizer_zoo.gpt2, "causal", _SIZES | _GPT_IDS),
    "opt": (
        tokenizer_zoo.gpt2,
        "causal",
        _OPT | _GPT_IDS | {"word_embed_proj_dim": WIDTH, "max_position_embeddings": 64},
    ),
    "mistral": (tokenizer_zoo.smollm2, "causal", _DECODER | {"sliding_window": None}),
    "qwen2": (tokenizer_zoo.smollm2, "causal", _DECODER),
    "qwen3": (tokenizer_zoo.smollm2, "causal", _DECODER | {"head_dim": 8}),
    "gemma3_text": (tokenizer_zoo.smollm2, "causal", _DECODER | {"head_dim": 8, "sliding_window": 32}),
    "phi3": (tokenizer_zoo.smollm2, "causal", _DECODER),
    "smollm3": (tokenizer_zoo.smollm2, "causal", _DECODER),
    "granite": (tokenizer_zoo.smollm2, "causal", _DECODER | {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "gemma2": (tokenizer_zoo.smollm2, "causal", _DECODER | {"head_dim": 8, "attn_logit_softcapping": 0.5}),
    "bart": (tokenizer_zoo.bart, "written", _BART),
    # T5 1.1: gated, and with a head of its own.
    "t5-flan": (tokenizer_zoo.t5, "written", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": (tokenizer_zoo.t5, "written", _T5),
    "llama-2": (tokenizer_zoo.llama2, "causal", _DECODER | {"num_key_value_heads": 4}),
    "llama-3": (tokenizer_zoo.smollm2, "causal", _DECODER | {"rope_parameters": _LLAMA_3}),
    "bloom": (tokenizer_zoo.gpt2, "causal", _GPT_IDS | {"hidden_size": WIDTH, "n_layer": 2, "n_head": 4}),
}


def model_type_of(family: str) -> str:
    """The `model_type` of a family: some are one architecture with other settings."""
    return {"t5-flan": "t5", "llama-2": "llama", "llama-3": "llama"}.get(family, family)


def write_family(family: str, folder: Path, **changes: object) -> Path:
    """A folder of a family in Hugging Face's layout, of other sizes if asked; the same weights every time."""
    write_tokenizer, head, sizes = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    config = AutoConfig.for_model(
        model_type_of(family),
        vocab_size=tokenizer_zoo.rows_of(folder),
        **sizes | changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2305)
        auto = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "written": AutoModelForSeq2SeqLM}
        auto[head].from_config(config).save_pretrained(folder)
    return folder


def write_tiny_model(architecture: str, folder: Path) -> Path:
    """A folder in Hugging Face's layout; the same weights every time."""
    write_tokenizer, make_model = TINY[architecture]
    write_tokenizer(folder)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()  # the zoo's own table
    rows = tokenizer_zoo.rows_of(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2305)
        make_model(rows).save_pretrained(folder)
    return folder


def tiny_backbone(architecture: str, folder: Path) -> Backbone:
    """The random model in a new folder, loaded in float32."""
    write_tiny_model(architecture, folder)
    return load_backbone(str(folder), precision="float32", device="cpu")
