"""BERT's forward pass, ours: the numbers of Hugging Face's `BertModel`, and no padding is computed.

Devlin et al. 2019, post-norm layers. All that acts on one position at a time runs on real positions only, packed one
after the other; only attention sees rows, padded to the longest. Query, key and value are one matrix product. Where the
states of some positions only are asked for, the last layer computes no others.

Gradients flow to the inputs and to what steers it, so tenants are tuned through it: a frozen model has no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from rapt.service.backbone.injection import attend
from rapt.service.backbone.steering import Steering, run_layer

if TYPE_CHECKING:  # the pass itself needs no library
    from transformers import BertModel

_QKV: Final = ("query", "key", "value")
# A processor makes a kernel for every size of matrix product in bfloat16, which takes as long as the product, and keeps
# it. So there are few sizes: rows are added that nobody reads. In float32 there are no such kernels.
_MULTIPLES: Final = {torch.bfloat16: 64}
_USUAL: Final = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


@dataclass(frozen=True, eq=False)
class Packed:
    """Some positions of B rows, one after the other: N of the B * T that there are.

    Attributes:
        count: Number N of positions.
        places: Place of each among all positions, (N,); after them, the first of them as often as sizes ask for.
        rows: Index among the N of the one at each position, (B * T,); any index at a position that is left out.
        columns: The same with the positions of each row moved to its beginning, (B, A): A is their largest number.
        filled: Place of each of the N among those, (N,), and of the first again as often.
    """

    count: int
    places: Tensor
    rows: Tensor
    columns: Tensor
    filled: Tensor

    @classmethod
    def of(cls, mask: Tensor, *, multiple: int) -> Packed:
        """The positions where a mask, (B, T), is not 0, filled up to a multiple of a number."""
        chosen = mask != 0
        counts = chosen.sum(dim=1)
        count = int(counts.sum())
        column = torch.arange(int(counts.max()), device=mask.device)
        starts = counts.cumsum(dim=0) - counts
        return cls(
            count=count,
            places=_fill_up(chosen.flatten().nonzero()[:, 0], multiple),
            rows=(chosen.flatten().cumsum(dim=0) - 1).clamp(min=0),
            columns=(starts[:, None] + column).clamp(max=count - 1),
            filled=_fill_up((column < counts[:, None]).flatten().nonzero()[:, 0], multiple),
        )


class BertForward(nn.Module):
    """A frozen BERT without its word embeddings and pooler: vectors in, last-layer states out."""

    def __init__(
        self, weights: Mapping[str, Tensor], *, config: Mapping[str, Any], dtype: torch.dtype, multiple: int | None
    ) -> None:
        """Take weights by their names in `BertModel`.

        Args:
            weights: Weights of the embeddings and of every layer, at the least.
            config: Content of `config.json`, which `supports` must take.
            dtype: Number format to compute in.
            multiple: Number that the rows of a product of packed positions are filled up to a multiple of; None for
                what suits the dtype.
        """
        super().__init__()
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.epsilon: float = config["layer_norm_eps"]
        self.width: int = config["hidden_size"]
        self.multiple = _MULTIPLES.get(dtype, 1) if multiple is None else multiple
        prepared = {
            # What a second text has on top of the first token type is part of the input vectors.
            "positions": weights["embeddings.position_embeddings.weight"].to(dtype)
            + weights["embeddings.token_type_embeddings.weight"][0].to(dtype),
            "norm": _normalize(weights, "embeddings.LayerNorm"),
        }
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            for part, source in (
                ("out", "attention.output.dense"),
                ("up", "intermediate.dense"),
                ("down", "output.dense"),
            ):
                prepared[f"{layer}.{part}.weight"] = weights[f"{name}.{source}.weight"]
                prepared[f"{layer}.{part}.bias"] = weights[f"{name}.{source}.bias"]
            for kind in ("weight", "bias"):
                own = [weights[f"{name}.attention.self.{part}.{kind}"] for part in _QKV]
                prepared[f"{layer}.qkv.{kind}"] = torch.cat(own)
            prepared[f"{layer}.norm1"] = _normalize(weights, f"{name}.attention.output.LayerNorm")
            prepared[f"{layer}.norm2"] = _normalize(weights, f"{name}.output.LayerNorm")
        for key, tensor in prepared.items():
            self.register_buffer(key.replace(".", "_"), tensor.to(dtype), persistent=False)

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        attention_mask: Tensor,
        position_ids: Tensor,
        steering: Steering | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Last-layer states, (B, T, h); zero at padding, and where none is wanted.

        Args:
            inputs_embeds: Vectors at the place of word embeddings, (B, T, h), in the dtype of the weights.
            attention_mask: 1 at real positions, (B, T).
            position_ids: (B, T).
            steering: Prefixes and low-rank changes of the rows.
            wanted: Not 0 at the real positions whose states are asked for, (B, T), one a row at least; None asks for
                all. The last layer computes no others, unless there are low-rank changes.
        """
        rows, longest, width = inputs_embeds.shape
        whole = bool(steering and steering.lora)  # a low-rank change is given by row; it has a pass of its own anyway
        real = Packed.of(attention_mask, multiple=self.multiple)
        packed = None if whole or real.count == rows * longest else real
        asked = None if whole or wanted is None else Packed.of(wanted, multiple=self.multiple)
        x = inputs_embeds.reshape(rows * longest, width)
        places = position_ids.reshape(-1)
        if packed is not None:
            x, places = x.index_select(0, packed.places), places[packed.places]
        x = self._apply_norm(x + nn.functional.embedding(places, self.get_buffer("positions")), "norm")
        seen = _mask_visible(attention_mask, steering)
        for layer in range(self.layers):
            x = run_layer(
                self._run_layer,
                x,
                layer,
                shape=(rows, longest),
                packed=packed,
                asked=asked if layer == self.layers - 1 else None,
                seen=seen,
                steering=steering,
            )
        there = asked or packed
        if there is not None:
            x = x.new_zeros(rows * longest, width).index_copy_(0, there.places[: there.count], x[: there.count])
        return x.view(rows, longest, width)

    def _run_layer(
        self,
        x: Tensor,
        layer: int,
        *,
        shape: tuple[int, int],
        packed: Packed | None,
        asked: Packed | None,
        seen: Tensor | None,
        steering: Steering | None,
    ) -> Tensor:
        """States after a layer at the positions of `x`, or at those that are asked for."""
        name = f"encoder.layer.{layer}"
        heads = (self.heads, self.width // self.heads)
        if asked is None:
            qkv = self._apply_linear(x, f"{layer}_qkv")
            if steering and steering.lora:
                changes = [
                    self._change(x, f"{name}.attention.self.{part}", shape=shape, steering=steering, width=self.width)
                    for part in _QKV
                ]
                qkv = qkv + torch.cat(changes, dim=1)
            if packed is not None:
                qkv = qkv.index_select(0, packed.rows)
            query, key, value = qkv.view(*shape, 3, *heads).permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, d)
        else:
            both = self._apply_linear(x, f"{layer}_qkv", first=self.width)
            x = x.index_select(0, asked.places if packed is None else packed.rows[asked.places])
            if packed is not None:
                both = both.index_select(0, packed.rows)
            key, value = both.view(*shape, 2, *heads).permute(2, 0, 3, 1, 4).unbind(0)
            query = self._apply_linear(x, f"{layer}_qkv", last=self.width)[asked.columns]  # (B, A, h)
            query = query.view(*asked.columns.shape, *heads).transpose(1, 2)
        if steering is not None and steering.prefix is not None:
            own = steering.prefix[layer].to(key.dtype)  # (2, B, H, P, d)
            key, value = torch.cat([own[0], key], dim=2), torch.cat([own[1], value], dim=2)
        mixed = attend(query, key, value, seen=seen)
        mixed = mixed.transpose(1, 2).reshape(-1, self.width)
        if asked is not None:
            mixed = mixed.index_select(0, asked.filled)
        elif packed is not None:
            mixed = mixed.index_select(0, packed.places)
        out = self._add_steering(mixed, f"{layer}_out", f"{name}.attention.output.dense", shape, steering)
        x = self._apply_norm(out.add_(x), f"{layer}_norm1")
        inner = gelu(self._add_steering(x, f"{layer}_up", f"{name}.intermediate.dense", shape, steering))
        down = self._add_steering(inner, f"{layer}_down", f"{name}.output.dense", shape, steering)
        return self._apply_norm(down.add_(x), f"{layer}_norm2")

    def _apply_linear(self, x: Tensor, name: str, *, first: int = 0, last: int | None = None) -> Tensor:
        weight, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
        return linear(x, weight[first:last], bias[first:last])

    def _apply_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.get_buffer(name)
        return layer_norm(x, (self.width,), weight, bias, self.epsilon)

    def _add_steering(
        self, x: Tensor, name: str, site: str, shape: tuple[int, int], steering: Steering | None
    ) -> Tensor:
        output = self._apply_linear(x, name)
        if steering and steering.lora:
            output = output + self._change(x, site, shape=shape, steering=steering, width=output.shape[1])
        return output

    def _change(self, x: Tensor, site: str, *, shape: tuple[int, int], steering: Steering, width: int) -> Tensor:
        if site not in steering.lora:
            return x.new_zeros(1, width).expand(len(x), width)
        return steering.lora[site].change(x.view(*shape, -1)).reshape(len(x), width)


