"""Where a frozen model can be steered: its attention layers and its linear layers, and what they compute.

Apart from `injection`, so that whoever only asks for sizes does not load the library of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        attention: In the order in which a forward pass meets them.
        linear: Sizes (in, out) of every linear layer by its name.
        model: The model that was prepared.
    """

    attention: tuple[AttentionSite, ...]
    linear: Mapping[str, tuple[int, int]]
    model: PreTrainedModel


def keys_and_values(sites: Sites, token_ids: Tensor) -> Tensor:
    """What every attention site computes for a sequence of P tokens, (P,) -> (S, 2, H, P, d), float32."""
    calls = attention_calls(sites.model, token_ids)
    return torch.stack([torch.cat([key, value]).float() for _, key, value in calls])


@torch.no_grad()
def attention_calls(model: PreTrainedModel, token_ids: Tensor) -> list[AttentionCall]:
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
