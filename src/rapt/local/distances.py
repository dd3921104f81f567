"""How far apart the tokens of a table lie: the distances at which a guarantee is worth stating.

η has the unit 1/distance, so a value of it says nothing without these. The distance to the nearest other token is
computed of every eligible row, exactly, and kept in the user's cache folder under the hash of the vocabulary: a sample
that is known beforehand would be passed by a table in which only the other rows were tampered with. Tables of more rows
than can be compared in a minute or so are sampled, with randomness that is new each time.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapt.errors import RaptError
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import Vocabulary, keep_by_hash
from rapt.this_machine import find_cache_folder
from rapt.whole_files import write_whole

SAMPLED_PARTNERS: Final = 1024
# Tables up to this size are compared whole: SmolLM2's 48,798 x 576 takes half a minute on a core, MiniLM's ten seconds.
_MOST_ROWS: Final = 2**16
# Of larger ones as many rows are, against all others, as come to this many pairs.
_MOST_PAIRS: Final = 2**30
# Smaller ones take less than it takes to read a file.
_LEAST_KEPT: Final = 4096
# Rows farthest from the centre, compared with all others: most outliers of a table are among them.
_FAR_ROWS: Final = 256
_ROWS_AT_ONCE: Final = 256


@dataclass(frozen=True, kw_only=True)
class TableDistances:
    """Euclidean distances between tokens, in float64.

    Attributes:
        rows: Eligible tokens that were compared with every other one.
        tokens: Eligible tokens in all; with `rows` equal to it, nothing was sampled but the pairs.
        pairs: Pairs behind `median`.
        nearest_5, nearest_50, nearest_95: Quantiles over `rows` of the distance to the nearest other token.
        median: Median distance of two different tokens.
        largest_seen: Largest distance found between any two rows; some pair may be farther apart.
        largest_bound: No two rows are farther apart than this, those among them that may be an input only.
    """

    rows: int
    tokens: int
    pairs: int
    nearest_5: float
    nearest_50: float
    nearest_95: float
    median: float
    largest_seen: float
    largest_bound: float


def measure_distances(vocabulary: Vocabulary) -> TableDistances:
    """The distances of a vocabulary's table; all zero when it has a single eligible token."""
    nearest = measure_isolation(vocabulary)
    spread = _measure_spread(vocabulary)
    five, half, ninety_five = (float(value) for value in np.quantile(nearest, [0.05, 0.5, 0.95]))
    return TableDistances(
        rows=len(nearest),
        tokens=len(vocabulary.eligible),
        pairs=spread.pairs,
        nearest_5=five,
        nearest_50=half,
        nearest_95=ninety_five,
        median=spread.median,
        largest_seen=spread.largest_seen,
        largest_bound=spread.largest_bound,
    )


class _Spread(NamedTuple):
    pairs: int
    median: float
    largest_seen: float
    largest_bound: float


@keep_by_hash
def _measure_spread(vocabulary: Vocabulary) -> _Spread:
    """Distances between any two tokens; see `TableDistances`."""
    table = vocabulary.embeddings[vocabulary.eligible]
    pairs = _measure_pairs(table, space_evenly(len(table), most=SAMPLED_PARTNERS))
    # A row that may not be an output may be an input: that of the unknown token.
    seen, bound = _bound_largest(vocabulary.embeddings)
    median = float(np.median(pairs)) if len(pairs) else 0.0
    return _Spread(len(pairs), median, max(seen, float(pairs.max(initial=0.0))), bound)


