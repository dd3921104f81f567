"""Conditions that an adapter must meet before it is used: card, tensors and PEFT's configuration fit each other.

Whoever has a key may bring an adapter, and its rows share forward passes with everybody's. So names, shapes and types
follow from the card and the backbone alone, and are compared before a weight is read; numbers are finite, and so small
that no forward pass leaves the range of float32. What passes here answers every record that fits the backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from rapt.errors import TuningError, WireError
from rapt.service.adapter.methods import LINEAR_PROBING, METHODS
from rapt.service.adapter.methods.lora import A as LORA_A
from rapt.service.adapter.methods.lora import B as LORA_B
from rapt.service.adapter.methods.method import TASKS, Shape
from rapt.service.adapter.methods.prompt_tuning import PROMPT
from rapt.service.adapter.task_head import COMPARISON_VECTORS
from rapt.service.backbone.backbone import Backbone
from rapt.wire.adapter_files import AdapterCard
from rapt.wire.strict_json import parse_json

HEAD_WEIGHT, HEAD_BIAS = "classifier.weight", "classifier.bias"
HEAD_SHARES: Final = "classifier.label_shares"
TAUGHT_WEIGHT, TAUGHT_BIAS = "taught.weight", "taught.bias"
# Of a number in an adapter, and of what a low-rank change may make of inputs of size 1. Trained ones stay below 100.
# At these bounds the largest value on the way, the square of a gated layer's output, is some 1e31 of 3e38 in float32.
LARGEST_WEIGHT: Final = 1e4
_LARGEST_CHANGE: Final = 1e4
_ITEM_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
_MOST_HEADER_BYTES: Final = 1024 * 1024
_MOST_TENSORS: Final = 10_000
# What PEFT reads of its configuration to compute with an adapter of ours; all else is a name or a default.
_PEFT_READS: Final = frozenset(
    "peft_type task_type num_virtual_tokens token_dim num_layers num_attention_heads num_transformer_submodules "
    "prefix_projection r lora_alpha target_modules".split()
)


def check_card(card: AdapterCard, *, backbone: Backbone) -> None:
    """Refuse a card that no run on this backbone could have left (`WireError`, `TuningError`)."""
    if card.kind != backbone.kind:
        raise WireError(f"an adapter card must be of the backbone's kind, {backbone.kind}; tune again")
    if card.method not in METHODS:
        raise WireError(f"an adapter card must name a method of {', '.join(METHODS)}; upgrade rapt or tune again")
    method = METHODS[card.method]
    check_method(card.method, backbone=backbone)
    if card.task not in TASKS:
        raise WireError(f"an adapter card must name a task of {', '.join(TASKS)}; upgrade rapt or tune again")
    if card.task not in method.tasks:
        raise WireError(f"an adapter of {card.method} must be of the task {' or '.join(method.tasks)}; tune again")
    if card.task == "generation" and backbone.kind == "encoder":
        raise WireError("an adapter that generates text must be of a decoder or an encoder-decoder; tune again")
    if card.task != "classification" and backbone.language_head is None:
        raise WireError("an adapter that reads or writes words must be of a backbone with a language head; tune again")
    if (card.prompt_length > 0) != (method.prompt is not None):
        raise WireError("an adapter card must count prompt positions for a prompt or a prefix, and for nothing else")
    prompt = card.prompt_length if method.prompt == "sequence" else 0
    texts = 2 + len(backbone.frame.between) if card.pairs else 1
    needed = len(backbone.frame.start) + prompt + card.plain_tokens + texts + len(backbone.frame.end)
    if needed > backbone.max_positions:
        raise WireError(
            f"an adapter's prompt and plain tokens must leave room for a text in {backbone.max_positions} positions, "
            f"got {needed} with the shortest; tune again with fewer"
        )


def list_methods(backbone: Backbone) -> tuple[str, ...]:
    """List the methods that can adapt a backbone, the usual one first.

    A codebook has no layers to adapt, and a model that computes attention in a way of its own takes no prefix.
    """
    if backbone.is_codebook:
        return (LINEAR_PROBING,)
    takes_prefix = bool(backbone.sites.attention)
    return tuple(name for name, method in METHODS.items() if takes_prefix or method.prompt != "attention")


def check_method(method: str, *, backbone: Backbone) -> None:
    """Refuse a method that cannot adapt the backbone (`TuningError`)."""
    fitting = list_methods(backbone)
    if method not in fitting:
        raise TuningError(
            f"the method must be one of {', '.join(fitting)} for this model, which has no layers for another, "
            f"got method={method}"
        )


def read_tensors(weights: bytes, card: AdapterCard, *, backbone: Backbone) -> dict[str, Tensor]:
    """The tensors of a checked card, float32, on the backbone's device.

    Raises:
        WireError: They are not those that the card asks for, not finite, or too large for a forward pass.
    """
    _check_shapes(_read_stated_shapes(weights), card=card, backbone=backbone)
    try:
        tensors = {name: tensor.float().to(backbone.device) for name, tensor in load_tensors(weights).items()}
    except (SafetensorError, RuntimeError, ValueError):
        raise _make_damaged_error() from None
    check_numbers(tensors)
    return tensors


def check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite, or so large that a forward pass might not be (`WireError`)."""
    # A comparison with NaN is false.
    if not all(bool((tensor.abs() <= LARGEST_WEIGHT).all()) for tensor in tensors.values()):
        raise WireError(f"an adapter's weights must be finite and at most {LARGEST_WEIGHT:g} in size")
    for name, a in tensors.items():
        if name.endswith(LORA_A):
            b = tensors[name.removesuffix(LORA_A) + LORA_B]
            if not bool((b.abs() @ a.abs().sum(dim=1) <= _LARGEST_CHANGE).all()):
                raise WireError(f"an adapter's low-rank changes must multiply inputs by at most {_LARGEST_CHANGE:g}")


