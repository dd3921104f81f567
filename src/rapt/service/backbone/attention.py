"""Scaled dot-product attention: torch's own kernel, but where its backward pass is slow.

On a processor, torch's fused kernel takes more time for its backward pass in bfloat16 than all matrix products of the
model together; with attention written out a step is twice as fast (docs/decisions/0022). It holds the (B, H, Tq, Tk)
weights in memory, which are small beside the states of a layer for texts of the length of a prompt and a few sentences.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def is_written_out(query: Tensor) -> bool:
    """Whether attention with this query is to be computed by `written_out`."""
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
        return written_out(query, key, value, mask=seen)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen)


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(s q k' + bias) v over the keys that are seen, with the softmax in float32; (B, H, Tq, d).

    Args:
        query: (B, H, Tq, d).
        key: (B, H', Tk, d), where H' divides H: with grouped queries several heads share a key.
        value: As the key.
        mask: True where a query sees a key, or what is added to the scores, broadcastable to (B, H, Tq, Tk).
        bias: Added to the scores, broadcastable to (B, H, Tq, Tk).
        causal: Whether the first query sees the first key only, the next one two, and so on.
        scale: s; None takes 1/sqrt(d).
    """
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = ((query * scale) @ key.transpose(-1, -2)).float()
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
