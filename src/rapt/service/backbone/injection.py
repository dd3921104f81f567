"""How a steering reaches the inside of a frozen model: at its attention layers and its linear layers.

`install` prepares a loaded model once. From then on, `with steered(...)` around a call gives that call its prefixes and
low-rank changes; outside of it the model computes what it did before.

A prefix is put before the keys and values of each attention call, after their rotation and caching: it has no position,
is visible to every query, and is never in a cache. So it works in encoders, under causal masks, left padding and
grouped-query attention (each row's keys are given for the key heads, before they are repeated).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rapt.service.backbone.attention import is_written_out, written_out
from rapt.service.backbone.library import fused_attention, linear_sizes, register_attention
from rapt.service.backbone.sites import AttentionSite, Sites, attention_calls, recorder
from rapt.service.backbone.steering import Steering, current_steering

ATTENTION: Final = "rapt"
_SITE: Final = "rapt_site"


def install(model: PreTrainedModel) -> Sites:
    """Prepare a loaded model and find its sites, by one forward pass over one token."""
    model.set_attn_implementation(ATTENTION)
    names = {module: name for name, module in model.named_modules()}
    found = attention_calls(model, torch.zeros(1, dtype=torch.long, device=model.device))
    for index, (module, _, _) in enumerate(found):
        setattr(module, _SITE, index)
    linear: dict[str, tuple[int, int]] = {}
    for module, name in names.items():
        sizes = linear_sizes(module)
        if sizes is not None:
            linear[name] = sizes
            module.register_forward_hook(_Change(name))
    return Sites(
        attention=tuple(AttentionSite(names[module], key.shape[1], key.shape[3]) for module, key, _ in found),
        linear=linear,
        model=model,
    )


class _Change:
    """A forward hook: adds the low-rank change of one linear layer, if the call is steered there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        steering = current_steering()
        if steering is None or self._name not in steering.lora:
            return None
        return output + steering.lora[self._name].change(inputs[0])


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **extras: Any,  # transformers hands its own settings through to the attention function
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, with the prefix of this call before the keys and values."""
    recorded = recorder()
    if recorded is not None:
        recorded.append((module, key, value))
    steering = current_steering()
    if steering is not None and steering.prefix is not None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        attention_mask = _mask_with_prefix(attention_mask, steering, query=query, key=key, causal=bool(causal))
        is_causal = False  # whatever must not be seen is in the mask now
        own = steering.prefix[getattr(module, _SITE)].to(key.dtype)  # (2, B, H, P, d)
        key, value = torch.cat([own[0], key], dim=2), torch.cat([own[1], value], dim=2)
        if position_bias is not None:  # T5: a prefix is at no distance, so it has no bias
            position_bias = nn.functional.pad(position_bias, (own.shape[3], 0))
    if is_written_out(query):
        asked = getattr(module, "is_causal", True) if is_causal is None else is_causal
        mixed = written_out(
            query,
            key,
            value,
            mask=attention_mask,
            bias=position_bias,
            causal=bool(asked) and attention_mask is None and query.shape[2] > 1,
            scale=extras.get("scaling"),
        )
        return mixed.transpose(1, 2).contiguous(), None
    return fused_attention(
        module,
        query,
        key,
        value,
        attention_mask,
        is_causal=is_causal,
        position_bias=position_bias,
        **extras,
    )


def _mask_with_prefix(
    mask: Tensor | None, steering: Steering, *, query: Tensor, key: Tensor, causal: bool
) -> Tensor | None:
    """The mask over prefix and keys, (B, 1, Tq, P + Tk) or broadcastable; None when everything is visible."""
    assert steering.prefix is not None
    rows, length = steering.prefix.shape[2], steering.prefix.shape[4]
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        if causal and queries > 1:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril(keys - queries)[None, None]
        elif steering.prefix_mask is None:
            return None
        else:
            mask = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=key.device)
    seen = steering.prefix_mask
    if seen is None:
        seen = torch.ones(rows, length, dtype=torch.bool, device=key.device)
    if mask.dtype != torch.bool:
        seen = torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)
    before = seen[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    return torch.cat([before, mask.expand(rows, -1, -1, -1)], dim=3)


register_attention(ATTENTION, _attention)
