"""The language head: scores of words from last-layer states, frozen like everything that a checkpoint brings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class LanguageHead(nn.Module):
    """Logits E·f(g) + b: a table of words, behind a transformation where the architecture has one.

    BERT's masked-word head is a dense layer, an activation and a layer norm, then the table and a bias (Devlin et al.
    2019, as released); T5 multiplies states by h^-1/2 where it shares its table; decoders have the table alone.
    """

    table: Tensor
    bias: Tensor | None

    def __init__(
        self, table: Tensor, *, bias: Tensor | None = None, transform: nn.Module | None = None, scale: float = 1.0
    ) -> None:
        """Keep (V, h) rows, not copied, and what goes before them."""
        super().__init__()
        self.register_buffer("table", table.detach(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        self.transform = transform
        self.scale = scale

    def forward(self, states: Tensor, *, word_ids: Tensor | None = None) -> Tensor:
        """Logits of all words, (..., h) -> (..., V) in float32, or of `word_ids` alone, (..., C)."""
        table, bias = self.table, self.bias
        if word_ids is not None:
            table, bias = table[word_ids], None if bias is None else bias[word_ids]
        logits: Tensor = nn.functional.linear(self.transformed(states).to(table.dtype), table, bias)
        return logits.float()

    def transformed(self, states: Tensor) -> Tensor:
        """What is multiplied with the table, (..., h), float32."""
        if self.transform is not None:
            states = self.transform(states.to(self.table.dtype))
        return states.float() * self.scale

    def rows(self, word_ids: Tensor) -> tuple[Tensor, Tensor]:
        """W (C, h) and b (C,) of some words, float32: `transformed(g) W^T + b` are their logits."""
        weight = self.table[word_ids].float()
        bias = weight.new_zeros(len(weight)) if self.bias is None else self.bias[word_ids].float()
        return weight, bias


class MaskedWordTransform(nn.Module):
    """What BERT's masked-word head does before the table: dense layer, activation, layer norm."""

    def __init__(self, *, hidden_size: int, activation: Callable[[Tensor], Tensor], epsilon: float) -> None:
        """Make layers of the right sizes, whose weights are to be loaded."""
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=epsilon)
        self.activation = activation

    def forward(self, states: Tensor) -> Tensor:
        """Transformed states, of the same shape."""
        changed: Tensor = self.norm(self.activation(self.dense(states)))
        return changed


def transform_from(
    *, dense: tuple[Tensor, Tensor], norm: tuple[Tensor, Tensor], activation: Callable[[Tensor], Tensor], epsilon: float
) -> MaskedWordTransform:
    """The transformation with the weights and biases of a checkpoint."""
    transform = MaskedWordTransform(hidden_size=len(dense[1]), activation=activation, epsilon=epsilon)
    with torch.no_grad():
        for layer, (weight, bias) in ((transform.dense, dense), (transform.norm, norm)):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return transform