def compares(card: AdapterCard) -> bool:
    """Whether an adapter's head reads how the two texts of a pair differ: a decoder's last state has seen both."""
    return card.pairs and card.task == "classification" and card.kind != "decoder"


def check_peft_config(given: Mapping[str, Any], expected: Mapping[str, Any] | None) -> None:
    """Refuse a configuration with which PEFT would compute something else (`WireError`)."""
    if expected is None:
        raise WireError("an adapter that PEFT cannot read must come without adapter_config.json; leave it out")
    for name in sorted(_PEFT_READS & (given.keys() | expected.keys())):
        stated, ours = given.get(name), expected.get(name)
        if name == "target_modules" and isinstance(stated, list) and isinstance(ours, list):
            stated, ours = sorted(map(str, stated)), sorted(ours)
        if stated != ours and not (name not in expected and stated is None):
            raise WireError(f"adapter_config.json must have {name} as the weights have it; export the adapter again")


def _check_shapes(found: Mapping[str, Shape], *, card: AdapterCard, backbone: Backbone) -> None:
    """Refuse a tensor that is missing, one too many, or of another shape than the card and the backbone ask for."""
    classes = len(card.labels)
    width = backbone.hidden_size * (COMPARISON_VECTORS if compares(card) else 1)
    if card.task == "label_words":  # rows of the language head, which may be narrower
        width = backbone.require_language_head().table.shape[1]
    expected: dict[str, Shape] = {HEAD_WEIGHT: (classes, width), HEAD_BIAS: (classes,)}
    if backbone.code is not None and HEAD_SHARES in found:
        expected[HEAD_SHARES] = (classes,)
    if backbone.is_codebook and backbone.code is not None and TAUGHT_WEIGHT in found:
        expected |= {TAUGHT_WEIGHT: (classes, len(backbone.code.center)), TAUGHT_BIAS: (classes,)}
    expected |= METHODS[card.method].form.shapes(card, backbone, found)
    if found.keys() != expected.keys():
        raise WireError(
            f"an adapter's weights must be the {len(expected)} tensors that its card asks for, by PEFT's names, "
            f"got tensors={len(found)}; tune again"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            what = "head" if name in (HEAD_WEIGHT, HEAD_BIAS) else "prompt" if name == PROMPT else "low-rank changes"
            raise WireError(f"an adapter's {what} must be of shape {shape}, as card and backbone say; tune again")


def _read_stated_shapes(weights: bytes) -> dict[str, Shape]:
    """Shape of each tensor by the header of a safetensors file; their bytes lie in a row and fill the file."""
    length = int.from_bytes(weights[:8], "little")
    if not 2 <= length <= min(_MOST_HEADER_BYTES, len(weights) - 8):
        raise _make_damaged_error()
    try:
        header = parse_json(weights[8 : 8 + length], what="the header", most_fields=_MOST_TENSORS)
    except WireError:
        raise _make_damaged_error() from None
    if not isinstance(header, dict):
        raise _make_damaged_error()
    header.pop("__metadata__", None)  # notes of whoever wrote it: not looked at, and not kept
    shapes, places = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise _make_damaged_error()
        item, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not (_are_counts(shape) and _are_counts(place) and len(place) == 2 and type(item) is str):
            raise _make_damaged_error()
        if item not in _ITEM_BYTES:
            raise WireError(f"an adapter's weights must be of type {', '.join(_ITEM_BYTES)}; convert them")
        if place[1] - place[0] != math.prod(shape) * _ITEM_BYTES[item]:
            raise _make_damaged_error()
        shapes[name] = tuple(shape)
        places.append(tuple(place))
    end = 0
    for begin, following in sorted(places):
        if begin != end:
            raise _make_damaged_error()
        end = following
    if end != len(weights) - 8 - length:
        raise _make_damaged_error()
    return shapes


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value) and len(value) <= 8


def _make_damaged_error() -> WireError:
    return WireError("an adapter's weights must be a whole safetensors file; copy it again")
