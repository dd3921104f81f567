"""The compiled int8 kernel of the search, if it was built, this processor can run it, and it multiplies correctly.

The kernel is optional: without it the search is a float32 matrix product, exact as well and about four times slower.
Source and method are in native/nearest.c; the choice is in docs/decisions/0010-own-int8-kernel.md.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.ctypeslib import ndpointer
from numpy.typing import NDArray

# Vectors a tile and rows a block of the kernel, and of the functions it has to export.
VECTORS: Final = 6
BLOCK: Final = 64
# Vectors that AMX multiplies together, and the number of groups of four numbers that its tiles are filled up to.
WIDE: Final = 32
DEEP: Final = 16
_VERSION: Final = 1
_LIBRARY: Final = Path(__file__).parent / "native" / "_nearest.so"
# Candidates of one vector that the kernel holds before it gives it back. On MiniLM's table about ten pass its bound; on
# bert-tiny's, where hundreds of unused rows lie close together, up to 512 do.
_CAPACITY: Final = 1024


@dataclass(frozen=True)
class PackedTable:
    """Rows quantized for the kernel; V' is their number rounded up to whole blocks.

    Attributes:
        count: Number of rows n.
        words: (V' / 64, ⌈d / 4⌉, 64, 4), uint8: quotients of a row and its step, plus 128.
        numbers: Step of each row, half its squared length from below, what that is short of it, the length of what
            quantizing took off, and its quantized length: five times (V',), float32.
        half: ||w||² / 2, (n,), float64.
    """

    count: int
    words: NDArray[np.uint8] = field(repr=False)
    numbers: tuple[NDArray[np.float32], ...] = field(repr=False)
    half: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class Kernel:
    """Functions of the library; any thread may call them.

    `tiles` is the search by AMX, which finds the same as the other; None where the processor or the system has none.
    """

    _pack: Callable[..., None] = field(repr=False)
    _candidates: Callable[..., None] = field(repr=False)
    tiles: Callable[..., None] | None = field(repr=False)

    def __reduce__(self) -> tuple[Callable[[], Kernel | None], tuple[()]]:
        """In another process, the library as that process loads it: a worker may be sent a search that is prepared."""
        return load_kernel, ()

    def pack(self, embeddings: NDArray[np.float32], eligible: NDArray[np.int64]) -> PackedTable:
        """Quantize the eligible rows.

        Args:
            embeddings: (V, d), float32, contiguous, finite.
            eligible: Sorted rows of it, (n,), int64.
        """
        count, dim = len(eligible), embeddings.shape[1]
        blocks, groups = -(-count // BLOCK), -(-dim // 4)
        if self.tiles is not None:
            groups = -(-groups // DEEP) * DEEP
        words = _align_to_lines((blocks, groups, BLOCK, 4), dtype=np.uint8)
        numbers = tuple(np.empty(blocks * BLOCK, dtype=np.float32) for _ in range(5))
        half = np.empty(count)
        self._pack(embeddings, eligible, count, dim, groups, words, *numbers, half)
        return PackedTable(count, words, numbers, half)

    def candidates(
        self,
        vectors: NDArray[np.float64],
        packed: PackedTable,
        embeddings: NDArray[np.float32],
        eligible: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (position of a vector, place among the eligible) that hold the nearest of every vector but some.

        Args:
            vectors: (n, d), float64, contiguous, finite.
            packed: Packed form of the next two, from `pack`.
            embeddings: (V, d), float32, contiguous.
            eligible: Sorted rows of it.

        Returns:
            Positions and places of the pairs, in the order of the vectors; and the positions of those vectors that the
            kernel gave up on, because they are too long or their nearest rows too many. Three times int64.
        """
        count, dim = vectors.shape
        blocks, groups = packed.words.shape[:2]
        search, together = self._candidates, VECTORS
        if self.tiles is not None and groups % DEEP == 0:
            search, together = self.tiles, WIDE
        tiles = -(-count // together)
        rows = np.empty((count, _CAPACITY), dtype=np.int32)
        found = np.empty(count, dtype=np.int32)
        search(
            vectors,
            count,
            dim,
            packed.words,
            blocks,
            groups,
            *packed.numbers,
            embeddings,
            eligible,
            packed.half,
            _align_to_lines((tiles, groups, together), dtype=np.int32),
            np.empty(tiles * together, dtype=np.int32),
            np.empty(tiles * together, dtype=_VECTOR),
            rows,
            np.empty((count, _CAPACITY), dtype=np.float32),
            _CAPACITY,
            found,
        )
        each = np.maximum(found, 0)
        position = np.repeat(np.arange(count), each)
        turn = np.arange(len(position)) - np.repeat(np.cumsum(each) - each, each)
        return position, rows[position, turn].astype(np.int64), np.flatnonzero(found < 0)


def _align_to_lines(shape: tuple[int, ...], *, dtype: type[np.generic]) -> NDArray[Any]:
    """An array that begins with a line of the cache: a load of 64 bytes then reads one line, and not two."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    room = np.empty(size + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


# What the kernel notes of one vector, between its blocks: four floats and a count.
_VECTOR: Final = np.dtype((np.void, 20))


@cache
def load_kernel() -> Kernel | None:
    """The kernel, or None: it was not built, the processor lacks AVX-512 VNNI, or its products are not those of numpy.

    The products are tested once a process, in microseconds: an int8 product that saturates, as some do on some
    processors, is fast and wrong. Those of AMX are tested by themselves, and left out where they differ.
    """
    return _load_kernel_of(_LIBRARY)


def _load_kernel_of(path: Path) -> Kernel | None:
    try:
        library = ctypes.CDLL(str(path))
        if library.rapt_nearest_version() != _VERSION or not library.rapt_nearest_runs_here():
            return None
        pack, search, products = (_declare(library, name) for name in ("pack", "candidates", "products"))
        tiles = None
        # A library from before there were tiles goes on without them.
        if hasattr(library, "rapt_nearest_has_tiles") and library.rapt_nearest_has_tiles():
            wide = _declare(library, "candidates", wide=True)
            tiles = wide if multiplies_correctly(_declare(library, "products", wide=True), vectors=WIDE) else None
    except (OSError, AttributeError):
        return None
    return Kernel(pack, search, tiles) if multiplies_correctly(products, vectors=VECTORS) else None


def multiplies_correctly(products: Callable[..., None], *, vectors: int) -> bool:
    """Whether the kernel's integer products are those of numpy, at the largest numbers and at all kinds of others.

    Args:
        products: Function of the library.
        vectors: Vectors that it multiplies together: `VECTORS`, or for AMX `WIDE`.
    """
    groups = 2 * DEEP
    steps = np.arange(vectors * groups * 4, dtype=np.int64).reshape(vectors, groups * 4)
    queries = (steps * 37 % 255 - 127).astype(np.int8)
    queries[0], queries[1] = 127, -127
    rows = (np.arange(BLOCK * groups * 4, dtype=np.int64).reshape(BLOCK, groups * 4) * 53 % 255 + 1).astype(np.uint8)
    rows[0], rows[1] = 255, 1
    starts = -128 * queries.sum(axis=1, dtype=np.int32)
    quads = queries.view(np.int32)
    if vectors == WIDE:  # tile by tile, each of 16 vectors and 16 groups
        places = quads.reshape(WIDE // DEEP, DEEP, groups // DEEP, DEEP).transpose(0, 2, 1, 3).reshape(1, groups, WIDE)
    else:
        places = quads.T[None]
    words = np.ascontiguousarray(places)
    packed = np.ascontiguousarray(rows.reshape(1, BLOCK, groups, 4).transpose(0, 2, 1, 3))
    out = np.empty((vectors, BLOCK), dtype=np.int32)
    products(words, starts, 1, packed, 1, groups, out)
    return bool((out == queries.astype(np.int32) @ (rows.astype(np.int32) - 128).T).all())


def _declare(library: ctypes.CDLL, name: str, *, wide: bool = False) -> Callable[..., None]:
    function = library[f"rapt_nearest_{name}{'_wide' if wide else ''}"]
    function.argtypes, function.restype = _ARGUMENTS[name], None
    return function


def _make_array_type(kind: type[np.generic] | np.dtype[np.void], dimensions: int) -> type:
    return ndpointer(dtype=kind, ndim=dimensions, flags="C_CONTIGUOUS")


_SIZE: Final = ctypes.c_int64
_FLOATS: Final = [_make_array_type(np.float32, 1)] * 5
# ctypes checks every call against these: type, number of dimensions and contiguity of each array.
_ARGUMENTS: Final[dict[str, list[type]]] = {
    "products": [
        *(_make_array_type(np.int32, 3), _make_array_type(np.int32, 1), _SIZE),
        *(_make_array_type(np.uint8, 4), _SIZE, _SIZE, _make_array_type(np.int32, 2)),
    ],
    "pack": [
        *(_make_array_type(np.float32, 2), _make_array_type(np.int64, 1), _SIZE, _SIZE, _SIZE),
        *(_make_array_type(np.uint8, 4), *_FLOATS, _make_array_type(np.float64, 1)),
    ],
    "candidates": [
        *(_make_array_type(np.float64, 2), _SIZE, _SIZE, _make_array_type(np.uint8, 4), _SIZE, _SIZE, *_FLOATS),
        *(_make_array_type(np.float32, 2), _make_array_type(np.int64, 1), _make_array_type(np.float64, 1)),
        *(_make_array_type(np.int32, 3), _make_array_type(np.int32, 1), _make_array_type(_VECTOR, 1)),
        *(
            _make_array_type(np.int32, 2),
            _make_array_type(np.float32, 2),
            ctypes.c_int32,
            _make_array_type(np.int32, 1),
        ),
    ],
}
