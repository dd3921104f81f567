"""BERT's forward pass, ours: the numbers of Hugging Face's `BertModel`, and no padding is computed.

Devlin et al. 2019, post-norm layers. All that acts on one position at a time runs on real positions only, packed one
after the other; only attention sees rows, padded to the longest. Query, key and value are one matrix product.

Gradients flow to the inputs and to whatever steers it, though training keeps to Hugging Face's: there is no dropout
and no checkpointing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from rapt.service.model.steering import Steering

if TYPE_CHECKING:  # the pass itself needs no library
    from transformers import BertModel

_QKV: Final = ("query", "key", "value")
_USUAL: Final = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


class BertForward(nn.Module):
    """A frozen BERT without its word embeddings and pooler: vectors in, last-layer states out."""

    def __init__(self, weights: Mapping[str, Tensor], *, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Take weights by their names in `BertModel`.

        Args:
            weights: At least those of the embeddings and of every layer.
            config: As in `config.json`, one that `supports` takes.
            dtype: To compute in.
        """
        super().__init__()
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.epsilon: float = config["layer_norm_eps"]
        self.width: int = config["hidden_size"]
        prepared = {
            # What a second text has on top of the first token type is part of the input vectors.
            "positions": weights["embeddings.position_embeddings.weight"].to(dtype)
            + weights["embeddings.token_type_embeddings.weight"][0].to(dtype),
            "norm": _norm(weights, "embeddings.LayerNorm"),
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
            prepared[f"{layer}.norm1"] = _norm(weights, f"{name}.attention.output.LayerNorm")
            prepared[f"{layer}.norm2"] = _norm(weights, f"{name}.output.LayerNorm")
        for key, tensor in prepared.items():
            self.register_buffer(key.replace(".", "_"), tensor.to(dtype), persistent=False)

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        attention_mask: Tensor,
        position_ids: Tensor,
        steering: Steering | None = None,
    ) -> Tensor:
        """Last-layer states, (B, T, h); zero at padding.

        Args:
            inputs_embeds: Vectors at the place of word embeddings, (B, T, h), in the dtype of the weights.
            attention_mask: 1 at real positions, (B, T).
            position_ids: (B, T).
            steering: Prefixes and low-rank changes of the rows.
        """
        rows, longest, width = inputs_embeds.shape
        real = attention_mask.flatten().nonzero()[:, 0]
        # A low-rank change is given by row, so then rows stay whole. They have a pass of their own anyway.
        packed = len(real) < rows * longest and not (steering and steering.lora)
        index = real if packed else None
        x = inputs_embeds.reshape(rows * longest, width)
        places = position_ids.reshape(-1)
        if index is not None:
            x, places = x[index], places[index]
        x = self._normed(x + nn.functional.embedding(places, self.get_buffer("positions")), "norm")
        seen = _visible(attention_mask, steering)
        for layer in range(self.layers):
            x = self._layer(x, layer, shape=(rows, longest), index=index, seen=seen, steering=steering)
        if index is not None:
            x = x.new_zeros(rows * longest, width).index_copy(0, index, x)
        return x.view(rows, longest, width)

    def _layer(
        self,
        x: Tensor,
        layer: int,
        *,
        shape: tuple[int, int],
        index: Tensor | None,
        seen: Tensor | None,
        steering: Steering | None,
    ) -> Tensor:
        name = f"encoder.layer.{layer}"
        qkv = self._linear(x, f"{layer}_qkv")
        if steering and steering.lora:
            changes = [
                self._change(x, f"{name}.attention.self.{part}", shape=shape, steering=steering, width=self.width)
                for part in _QKV
            ]
            qkv = qkv + torch.cat(changes, dim=1)
        if index is not None:
            qkv = qkv.new_zeros(shape[0] * shape[1], qkv.shape[1]).index_copy(0, index, qkv)
        parts = qkv.view(*shape, 3, self.heads, self.width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, d)
        if steering is not None and steering.prefix is not None:
            own = steering.prefix[layer].to(key.dtype)  # (2, B, H, P, d)
            key, value = torch.cat([own[0], key], dim=2), torch.cat([own[1], value], dim=2)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=seen)
        mixed = mixed.transpose(1, 2).reshape(shape[0] * shape[1], self.width)
        if index is not None:
            mixed = mixed[index]
        x = self._normed(
            x + self._steered(mixed, f"{layer}_out", f"{name}.attention.output.dense", shape, steering),
            f"{layer}_norm1",
        )
        inner = gelu(self._steered(x, f"{layer}_up", f"{name}.intermediate.dense", shape, steering))
        return self._normed(
            x + self._steered(inner, f"{layer}_down", f"{name}.output.dense", shape, steering), f"{layer}_norm2"
        )

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias"))

    def _normed(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.get_buffer(name)
        return layer_norm(x, (self.width,), weight, bias, self.epsilon)

    def _steered(self, x: Tensor, name: str, site: str, shape: tuple[int, int], steering: Steering | None) -> Tensor:
        output = self._linear(x, name)
        if steering and steering.lora:
            output = output + self._change(x, site, shape=shape, steering=steering, width=output.shape[1])
        return output

    def _change(self, x: Tensor, site: str, *, shape: tuple[int, int], steering: Steering, width: int) -> Tensor:
        if site not in steering.lora:
            return x.new_zeros(1, width).expand(len(x), width)
        return steering.lora[site].change(x.view(*shape, -1)).reshape(len(x), width)


def bert_forward_of(model: BertModel, *, dtype: torch.dtype) -> BertForward | None:
    """The same BERT as a loaded `BertModel`, in the same memory; None if it has something that is not implemented here.

    Args:
        model: Its query, key and value weights become views of the fused ones.
        dtype: Of its weights.
    """
    config: Mapping[str, Any] = model.config.to_dict()
    if not supports(config):
        return None
    weights = dict(model.named_parameters())
    forward = BertForward({name: weight.detach() for name, weight in weights.items()}, config=config, dtype=dtype)
    for layer in range(forward.layers):
        for kind in ("weight", "bias"):
            thirds = forward.get_buffer(f"{layer}_qkv_{kind}").chunk(3)
            for part, third in zip(_QKV, thirds, strict=True):
                weights[f"encoder.layer.{layer}.attention.self.{part}.{kind}"].data = third
    return forward


def supports(config: Mapping[str, Any]) -> bool:
    """Whether a BERT of this `config.json` is of the usual kind."""
    return all(config.get(name, value) == value for name, value in _USUAL.items())


def _norm(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return torch.stack([weights[f"{name}.weight"], weights[f"{name}.bias"]])


def _visible(attention_mask: Tensor, steering: Steering | None) -> Tensor | None:
    """Which keys are seen, (B, 1, 1, P + T), or None if all are."""
    seen = attention_mask.bool()
    if steering is not None and steering.prefix is not None:
        rows, length = steering.prefix.shape[2], steering.prefix.shape[4]
        before = steering.prefix_mask
        if before is None:
            before = seen.new_ones(rows, length)
        seen = torch.cat([before, seen], dim=1)
    return None if bool(seen.all()) else seen[:, None, None, :]
