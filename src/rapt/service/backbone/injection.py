"""How a steering reaches the inside of a frozen model: at its attention layers and its linear layers.

`install` prepares a loaded model once. From then on, `with apply_steering(...)` around a call gives that call its
prefixes and low-rank changes; outside of it the model computes what it did before.

A prefix is put before the keys and values of each attention call, after their rotation and caching: it has no position,
is visible to every query, and is never in a cache. So it works in encoders, under causal masks, left padding and
grouped-query attention (each row's keys are given for the key heads, before they are repeated).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rapt.service.backbone.library import attend_fused, quiet, read_linear_sizes, register_attention
from rapt.service.backbone.steering import Steering, get_steering, prepare_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION: Final = "rapt"
_SITE: Final = "rapt_site"

AttentionCall = tuple[nn.Module, Tensor, Tensor]

_recorder: ContextVar[list[AttentionCall] | None] = ContextVar("recorder", default=None)


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer: its name in the model, the number of its key heads and their width."""

    name: str
    key_heads: int
    head_size: int


@dataclass(frozen=True)
class Sites:
    """Where a model can be steered.

    Attributes:
        attention: Attention layers in the order in which a forward pass meets them.
        linear: Sizes (in, out) of every linear layer by its name.
        model: The model that was prepared.
        layers: Names of the layers that a run may compute again in place of keeping what they hold.
        repeats: Times that a forward pass goes through one layer: more than once where layers share their weights.
    """

    attention: tuple[AttentionSite, ...]
    linear: Mapping[str, tuple[int, int]]
    model: PreTrainedModel
    layers: tuple[str, ...] = ()
    repeats: int = 1


def compute_keys_and_values(sites: Sites, token_ids: Tensor) -> Tensor:
    """Compute what every attention site makes of a sequence of P tokens, (P,) -> (S, 2, H, P, d), float32."""
    calls = _list_first_calls(record_attention_calls(sites.model, token_ids))
    return torch.stack([torch.cat([key, value]).float().to(token_ids.device) for _, key, value in calls])


def _list_first_calls(calls: list[AttentionCall]) -> list[AttentionCall]:
    """The first call of each module: a model may pass through one layer many times (ALBERT), which is one site."""
    return list({call[0]: call for call in reversed(calls)}.values())[::-1]


@torch.no_grad()
def record_attention_calls(model: PreTrainedModel, token_ids: Tensor) -> list[AttentionCall]:
    """Module, keys and values, each (1, H, P, d), of every attention call of one forward pass, in order."""
    calls: list[AttentionCall] = []
    token, one = _recorder.set(calls), token_ids[None]
    try:
        model(one, decoder_input_ids=one) if model.config.is_encoder_decoder else model(one)
    finally:
        _recorder.reset(token)
    return calls


def recorder() -> list[AttentionCall] | None:
    """Where an attention call of this thread is to be noted, if anywhere."""
    return _recorder.get()


