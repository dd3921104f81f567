"""The few nearest eligible tokens, exactly, in float64: for mechanisms that need more than the nearest one."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_VECTORS: Final = 128
_TILE: Final = 1024


def nearest_tokens(
    vectors: NDArray[np.float64], *, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `count` eligible tokens nearest to each vector, nearest first, ties to the lowest id, and their distances.

    Candidates come from squared distances by a matrix product, with a margin for its rounding; the order is decided by
    distances from the difference of the rows.

    Args:
        vectors: (n, d), finite.
        embeddings: The table, (V, d).
        eligible: Sorted ids, (C,).
        count: k; at most C of them are given.

    Returns:
        Ids, (n, k), int64, and distances, (n, k), float64.
    """
    count = min(count, len(eligible))
    ids, distances = np.empty((len(vectors), count), dtype=np.int64), np.empty((len(vectors), count))
    for start in range(0, len(vectors), _VECTORS):
        part = slice(start, start + _VECTORS)
        ids[part], distances[part] = _nearest_of_batch(vectors[part], embeddings, eligible, count)
    return ids, distances


def _nearest_of_batch(
    vectors: NDArray[np.float64], embeddings: NDArray[np.float32], eligible: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    squares = np.empty((len(vectors), len(eligible)))
    longest = 0.0
    for start in range(0, len(eligible), _TILE):
        rows = embeddings[eligible[start : start + _TILE]].astype(np.float64)
        lengths = np.einsum("ij,ij->i", rows, rows)
        longest = max(longest, float(lengths.max()))
        # ||v - w||² without ||v||², which is the same for all w.
        squares[:, start : start + _TILE] = lengths - 2 * vectors @ rows.T
    places = np.argpartition(squares, count - 1, axis=1)[:, :count]
    edge = np.take_along_axis(squares, places, axis=1).max(axis=1)
    # (d + 3) 2^-53 of the sizes of the terms, with room.
    size = longest + 2 * np.linalg.norm(vectors, axis=1) * np.sqrt(longest)
    level = edge + 4 * (vectors.shape[1] + 3) * 2.0**-53 * size
    places.sort(axis=1)  # ascending, so that a stable order gives ties to the lowest id
    places, distances = _ordered(vectors, embeddings, eligible, places)
    for i in np.flatnonzero((squares <= level[:, None]).sum(axis=1) > count):  # a tie at the edge, or nearly
        among = np.flatnonzero(squares[i] <= level[i])[None]
        order, exact = _ordered(vectors[i : i + 1], embeddings, eligible, among)
        places[i], distances[i] = order[0, :count], exact[0, :count]
    return eligible[places], distances


def _ordered(
    vectors: NDArray[np.float64],
    embeddings: NDArray[np.float32],
    eligible: NDArray[np.int64],
    places: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The places of each row by distance from its vector, and the distances."""
    exact = np.empty(places.shape)
    for column in range(places.shape[1]):
        difference = vectors - embeddings[eligible[places[:, column]]]
        exact[:, column] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    order = np.argsort(exact, axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1), np.take_along_axis(exact, order, axis=1)
