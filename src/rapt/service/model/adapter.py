"""The adapter: what tuning leaves behind, parts for a forward pass and a task head, with a card. A value, never a mode.

On disk it has PEFT's layout (`adapter_model.safetensors`, `adapter_config.json`, tensors by PEFT's names) and our card,
`rapt.json`. PEFT computes the same numbers with a LoRA, others with a prompt in a BERT or with a prefix: it puts a
prompt before [CLS], and shifts the text by the length of a prefix. A prefix of an encoder-decoder has no
`adapter_config.json`, because PEFT would put all of it into the decoder, and a head alone has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from rapt.errors import UsageError, VocabularyError, WireError, record_at
from rapt.service.model.backbone import Backbone
from rapt.service.model.steering import NOTHING, LoraPair, Tuned
from rapt.service.model.task_head import COMPARISON_VECTORS
from rapt.whole_files import write_folder
from rapt.wire.adapter_card import AdapterCard, card_from_json, card_to_json
from rapt.wire.strict_json import dump, parse_object
from rapt.wire.vocabulary_bundle import check_hash

WEIGHTS: Final = "adapter_model.safetensors"
CARD: Final = "rapt.json"
PEFT_CONFIG: Final = "adapter_config.json"
_PROMPT, _HEAD_WEIGHT, _HEAD_BIAS = "prompt_embeddings", "classifier.weight", "classifier.bias"
_LORA, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_PEFT_TASKS: Final = {"encoder": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM", "decoder": "CAUSAL_LM"}


@dataclass(frozen=True, eq=False)
class Adapter:
    """What was tuned, and its task head.

    Attributes:
        tuned: What it adds to a forward pass, float32.
        head_weight: Task head, (C, h), float32, or (C, 3h) if it compares; C = 0 for an adapter that generates text.
        head_bias: Its bias, (C,), float32.
        card: What it is and where it came from.
        compares: Whether its head reads how the two texts of a pair differ (`task_head.compare_texts`).
    """

    tuned: Tuned
    head_weight: Tensor
    head_bias: Tensor
    card: AdapterCard
    compares: bool = False

    @property
    def prompt(self) -> Tensor:
        """Its soft prompt, (P, h); of no row when it has none."""
        return self.head_weight[:0] if self.tuned.prompt is None else self.tuned.prompt


def save_adapter(adapter: Adapter, folder: Path) -> AdapterCard:
    """Write the files of an adapter; the folder appears whole or not at all. Returns the card as written.

    Args:
        adapter: To be saved.
        folder: Must not exist yet.
    """
    card, files = _written(adapter)
    write_folder(folder, files)
    return card


def load_adapter(folder: Path, *, backbone: Backbone) -> Adapter:
    """The adapter in a folder. Raises as `adapter_from_files`."""
    try:
        files = {name: (folder / name).read_bytes() for name in (CARD, WEIGHTS)}
    except OSError:
        files = {}
    return adapter_from_files(files, backbone=backbone)


def adapter_to_files(adapter: Adapter) -> dict[str, bytes]:
    """The files of an adapter, by name."""
    return _written(adapter)[1]


def adapter_from_files(files: Mapping[str, bytes], *, backbone: Backbone) -> Adapter:
    """The adapter in files by name, on the backbone's device.

    Raises:
        WireError: A file is missing, damaged, edited, or of an unknown version.
        VocabularyError: It was tuned on another backbone.
    """
    if CARD not in files or WEIGHTS not in files:
        raise WireError(f"an adapter must have {CARD} and {WEIGHTS}; tune again or copy both")
    card, weights = card_from_json(parse_object(files[CARD], what="the adapter card")), files[WEIGHTS]
    if card.model != backbone.model:
        raise VocabularyError(
            f"an adapter must meet the backbone it was tuned on, got {backbone.model!r} for one of {card.model!r}; "
            "load that backbone"
        )
    check_hash(backbone.bundle, expected=card.vocabulary_hash)
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise WireError("an adapter's weights must match the digest in its card; copy both files again")
    try:
        tensors = {name: tensor.to(backbone.device) for name, tensor in load_tensors(weights).items()}
        head_weight, head_bias = tensors[_HEAD_WEIGHT], tensors[_HEAD_BIAS]
        tuned = _from_disk(tensors, card=card, backbone=backbone)
    except (SafetensorError, KeyError, RuntimeError):
        raise WireError("an adapter's weights must be what its card says, in safetensors; tune again") from None
    compares = _compares(head_weight, card=card, hidden_size=backbone.hidden_size)
    width = backbone.hidden_size * (COMPARISON_VECTORS if compares else 1)
    _check_head(head_weight, head_bias, classes=len(card.labels), width=width)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise WireError("an adapter's weights must be finite; tune again")
    return Adapter(tuned=tuned, head_weight=head_weight, head_bias=head_bias, card=card, compares=compares)


def check_plain_tokens(adapter: Adapter | None, privatized: Sequence[int], *, position: int) -> None:
    """Refuse a record without the plain tokens that its adapter was tuned with (`UsageError`)."""
    expected = 0 if adapter is None else adapter.card.plain_tokens
    if len(privatized) != expected:
        raise UsageError(
            f"{record_at(position)} must have {expected} privatized plain tokens as in tuning, got {len(privatized)}; "
            "privatize queries with the settings of the training file"
        )


def _written(adapter: Adapter) -> tuple[AdapterCard, dict[str, bytes]]:
    weights = save_tensors(_to_disk(adapter))
    card = replace(adapter.card, weights_sha256=hashlib.sha256(weights).hexdigest())
    files = {WEIGHTS: weights, CARD: dump(card_to_json(card)).encode()}
    config = _peft_config(adapter)
    if config is not None:
        files[PEFT_CONFIG] = json.dumps(config, indent=2).encode()
    return card, files


def _to_disk(adapter: Adapter) -> dict[str, Tensor]:
    tuned = adapter.tuned
    tensors = {_HEAD_WEIGHT: adapter.head_weight, _HEAD_BIAS: adapter.head_bias}
    if tuned.prompt is not None:
        tensors[_PROMPT] = tuned.prompt
    if tuned.prefix is not None:  # (S, 2, H, P, d) -> (P, S * 2 * H * d), as PEFT keeps it
        tensors[_PROMPT] = tuned.prefix.permute(3, 0, 1, 2, 4).flatten(1)
    for name, pair in tuned.lora.items():
        tensors |= {_LORA + name + _A: pair.a, _LORA + name + _B: pair.b}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _from_disk(tensors: Mapping[str, Tensor], *, card: AdapterCard, backbone: Backbone) -> Tuned:
    length = card.prompt_length
    if card.method == "prefix_tuning":
        site = backbone.sites.attention[0]
        shape = (length, len(backbone.sites.attention), 2, site.key_heads, site.head_size)
        return Tuned(prefix=tensors[_PROMPT].view(shape).permute(1, 2, 3, 0, 4).contiguous())
    if card.method == "lora":
        return Tuned(lora=_pairs(tensors, backbone=backbone))
    if card.method == "linear_probing":
        return NOTHING
    prompt = tensors[_PROMPT]
    if prompt.shape != (length, backbone.hidden_size):
        raise WireError(
            f"an adapter's prompt must be of shape {(length, backbone.hidden_size)}, got {tuple(prompt.shape)}; "
            "tune again"
        )
    return Tuned(prompt=prompt)


def _pairs(tensors: Mapping[str, Tensor], *, backbone: Backbone) -> dict[str, LoraPair]:
    names = [name.removeprefix(_LORA).removesuffix(_A) for name in tensors if name.endswith(_A)]
    pairs = {name: LoraPair(a=tensors[_LORA + name + _A], b=tensors[_LORA + name + _B]) for name in names}
    for name, pair in pairs.items():
        inputs, outputs = backbone.sites.linear[name]
        if pair.a.shape[1] != inputs or tuple(pair.b.shape) != (outputs, len(pair.a)):
            raise WireError("an adapter's low-rank changes must fit the backbone's layers; tune again")
    return pairs


def _compares(weight: Tensor, *, card: AdapterCard, hidden_size: int) -> bool:
    """Whether a head compares: those of pairs do, but for the first ones, which read the mean of both texts."""
    can = card.task == "classification" and card.kind != "decoder" and bool(card.training.get("pairs"))
    return can and tuple(weight.shape[1:]) == (COMPARISON_VECTORS * hidden_size,)


def _check_head(weight: Tensor, bias: Tensor, *, classes: int, width: int) -> None:
    expected, found = ((classes, width), (classes,)), (tuple(weight.shape), tuple(bias.shape))
    if found != expected:
        raise WireError(f"an adapter's head must be of shapes {expected}, got {found}; tune again")


def _peft_config(adapter: Adapter) -> dict[str, Any] | None:
    card, tuned = adapter.card, adapter.tuned
    if card.method == "linear_probing":
        return None
    config = {
        "task_type": _PEFT_TASKS[card.kind],
        "base_model_name_or_path": card.model,
        "inference_mode": True,
    }
    if tuned.prefix is not None:
        sites, _, heads, _, size = tuned.prefix.shape
        shape = {"num_layers": sites, "num_attention_heads": heads, "token_dim": heads * size}
        own = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": card.prompt_length, "prefix_projection": False}
        return None if card.kind == "encoder-decoder" else config | own | shape | {"num_transformer_submodules": 1}
    if tuned.lora:
        rank = max(len(pair.a) for pair in tuned.lora.values())
        # alpha = r: the scale is in b already.
        return config | {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(tuned.lora)}
    prompt = {"num_virtual_tokens": card.prompt_length, "token_dim": adapter.prompt.shape[1]}
    return config | {"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1} | prompt