def install(model: PreTrainedModel) -> Sites:
    """Prepare a loaded model and find its sites, by one forward pass over one token."""
    register_attention(ATTENTION, _attend)
    model.set_attn_implementation(ATTENTION)
    names = {module: name for name, module in model.named_modules()}
    calls = record_attention_calls(model, torch.zeros(1, dtype=torch.long, device=model.device))
    found = _list_first_calls(calls)
    for index, (module, _, _) in enumerate(found):
        setattr(module, _SITE, index)
    return Sites(
        attention=tuple(AttentionSite(names[module], key.shape[1], key.shape[3]) for module, key, _ in found),
        linear=_hook_linear(model),
        model=model,
        layers=prepare_layers(model),
        repeats=max(1, len(calls) // max(1, len(found))),
    )


def install_where_it_can(model: PreTrainedModel) -> Sites:
    """Prepare a model that may compute attention in a way of its own: then it has no attention sites, and stays so."""
    usual = model.config._attn_implementation
    try:
        with quiet():
            found = install(model)
    # What transformers' models raise whose attention cannot be replaced, or whose pass needs more than token ids.
    except (ValueError, NotImplementedError, AttributeError, TypeError):
        found = Sites(attention=(), linear={}, model=model)
    if found.attention:
        return found
    model.set_attn_implementation(usual)
    if found.linear:
        return found
    return Sites(attention=(), linear=_hook_linear(model), model=model, layers=prepare_layers(model))


def _hook_linear(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """The sizes of the linear layers by name, each hooked to be changed."""
    linear: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        sizes = read_linear_sizes(module)
        if sizes is not None:
            linear[name] = sizes
            module.register_forward_hook(_Change(name))
    return linear


class _Change:
    """A forward hook: adds the low-rank change of one linear layer, if the call is steered there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        steering = get_steering()
        if steering is None or self._name not in steering.lora:
            return None
        return output + steering.lora[self._name].change(inputs[0].to(output.device))


def _attend(
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
    steering = get_steering()
    if steering is not None and steering.prefix is not None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        attention_mask = _mask_with_prefix(attention_mask, steering, query=query, key=key, causal=bool(causal))
        is_causal = False  # whatever must not be seen is in the mask now
        # (2, B, H, P, d); this layer may be on a device of its own.
        own = steering.prefix[getattr(module, _SITE)].to(key)
        key, value = torch.cat([own[0], key], dim=2), torch.cat([own[1], value], dim=2)
        if position_bias is not None:  # T5: a prefix is at no distance, so it has no bias
            position_bias = nn.functional.pad(position_bias, (own.shape[3], 0))
    cap = extras.get("softcap")  # Gemma 2's, which torch's own kernel leaves out
    if cap is not None or is_written_out(query):
        asked = getattr(module, "is_causal", True) if is_causal is None else is_causal
        mixed = attend_step_by_step(
            query,
            key,
            value,
            mask=attention_mask,
            bias=position_bias,
            causal=bool(asked) and attention_mask is None and query.shape[2] > 1,
            scale=extras.get("scaling"),
            cap=cap,
        )
        return mixed.transpose(1, 2).contiguous(), None
    return attend_fused(
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
    seen = torch.ones(rows, length, dtype=torch.bool, device=key.device) if seen is None else seen.to(key.device)
    if mask.dtype != torch.bool:
        seen = torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)
    before = seen[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    return torch.cat([before, mask.expand(rows, -1, -1, -1)], dim=3)


# Torch's own kernel computes attention, but where its backward pass is slow: on a processor and in bfloat16 it takes
# more time than all matrix products of the model together, and with attention written out a step is twice as fast
# (docs/decisions/0022). Written out, it holds the (B, H, Tq, Tk) weights in memory, which are small beside the states
# of a layer for texts of the length of a prompt and a few sentences.


def is_written_out(query: Tensor) -> bool:
    """Whether attention with this query is to be computed by `attend_step_by_step`."""
    return torch.is_grad_enabled() and query.device.type == "cpu" and query.dtype == torch.bfloat16


def attend(query: Tensor, key: Tensor, value: Tensor, *, seen: Tensor | None) -> Tensor:
    """Means of the values, (B, H, Tq, d), by whichever way is faster here.

    Args:
        query: (B, H, Tq, d).
        key: (B, H, Tk, d).
        value: (B, H, Tk, d).
        seen: True where a query sees a key, broadcastable to (B, H, Tq, Tk); None where all are seen.
    """
    if is_written_out(query):
        return attend_step_by_step(query, key, value, mask=seen)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen)


def attend_step_by_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """softmax(s q k' + bias) v over the keys that are seen, with the softmax in float32; (B, H, Tq, d).

    Args:
        query: (B, H, Tq, d).
        key: (B, H', Tk, d), where H' divides H: with grouped queries several heads share a key.
        value: Values that belong to the keys, (B, H', Tk, d).
        mask: True where a query sees a key, or what is added to the scores, broadcastable to (B, H, Tq, Tk).
        bias: Added to the scores, broadcastable to (B, H, Tq, Tk).
        causal: Whether the first query sees the first key only, the next one two, and so on.
        scale: s; None takes 1/sqrt(d).
        cap: Cap c; scores are c tanh(score / c) before anything is added. None takes them as they are.
    """
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = ((query * scale) @ key.transpose(-1, -2)).float()
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias
    # Finite: a row of padding that sees nothing must not become a nan.
    least = torch.finfo(scores.dtype).min
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, least)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, least)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(value.dtype) @ value
