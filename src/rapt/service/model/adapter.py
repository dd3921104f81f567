"""The adapter: what tuning leaves behind, a soft prompt and a task head with their card. A value, never a mode.

On disk it has PEFT's names (`adapter_model.safetensors`, `adapter_config.json`) and our card, `rapt.json`. PEFT puts a
prompt before [CLS] and we put it behind, so the weights move between the two but the numbers do not: the card says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from rapt.errors import VocabularyError, WireError
from rapt.service.model.backbone import Backbone
from rapt.wire.adapter_card import AdapterCard, card_from_json, card_to_json
from rapt.wire.strict_json import dump, parse_object
from rapt.wire.vocabulary_bundle import check_hash

WEIGHTS: Final = "adapter_model.safetensors"
CARD: Final = "rapt.json"
PEFT_CONFIG: Final = "adapter_config.json"
_PROMPT, _HEAD_WEIGHT, _HEAD_BIAS = "prompt_embeddings", "classifier.weight", "classifier.bias"


@dataclass(frozen=True, eq=False)
class Adapter:
    """A tuned soft prompt and its task head.

    Attributes:
        prompt: Soft prompt, (P, h), float32.
        head_weight: Task head, (C, h), float32.
        head_bias: Its bias, (C,), float32.
        card: What it is and where it came from.
    """

    prompt: Tensor
    head_weight: Tensor
    head_bias: Tensor
    card: AdapterCard


def save_adapter(adapter: Adapter, folder: Path) -> AdapterCard:
    """Write the three files of an adapter; the folder appears whole or not at all. Returns the card as written.

    Args:
        adapter: To be saved.
        folder: Must not exist yet.
    """
    weights = save_tensors(
        {
            _PROMPT: adapter.prompt.contiguous(),
            _HEAD_WEIGHT: adapter.head_weight.contiguous(),
            _HEAD_BIAS: adapter.head_bias.contiguous(),
        }
    )
    card = replace(adapter.card, weights_sha256=hashlib.sha256(weights).hexdigest())
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial / WEIGHTS, weights)
        _write(partial / PEFT_CONFIG, json.dumps(_peft_config(card), indent=2).encode())
        _write(partial / CARD, dump(card_to_json(card)).encode())
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return card


def load_adapter(folder: Path, *, backbone: Backbone) -> Adapter:
    """The adapter in a folder, on the backbone's device.

    Raises:
        WireError: A file is missing, damaged, edited, or of an unknown version.
        VocabularyError: It was tuned on another backbone.
    """
    try:
        card = card_from_json(parse_object((folder / CARD).read_bytes(), what="the adapter card"))
        weights = (folder / WEIGHTS).read_bytes()
    except OSError:
        raise WireError(f"an adapter must have {CARD} and {WEIGHTS}; tune again or copy both") from None
    if card.model != backbone.model:
        raise VocabularyError(
            f"an adapter must meet the backbone it was tuned on, got {backbone.model!r} for one of {card.model!r}; "
            "load that backbone"
        )
    check_hash(backbone.bundle, expected=card.vocabulary_hash)
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise WireError("an adapter's weights must match the digest in its card; copy both files again")
    try:
        tensors = load_tensors(weights)
        adapter = Adapter(
            prompt=tensors[_PROMPT].to(backbone.device),
            head_weight=tensors[_HEAD_WEIGHT].to(backbone.device),
            head_bias=tensors[_HEAD_BIAS].to(backbone.device),
            card=card,
        )
    except (SafetensorError, KeyError):
        raise WireError("an adapter's weights must be a prompt and a head in safetensors; tune again") from None
    _check_shapes(adapter, hidden_size=backbone.hidden_size)
    return adapter


def _check_shapes(adapter: Adapter, *, hidden_size: int) -> None:
    classes, length = len(adapter.card.labels), adapter.card.prompt_length
    expected = ((length, hidden_size), (classes, hidden_size), (classes,))
    found = tuple(tuple(part.shape) for part in (adapter.prompt, adapter.head_weight, adapter.head_bias))
    finite = all(bool(torch.isfinite(part).all()) for part in (adapter.prompt, adapter.head_weight, adapter.head_bias))
    if found != expected or not finite:
        raise WireError(f"an adapter's weights must be finite and of shapes {expected}, got {found}; tune again")


def _peft_config(card: AdapterCard) -> dict[str, Any]:
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": card.model,
        "num_virtual_tokens": card.prompt_length,
        "inference_mode": True,
    }


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