def measure_isolation(vocabulary: Vocabulary) -> NDArray[np.float64]:
    """Distance from each eligible row to the nearest other one, in their order; of a very large table, of a sample."""
    count = len(vocabulary.eligible)
    if count > _MOST_ROWS:
        rows = secure_stream().generator.choice(count, size=max(_MOST_PAIRS // count, 1), replace=False)
        return _measure_nearest(vocabulary.embeddings[vocabulary.eligible], np.sort(rows))
    return _measure_isolation(vocabulary).copy()


@keep_by_hash
def _measure_isolation(vocabulary: Vocabulary) -> NDArray[np.float64]:
    count = len(vocabulary.eligible)
    path = find_cache_folder() / f"isolation-{vocabulary.hash.removeprefix('sha256:')}.npy"
    if count >= _LEAST_KEPT and (found := _read(path, count)) is not None:
        return found
    found = _measure_whole_isolation(vocabulary.embeddings[vocabulary.eligible])
    if count >= _LEAST_KEPT:
        _keep(found, path)
    return found


def _read(path: Path, count: int) -> NDArray[np.float64] | None:
    try:
        found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(found, np.ndarray) and found.dtype == np.float64 and found.shape == (count,)
    return found if fits and np.isfinite(found).all() else None


def _keep(found: NDArray[np.float64], path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, found, allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, stream.getvalue())
    except (OSError, RaptError):
        return  # a cache that cannot be written costs time only


def _measure_whole_isolation(table: NDArray[np.float32]) -> NDArray[np.float64]:
    """Distance from each row to the nearest other one, (n,); each pair is looked at once."""
    count = len(table)
    if count < 2:
        return np.zeros(count)
    half = np.einsum("ij,ij->i", table, table) / 2
    best, nearest = np.full(count, -np.inf, dtype=np.float32), np.zeros(count, dtype=np.int64)

    def improve(places: NDArray[np.int64], scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        better = scores > best[places]
        best[places[better]], nearest[places[better]] = scores[better], rows[better]

    for start in range(0, count, _ROWS_AT_ONCE):
        rows, others = np.arange(start, min(start + _ROWS_AT_ONCE, count)), np.arange(start, count)
        # argmin ||x - w||² = argmax (x·w - ||w||²/2), a matrix product; the distance itself is then taken in float64.
        products = table[rows] @ table[start:].T
        scores = products - half[start:]
        scores[np.arange(len(rows)), np.arange(len(rows))] = -np.inf
        place = scores.argmax(axis=1)
        improve(rows, scores[np.arange(len(rows)), place], others[place])
        later = others[len(rows) :]
        if len(later):
            scores = products[:, len(rows) :] - half[rows, None]
            place = scores.argmax(axis=0)
            improve(later, scores[place, np.arange(len(later))], rows[place])
    found = np.empty(count)
    for start in range(0, count, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        found[part] = np.linalg.norm(np.subtract(table[part], table[nearest[part]], dtype=np.float64), axis=1)
    return found


def space_evenly(count: int, *, most: int) -> NDArray[np.int64]:
    """Up to `most` of the places 0 to `count` - 1, the first and the last among them where there are two, (n,)."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def _measure_nearest(table: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance from each of `rows` to the nearest other row of the table, (n,)."""
    if len(table) < 2:
        return np.zeros(len(rows))
    half_square = np.einsum("ij,ij->i", table, table) / 2
    found = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        chunk = rows[start : start + _ROWS_AT_ONCE]
        # argmin ||x - w||² = argmax (x·w - ||w||²/2), a matrix product; the distance itself is then taken in float64.
        scores = table[chunk] @ table.T - half_square
        scores[np.arange(len(chunk)), chunk] = -np.inf
        neighbours = table[scores.argmax(axis=1)].astype(np.float64)
        found[start : start + len(chunk)] = np.linalg.norm(table[chunk] - neighbours, axis=1)
    return found


def _bound_largest(table: NDArray[np.float32]) -> tuple[float, float]:
    """A distance that occurs, and one that none exceeds.

    Rows far from the centre are compared with all rows. Any two of the others lie in a ball around the centre, so
    their distance is at most its diameter.
    """
    if len(table) < 2:
        return 0.0, 0.0
    center = table.mean(axis=0, dtype=np.float64).astype(np.float32)
    shifted = table - center
    squares = np.einsum("ij,ij->i", shifted, shifted, dtype=np.float64)
    order = np.argsort(-squares, kind="stable")
    far, others = order[:_FAR_ROWS], order[_FAR_ROWS:]
    largest = 0.0
    for start in range(0, len(far), _ROWS_AT_ONCE):
        chunk = far[start : start + _ROWS_AT_ONCE]
        products = shifted[chunk] @ shifted.T
        largest = max(largest, float((squares[chunk, None] + squares[None, :] - 2 * products).max()))
    seen = float(np.sqrt(max(largest, 0.0)))
    diameter = 2 * float(np.sqrt(squares[others].max(initial=0.0)))
    # The thousandth on top covers float32: a product of d = 4,096 terms is off by 2.5e-4 of its size at the very worst.
    return seen, max(seen, diameter) * 1.001


def _measure_pairs(table: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distances of all pairs of two different rows out of these, flat."""
    chosen = table[rows].astype(np.float64)
    lengths = np.square(chosen).sum(axis=1)
    squares = lengths[:, None] + lengths - 2 * chosen @ chosen.T
    distances: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))[~np.eye(len(rows), dtype=bool)]
    return distances
