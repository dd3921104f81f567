"""The folder of a tuned model for the world outside: PEFT and vLLM load it, the hub shows it, and people read its card.

An adapter of ours is for a backbone of ours: layers have the names of the model without its language head, and a soft
prompt stands behind the token that a row begins with. Here layers have the names of the class that others load, and
that token is the first vector of the prompt, so whoever leaves it out of the text computes what we compute.
"""

from __future__ import annotations

import json
from typing import Any, Final

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from rapt.service.adapter.adapter import CARD, PEFT_CONFIG, WEIGHTS, Adapter, make_peft_config
from rapt.service.adapter.adapter_check import HEAD_BIAS, HEAD_WEIGHT
from rapt.service.adapter.methods import METHODS
from rapt.service.adapter.methods.lora import NAME, A, B
from rapt.service.adapter.methods.prompt_tuning import PROMPT
from rapt.service.backbone.backbone import Backbone
from rapt.wire.adapter_files import HEAD, README, dump_card
from rapt.wire.strict_json import dump_line

# What vLLM's `--max-lora-rank` may be, 16 without it; an adapter of a higher rank is refused.
_VLLM_RANKS: Final = (8, 16, 32, 64, 128, 256)
# The classes of transformers that load the model with which PEFT computes what we compute.
_CLASSES: Final = {
    "encoder": "AutoModel",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "decoder": "AutoModelForCausalLM",
}


