"""Prefix tuning: P trainable keys and values before those of every attention layer (Li & Liang 2021).

Every attention call of the model is reached: the encoder of an encoder-decoder, its decoder, and the attention from one
to the other. A prefix has no position and moves no text: where PEFT counts it as P positions and shifts the text by as
many, we leave the text where the backbone expects it.

Initialization `vocabulary`, `text` and `labels` is at the keys and values that the backbone itself computes for those
tokens, as Li & Liang (Sec. 7.4) found best for little data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from rapt.errors import TuningError, WireError
from rapt.service.adapter.methods.method import (
    PROMPT_OPTIONS,
    Form,
    Method,
    MethodSettings,
    Shape,
    choose_initial_tokens,
    linear,
    list_network_options,
    make_initial_vectors,
)
from rapt.service.adapter.methods.prompt_tuning import PROMPT
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.injection import Sites, compute_keys_and_values
from rapt.service.backbone.steering import Tuned
from rapt.wire.adapter_files import AdapterCard

# Spread of random keys and values, and of those that the network makes at first: near 0, so that the start is near the
# backbone without a prefix but for the attention that P empty positions take.
_SPREAD = 0.02


class PrefixTuning(nn.Module):
    """`prefix` is (S, 2, H, P, d), float32: keys and values of S attention sites."""

    def __init__(self, prefix: Tensor) -> None:
        """Take initial keys and values, which are copied."""
        super().__init__()
        self.prefix = nn.Parameter(prefix.detach().clone().float())

    def forward(self) -> Tuned:
        """The prefix as it is."""
        return Tuned(prefix=self.prefix)


class ReparametrizedPrefix(nn.Module):
    """A prefix that an MLP makes out of P vectors (Li & Liang 2021, Sec. 4.3)."""

    def __init__(
        self, inputs: Tensor, *, shape: tuple[int, int, int, int, int], hidden_size: int, generator: torch.Generator
    ) -> None:
        """Take P initial vectors, (P, h), and the shape (S, 2, H, P, d) to make."""
        super().__init__()
        sites, two, heads, _, size = shape
        self._each = (sites, two, heads, size)
        self.inputs = nn.Parameter(inputs.detach().clone().float())
        self.first = linear(inputs.shape[1], hidden_size, generator)
        self.second = linear(hidden_size, sites * two * heads * size, generator)

    def forward(self) -> Tuned:
        """The prefix that the network makes now."""
        made = self.second(torch.tanh(self.first(self.inputs)))  # (P, S * 2 * H * d)
        return Tuned(prefix=made.view(-1, *self._each).permute(1, 2, 3, 0, 4))


def make_prefix_tuning(
    backbone: Backbone, settings: MethodSettings, labels: tuple[str, ...], generator: torch.Generator
) -> nn.Module:
    """The prefix at its initial values.

    Raises:
        TuningError: The attention layers of the backbone differ in shape.
    """
    shape = compute_prefix_shape(backbone.sites, length=settings.prompt_length)
    if settings.reparametrization == "mlp":
        return ReparametrizedPrefix(
            make_initial_vectors(backbone, settings, labels, generator),
            shape=shape,
            hidden_size=settings.reparametrization_size or backbone.hidden_size,
            generator=generator,
        )
    token_ids = choose_initial_tokens(backbone, settings, labels, generator)
    if token_ids is None:
        return PrefixTuning(_SPREAD * torch.randn(shape, generator=generator))
    return PrefixTuning(compute_keys_and_values(backbone.sites, token_ids.to(backbone.device)))


def compute_prefix_shape(sites: Sites, *, length: int) -> tuple[int, int, int, int, int]:
    """(S, 2, H, P, d) of a prefix.

    Raises:
        TuningError: The attention layers differ in shape.
    """
    heads, size = sites.attention[0].key_heads, sites.attention[0].head_size
    if any((site.key_heads, site.head_size) != (heads, size) for site in sites.attention):
        raise TuningError(
            "prefix tuning needs attention layers of one shape, got several; choose prompt_tuning or lora"
        )
    return len(sites.attention), 2, heads, length, size


def _count_parameters(backbone: Backbone, settings: MethodSettings) -> int:
    sites, two, heads, length, size = compute_prefix_shape(backbone.sites, length=settings.prompt_length)
    made = sites * two * heads * size
    if settings.reparametrization == "none":
        return length * made
    inner = settings.reparametrization_size or backbone.hidden_size
    return length * backbone.embedding_size + inner * (backbone.embedding_size + 1) + made * (inner + 1)


def _list_shapes(card: AdapterCard, backbone: Backbone, found: Mapping[str, Shape]) -> dict[str, Shape]:
    try:
        sites, two, heads, length, size = compute_prefix_shape(backbone.sites, length=card.prompt_length)
    except TuningError:
        raise WireError(
            "an adapter with a prefix must be of a backbone with attention layers of one shape; tune again"
        ) from None
    return {PROMPT: (length, sites * two * heads * size)}


def _to_tensors(tuned: Tuned) -> dict[str, Tensor]:
    assert tuned.prefix is not None
    # (S, 2, H, P, d) -> (P, S * 2 * H * d), as PEFT keeps it
    return {PROMPT: tuned.prefix.permute(3, 0, 1, 2, 4).flatten(1)}


def _read_tensors(tensors: Mapping[str, Tensor], card: AdapterCard, backbone: Backbone) -> Tuned:
    sites, two, heads, length, size = compute_prefix_shape(backbone.sites, length=card.prompt_length)
    return Tuned(prefix=tensors[PROMPT].view(length, sites, two, heads, size).permute(1, 2, 3, 0, 4).contiguous())


def _describe_for_peft(card: AdapterCard, tuned: Tuned) -> dict[str, Any] | None:
    assert tuned.prefix is not None
    if card.kind == "encoder-decoder":
        return None  # PEFT would put all of it into the decoder
    sites, _, heads, length, size = tuned.prefix.shape
    shape = {"num_layers": sites, "num_attention_heads": heads, "token_dim": heads * size}
    own = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": length, "prefix_projection": False}
    return own | shape | {"num_transformer_submodules": 1}


_NETWORKS: Final = ("none", "mlp")

METHOD: Final = Method(
    title="prefix",
    make=make_prefix_tuning,
    parameters=_count_parameters,
    form=Form(shapes=_list_shapes, to_tensors=_to_tensors, from_tensors=_read_tensors, peft=_describe_for_peft),
    learning_rate=0.01,
    options=(*PROMPT_OPTIONS, *list_network_options(*_NETWORKS)),
    prompt="attention",
    reparametrizations=_NETWORKS,
)
