"""Keys and values of rows that are being written, each filled up to its own length: rows come and go.

It is what `transformers` calls a cache, as far as its decoders ask for one: `update` for each layer of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

# Columns that are added when the longest row is full: growing copies everything.
_GROWTH: Final = 32


class RowCache:
    """Of B rows: keys and values (B, H, W, d) a layer, of which row b has filled the first `lengths[b]` columns."""

    def __init__(self, lengths: Tensor) -> None:
        """For a first pass over rows padded on the right, (B,) real positions each; it fills the cache as it is."""
        self.lengths = lengths
        self._filled = False
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer: int, **extras: Any) -> tuple[Tensor, Tensor]:
        """Add what a layer computed for the new positions; returns what it may see.

        Args:
            keys: (B, H, 1, d), or of a first pass (B, H, T, d).
            values: As the keys.
            layer: Which.
            extras: What else a version of `transformers` hands to its caches; it is of no use to this one.
        """
        if not self._filled:
            self._keys.append(keys)
            self._values.append(values)
            return keys, values
        rows = torch.arange(len(self.lengths), device=keys.device)
        self._keys[layer][rows, :, self.lengths] = keys[:, :, 0]
        self._values[layer][rows, :, self.lengths] = values[:, :, 0]
        return self._keys[layer], self._values[layer]

    def get_seq_length(self, layer: int = 0) -> int:
        """How many positions a layer holds at most."""
        return self._keys[layer].shape[2] if layer < len(self._keys) else 0

    def filled(self) -> RowCache:
        """After the first pass: from now on, one position a row is added at a time."""
        self._filled = True
        return self

    def make_room(self) -> Tensor:
        """Room for one more position a row; returns what the new position of each row sees, (B, 1, 1, W)."""
        width = self.get_seq_length()
        if int(self.lengths.max()) >= width:
            self._widen(width + _GROWTH)
        columns = torch.arange(self.get_seq_length(), device=self.lengths.device)
        return (columns <= self.lengths[:, None])[:, None, None]

    def advance(self) -> None:
        """Every row has one position more."""
        self.lengths = self.lengths + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        chosen = torch.tensor(rows, device=self.lengths.device, dtype=torch.long)
        self.lengths = self.lengths[chosen]
        width = int(self.lengths.max()) if rows else 0
        self._keys = [keys[chosen, :, :width] for keys in self._keys]
        self._values = [values[chosen, :, :width] for values in self._values]

    def part(self, rows: Sequence[int]) -> RowCache:
        """A cache of these rows alone."""
        found = RowCache(self.lengths).filled()
        found._keys, found._values = self._keys, self._values
        found.keep(rows)
        return found

    def join(self, other: RowCache) -> None:
        """Append the rows of another cache."""
        width = max(self.get_seq_length(), other.get_seq_length())
        self._widen(width)
        other._widen(width)
        self.lengths = torch.cat([self.lengths, other.lengths])
        self._keys = [torch.cat(pair) for pair in zip(self._keys, other._keys, strict=True)]
        self._values = [torch.cat(pair) for pair in zip(self._values, other._values, strict=True)]

    def _widen(self, width: int) -> None:
        more = (0, 0, 0, width - self.get_seq_length())
        self._keys = [pad(keys, more) for keys in self._keys]
        self._values = [pad(values, more) for values in self._values]