def make_hub_files(adapter: Adapter, *, backbone: Backbone) -> dict[str, bytes]:
    """The files of the folder, by name.

    Args:
        adapter: Adapter of a checked card.
        backbone: Backbone that it was tuned on.

    Returns:
        README.md and our card; PEFT's weights and configuration where it has such an adapter; the task head where the
        adapter chooses among classes.
    """
    card = adapter.card
    files = {CARD: dump_line(dump_card(card)).encode()}
    if card.labels:
        head = {HEAD_WEIGHT: adapter.head_weight, HEAD_BIAS: adapter.head_bias}
        files[HEAD] = save_tensors({name: tensor.contiguous().cpu() for name, tensor in head.items()})
    # Behind a reader it takes vectors that no tokenizer writes.
    config = None if backbone.reader is not None else make_peft_config(adapter)
    if config is not None:
        tensors, changes = _rename(adapter, backbone)
        files[PEFT_CONFIG] = json.dumps(config | changes, indent=2).encode()
        files[WEIGHTS] = save_tensors({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    files[README] = _write_readme(adapter, backbone, in_peft=config is not None).encode()
    return files


def _rename(adapter: Adapter, backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by the names of the class that others load, and what of PEFT's configuration differs with that."""
    tuned = adapter.tuned
    if tuned.lora:
        model = backbone.sites.model
        # A decoder is loaded with its head by others, which then stands above all layers.
        above = f"{model.base_model_prefix}." if backbone.kind == "decoder" and model.base_model is model else ""
        pairs = {above + name: pair for name, pair in tuned.lora.items()}
        tensors = {
            NAME + name + part: tensor for name, pair in pairs.items() for part, tensor in ((A, pair.a), (B, pair.b))
        }
        ends = {name.rsplit(".", 1)[-1] for name in pairs}
        all_of_them = {name for name in backbone.sites.linear if name.rsplit(".", 1)[-1] in ends} == tuned.lora.keys()
        ranks = {name: len(pair.a) for name, pair in pairs.items()}
        changes: dict[str, Any] = {"target_modules": sorted(ends if all_of_them else pairs), "bias": "none"}
        if len(set(ranks.values())) > 1:  # the scale is in b already, so alpha is the rank everywhere
            changes |= {"rank_pattern": ranks, "alpha_pattern": ranks}
        return tensors, changes
    tensors = METHODS[adapter.card.method].form.to_tensors(tuned)
    if tuned.prompt is None or not backbone.frame.start:
        return tensors, {}
    first = torch.tensor(backbone.frame.start, device=backbone.device)
    prompt = torch.cat([backbone.embed(first[None])[0].float(), tuned.prompt])
    return {PROMPT: prompt}, {"num_virtual_tokens": len(prompt)}


def _write_readme(adapter: Adapter, backbone: Backbone, *, in_peft: bool) -> str:
    card = adapter.card
    known = [f"base_model: {json.dumps(card.model)}"] if "/" in card.model else []
    of_text = card.mechanism.unit == "text"
    unit = "whole text" if of_text else "token"
    figures = [f"| {name} | {value:g} |" for name, value in card.metrics.items()]
    about = [
        ("base model", card.model),
        ("method, task", f"{card.method}, {card.task}"),
        ("unit of protection", f"a {unit}"),
        ("mechanism", f"{card.mechanism.name}, {card.mechanism.describe_strength()}"),
        ("hash of the vocabulary", card.vocabulary_hash),
        ("SHA-256 of the weights in our own form", card.weights_sha256),
        ("made by", card.created_by),
    ]
    return "\n".join(
        [
            "---",
            *known,
            *(["library_name: peft"] if in_peft else []),
            "license: other",
            "license_name: not-stated",
            "tags: [rapt, local-differential-privacy]",
            "---",
            "",
            "# A model tuned on privatized text",
            "",
            "**License: not stated.** Name one before you publish this; the license of the base model may bind you.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | `{value}` |" for name, value in about),
            "",
            "## What was private",
            "",
            f"The training texts were privatized before they left their owners, each {unit} by itself, with the "
            "mechanism above. What is in these weights was computed from that, so they show no more of a "
            f"{unit} than the mechanism let through. "
            "Labels are outside of this, unless they were randomized."
            + ("" if of_text else " A text as a whole is protected by the sum over its tokens, which is little."),
            "",
            "## Use",
            "",
            *_write_use(adapter, backbone, in_peft=in_peft),
            "",
            "## Figures",
            "",
            "They are of the run, on its own training data: no promise about other data.",
            "",
            "| figure | value |",
            "|---|---|",
            *figures,
            "",
        ]
    )


def _write_use(adapter: Adapter, backbone: Backbone, *, in_peft: bool) -> list[str]:
    card = adapter.card
    lines = ["Texts were privatized in training, so a text in clear is easier than what the model was tuned on.", ""]
    if not in_peft:
        lines += ["PEFT has no adapter that computes this: `rapt export --form rapt` writes what `rapt` loads.", ""]
    else:
        lines += [
            "```python",
            f"from transformers import {_CLASSES[card.kind]}",
            "from peft import PeftModel",
            "",
            f"model = {_CLASSES[card.kind]}.from_pretrained(THE_BASE_MODEL)",
            "model = PeftModel.from_pretrained(model, THIS_FOLDER)",
            "```",
            "",
        ]
    # Where a head of our own reads the states, vLLM would write words that mean nothing.
    if card.method == "lora" and card.kind == "decoder" and card.task != "classification":
        room = next(rank for rank in _VLLM_RANKS if rank >= adapter.tuned.highest_rank)
        lines += [
            "vLLM takes the folder as it is, where its class of this model takes LoRA. Start it with "
            "`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve THE_BASE_MODEL --enable-lora --max-lora-rank "
            f"{room}`, and post `lora_name` and `lora_path` to `/v1/load_lora_adapter`.",
            "",
        ]
    if METHODS[card.method].prompt == "sequence" and in_peft and (first := len(backbone.frame.start)):
        vectors, them = ("vector of the token", "it") if first == 1 else (f"vectors of the {first} tokens", "them")
        lines += [
            f"The prompt begins with the {vectors} that the tokenizer puts first: leave {them} out of the text.",
            "",
        ]
    if METHODS[card.method].prompt == "sequence" and in_peft and backbone.kind == "decoder":
        # PEFT 0.21.2 with transformers 5.24: the second token already differs from that of a whole pass.
        lines += [
            "Generate with `use_cache=False`: cached steps of PEFT 0.21 lose their place with transformers 5.24.",
            "",
        ]
    if METHODS[card.method].prompt == "attention" and in_peft:
        shifted = (
            "PEFT shifts the text by the length of the prefix, and in training it was not: other numbers come out."
        )
        lines += [shifted, ""]
    if card.plain_tokens:
        lines += [f"In training {card.plain_tokens} privatized public tokens stood before each text.", ""]
    if card.task == "generation" and card.kind == "decoder" and backbone.frame.between:
        lines += [f"The answer begins behind the token ids {list(backbone.frame.between)}, which end the text.", ""]
    if card.task == "generation" and len(backbone.frame.decoder_start) > 1:
        lines += [f"The answer begins behind `decoder_input_ids` of {list(backbone.frame.decoder_start)}.", ""]
    if card.labels:
        where = "the state of the answer"
        if card.task == "classification":
            where = "the mean of the last states at the text"
            if backbone.architecture == "codes":
                where = "the code of a text"
        lines += [
            f"`{HEAD}` holds the weight and the bias that read a class off {where}. The classes, in its order:",
            "",
            "    " + json.dumps(list(card.labels)),
            "",
        ]
    return lines[:-1]