def bert_forward_of(model: BertModel, *, dtype: torch.dtype, multiple: int | None = None) -> BertForward | None:
    """The same BERT as a loaded `BertModel`, in the same memory; None if it has something that is not implemented here.

    Args:
        model: Loaded model, whose query, key and value weights become views of the fused ones.
        dtype: Type of the model's weights.
        multiple: Number that the rows of a product are filled up to a multiple of, as in `BertForward`.
    """
    config: Mapping[str, Any] = model.config.to_dict()
    if not supports(config):
        return None
    weights = dict(model.named_parameters())
    detached = {name: weight.detach() for name, weight in weights.items()}
    forward = BertForward(detached, config=config, dtype=dtype, multiple=multiple)
    for layer in range(forward.layers):
        for kind in ("weight", "bias"):
            thirds = forward.get_buffer(f"{layer}_qkv_{kind}").chunk(3)
            for part, third in zip(_QKV, thirds, strict=True):
                weights[f"encoder.layer.{layer}.attention.self.{part}.{kind}"].data = third
    return forward


def supports(config: Mapping[str, Any]) -> bool:
    """Whether a BERT of this `config.json` is of the usual kind."""
    return all(config.get(name, value) == value for name, value in _USUAL.items())


def _fill_up(places: Tensor, multiple: int) -> Tensor:
    return torch.cat([places, places[:1].expand(-len(places) % multiple)])


def _normalize(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return torch.stack([weights[f"{name}.weight"], weights[f"{name}.bias"]])


def _mask_visible(attention_mask: Tensor, steering: Steering | None) -> Tensor | None:
    """Return a mask of the keys that are seen, (B, 1, 1, P + T), or None if all are."""
    seen = attention_mask.bool()
    if steering is not None and steering.prefix is not None:
        rows, length = steering.prefix.shape[2], steering.prefix.shape[4]
        before = steering.prefix_mask
        if before is None:
            before = seen.new_ones(rows, length)
        seen = torch.cat([before, seen], dim=1)
    return None if bool(seen.all()) else seen[:, None, None, :]
