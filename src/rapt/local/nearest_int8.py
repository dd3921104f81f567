"""The nearest row by an int8 screen of the compiled kernel: four times the speed of a float32 product, and as exact.

The bounds and why they hold are in native/nearest.c. What the kernel gives up on (a vector longer than 2⁶⁰, or hundreds
of rows that its eight bits cannot tell apart) goes to the float32 screen.
"""

from __future__ import annotations

from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rapt.local.nearest_float32 import Float32Screen
from rapt.local.nearest_kernel import Kernel, PackedTable
from rapt.local.nearest_recheck import nearest_of


class Int8Screen:
    """Searches the eligible rows of one table: holds a byte a number of them, and the table as it is."""

    def __init__(
        self, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], *, kernel: Kernel, packed: PackedTable
    ) -> None:
        """The search over what `fitting` packed."""
        self._embeddings, self._eligible = embeddings, eligible
        self._kernel, self._packed = kernel, packed

    @classmethod
    def fitting(
        cls, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], *, kernel: Kernel | None
    ) -> Self | None:
        """The screen, or None where there is no kernel or the numbers of this table are not for it.

        Args:
            embeddings: The table, (V, d), float32. Held, not copied.
            eligible: Sorted ids that may be found, int64, at least one.
            kernel: What computes.
        """
        dim = embeddings.shape[1]
        # The sums of products of two bytes are 32-bit integers, good for 2^16 of them.
        if kernel is None or not 0 < dim < 2**16 or not embeddings.flags.c_contiguous:
            return None
        packed = kernel.pack(embeddings, eligible)
        # The bounds of the kernel are about numbers that neither underflow nor overflow in float32.
        longest = float(np.sqrt(2 * packed.half.max()))
        return cls(embeddings, eligible, kernel=kernel, packed=packed) if 2.0**-40 < longest < 2.0**40 else None

    def search(self, vectors: NDArray[np.float64]) -> NDArray[np.int64]:
        """The id of the nearest eligible row to each vector, ties to the lowest id; (n, d) to (n,)."""
        vectors = np.ascontiguousarray(vectors)
        positions, places, left = self._kernel.candidates(vectors, self._packed, self._embeddings, self._eligible)
        ids = self._eligible[places]
        if len(left):
            positions = np.concatenate([positions, left])
            ids = np.concatenate([ids, self._float32.search(vectors[left])])
        return nearest_of(vectors, self._embeddings, positions, ids)

    @cached_property
    def _float32(self) -> Float32Screen:
        return Float32Screen(self._embeddings, self._eligible, copied=False)
