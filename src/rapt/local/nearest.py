"""The nearest eligible token, exactly: the hot loop of every mechanism that adds noise to an embedding.

Exact means decided in float64, ties to the lowest id. An approximate index would change the distribution of outputs,
and with it the channel that the guarantee and the audit speak about (Carpentier et al., arXiv 2411.11521).

Two steps. A *screen* names, for each vector, a few tokens that must contain the nearest one, by a bound on its rounding
that holds always, not almost always; where it names more than one, a *re-check* compares them in float64. There are two
screens: an int8 product by a kernel that is compiled when the package is installed, where there is a compiler, and a
float32 product by numpy. They give the same answers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError
from rapt.local.nearest_float32 import TILE, Float32Screen
from rapt.local.nearest_int8 import Int8Screen
from rapt.local.nearest_kernel import load_kernel

# Vectors a batch: each reads the table once.
BATCH: Final = 1024


class NearestToken:
    """Searches one table; holds no state between calls."""

    def __init__(
        self, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], *, use_kernel: bool = True
    ) -> None:
        """Prepare the search.

        Args:
            embeddings: The table E, (V, d), float32. Held where the int8 screen is used, so it must not change.
            eligible: Sorted ids that may be found, int64.
            use_kernel: Whether to take the int8 screen where its kernel was built and runs on this processor.

        Raises:
            VocabularyError: Nothing is eligible, or the ids are not sorted rows of the table.
        """
        if len(eligible) == 0 or eligible[0] < 0 or eligible[-1] >= len(embeddings) or (np.diff(eligible) <= 0).any():
            raise VocabularyError(
                f"eligible ids must be sorted rows of the table, got {len(eligible)} ids for {len(embeddings)} rows"
            )
        distinct = first_of_equal_rows(embeddings, eligible)
        self._dimension = embeddings.shape[1]
        self._screen: Int8Screen | Float32Screen
        int8 = Int8Screen.fitting(embeddings, distinct, kernel=load_kernel() if use_kernel else None)
        self._screen = Float32Screen(embeddings, distinct, copied=True) if int8 is None else int8

    @property
    def screen(self) -> str:
        """Which screen is used: "int8" or "float32"."""
        return "int8" if isinstance(self._screen, Int8Screen) else "float32"

    def search(self, vectors: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.int64]:
        """The id of the eligible token nearest to each vector by Euclidean distance, ties to the lowest id.

        Args:
            vectors: (n, d), float32 or float64, finite. Not changed.

        Returns:
            Token ids, (n,), int64.

        Raises:
            VocabularyError: The vectors are not finite, or not as wide as the table.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self._dimension:
            raise VocabularyError(f"vectors must be of shape (n, {self._dimension}), got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise VocabularyError(f"vectors must be finite, got a value that is not among {len(vectors)} vectors")
        found = np.empty(len(vectors), dtype=np.int64)
        for start in range(0, len(vectors), BATCH):
            batch = vectors[start : start + BATCH].astype(np.float64, copy=False)
            found[start : start + BATCH] = self._screen.search(batch)
        return found


def first_of_equal_rows(embeddings: NDArray[np.float32], eligible: NDArray[np.int64]) -> NDArray[np.int64]:
    """The eligible ids without those whose row equals that of a lower one, bit for bit: they are never the answer.

    Equal rows are candidates all or none. A table with thousands of them would fill the lists of a screen with ties.
    """
    marks = np.empty(len(eligible), dtype=np.uint64)
    # Sums of the bits of a row times odd numbers: equal for equal rows, and for hardly any others.
    factors = np.random.default_rng(0).integers(2**63, size=embeddings.shape[1], dtype=np.uint64) * 2 + 1
    for start in range(0, len(eligible), TILE):
        rows = np.ascontiguousarray(embeddings[eligible[start : start + TILE]])
        marks[start : start + TILE] = rows.view(np.uint32) @ factors
    _, first, place = np.unique(marks, return_index=True, return_inverse=True)
    twin = first[place]
    suspects = np.flatnonzero(twin != np.arange(len(eligible)))
    keep = np.ones(len(eligible), dtype=np.bool_)
    for start in range(0, len(suspects), TILE):
        part = suspects[start : start + TILE]
        same = embeddings[eligible[part]].view(np.uint32) == embeddings[eligible[twin[part]]].view(np.uint32)
        keep[part] = ~same.all(axis=1)
    return eligible[keep]
