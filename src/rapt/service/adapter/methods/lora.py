"""LoRA: a trainable low-rank change of the model's linear layers (Hu et al. 2021).

The numbers are those of PEFT's LoRA, and so is the file; what differs is that nothing is put into the model. The change
is a value that a call carries, so tenants share a batch and a job trains while requests are answered. No dropout: it
would need a generator of its own to be repeatable, and soft changes this small do not overfit by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import torch
from pydantic import Field
from torch import Tensor, nn

from rapt.errors import TuningError, WireError
from rapt.service.adapter.methods.method import Form, Method, MethodSettings, Option, Shape, Word
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import LoraPair, Tuned
from rapt.wire.adapter_files import MOST_PROMPT_POSITIONS, AdapterCard

# Query and value projections by the names that architectures give them; some have one layer for query, key and value.
QUERY_AND_VALUE: Final = (
    *("query", "value", "q", "v", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj"),
    *("c_attn", "query_key_value", "qkv_proj", "Wqkv"),
)

HIGHEST_RANK: Final = MOST_PROMPT_POSITIONS  # of an adapter, and of a job
# What PEFT puts around the name of a layer.
NAME, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class Lora(nn.Module):
    """A pair (a, b) for each changed layer: a at torch's usual uniform values, b at 0, so it starts as the backbone."""

    def __init__(
        self, sizes: dict[str, tuple[int, int]], *, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        """Take (in, out) of each layer to be changed."""
        super().__init__()
        self._names = tuple(sizes)
        self._scale = alpha / rank
        self.a = nn.ParameterList(
            torch.empty(rank, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            for inputs, _ in sizes.values()
        )
        self.b = nn.ParameterList(torch.zeros(outputs, rank) for _, outputs in sizes.values())

    def forward(self) -> Tuned:
        """The pairs as they are."""
        pairs = zip(self._names, self.a, self.b, strict=True)
        return Tuned(lora={name: LoraPair(a=a, b=self._scale * b) for name, a, b in pairs})


def make_lora(
    backbone: Backbone, settings: MethodSettings, labels: tuple[str, ...], generator: torch.Generator
) -> Lora:
    """The pairs at their initial values; `labels` play no part.

    Raises:
        TuningError: No linear layer has a target's name.
    """
    sizes = _list_sizes(backbone, settings)
    if not sizes:
        known = sorted({name.rsplit(".", 1)[-1] for name in backbone.sites.linear})
        raise TuningError(f"lora_targets must name linear layers of the backbone, got none of {', '.join(known)}")
    return Lora(sizes, rank=settings.lora_rank, alpha=settings.lora_alpha, generator=generator)


def _list_sizes(backbone: Backbone, settings: MethodSettings) -> dict[str, tuple[int, int]]:
    """The sizes (in, out) of the layers that are changed, by their names.

    Without targets: the query and value projections; where a model calls them otherwise, every layer of its attention,
    and where that is not found either, every layer as wide as the states on both sides.
    """
    linear, width = backbone.sites.linear, backbone.hidden_size
    wanted = settings.lora_targets or QUERY_AND_VALUE
    found = {name: size for name, size in linear.items() if name.rsplit(".", 1)[-1] in wanted}
    if found or settings.lora_targets:
        return found
    inside = tuple(site.name + "." for site in backbone.sites.attention)
    found = {name: size for name, size in linear.items() if name.startswith(inside)}
    return found or {name: size for name, size in linear.items() if size == (width, width)}


def _list_shapes(card: AdapterCard, backbone: Backbone, found: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes for the layers that are named, each of the rank that it states."""
    expected: dict[str, Shape] = {}
    for name, (inputs, outputs) in backbone.sites.linear.items():
        shape = found.get(NAME + name + A)
        if shape is None:
            continue
        rank = shape[0] if shape else 0
        if not 1 <= rank <= HIGHEST_RANK:
            raise WireError(f"an adapter's low-rank changes must be of rank 1 to {HIGHEST_RANK}; tune again")
        expected[NAME + name + A] = (rank, inputs)
        expected[NAME + name + B] = (outputs, rank)
    if not expected:
        raise WireError("an adapter's low-rank changes must be of linear layers of its backbone; tune again")
    return expected


def _to_tensors(tuned: Tuned) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, pair in tuned.lora.items():
        tensors |= {NAME + name + A: pair.a, NAME + name + B: pair.b}
    return tensors


def _read_tensors(tensors: Mapping[str, Tensor], card: AdapterCard, backbone: Backbone) -> Tuned:
    names = [name.removeprefix(NAME).removesuffix(A) for name in tensors if name.endswith(A)]
    return Tuned(lora={name: LoraPair(a=tensors[NAME + name + A], b=tensors[NAME + name + B]) for name in names})


def _describe_for_peft(card: AdapterCard, tuned: Tuned) -> dict[str, Any]:
    # alpha = r: the scale is in b already.
    rank = tuned.highest_rank
    return {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(tuned.lora)}


METHOD: Final = Method(
    title="LoRA",
    make=make_lora,
    parameters=lambda backbone, settings: settings.lora_rank * sum(map(sum, _list_sizes(backbone, settings).values())),
    form=Form(shapes=_list_shapes, to_tensors=_to_tensors, from_tensors=_read_tensors, peft=_describe_for_peft),
    learning_rate=0.002,
    options=(
        Option(name="r", setting="lora_rank", accepts=Annotated[int, Field(ge=1, le=HIGHEST_RANK)]),
        Option(name="lora_alpha", setting="lora_alpha", accepts=Annotated[float, Field(gt=0, le=10_000)]),
        Option(
            name="target_modules",
            setting="lora_targets",
            accepts=Annotated[
                Annotated[list[Word], Field(max_length=64, fail_fast=True)],
                Field(description="last part of the names of linear layers"),
            ],
        ),
    ),
)
