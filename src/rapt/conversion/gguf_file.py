"""Reading a GGUF file: its metadata, and its tensors widened to float32.

Format: "GGUF" version 3 of the ggml project (docs/gguf.md there), little-endian. Every count and offset is checked
before it is followed. Of the many quantizations these are read: F32, F16, Q4_0, Q4_1 and Q8_0. A block of 32 numbers is
a scale d of 16 bits (in Q4_1 also a minimum m), then 32 whole numbers q of 4 or 8 bits: d q, d (q - 8) or d q + m.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError

_MAGIC: Final = b"GGUF"
_VERSION: Final = 3
_BLOCK: Final = 32
_SCALARS: Final[Mapping[int, str]] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
# Numbers of ggml's types, with the bytes of one block and how many numbers it holds.
_F32, _F16, _Q4_0, _Q4_1, _Q8_0 = 0, 1, 2, 3, 8
_BLOCKS: Final[Mapping[int, tuple[int, int]]] = {
    _F32: (4, 1),
    _F16: (2, 1),
    _Q4_0: (18, _BLOCK),
    _Q4_1: (20, _BLOCK),
    _Q8_0: (34, _BLOCK),
}
_MOST_ITEMS: Final = 10_000_000  # of one array or string: above any vocabulary


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: its type, its shape with the slowest axis first, and its first byte."""

    kind: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class GgufFile:
    """An open description of a file; tensors are read when they are asked for.

    Attributes:
        path: Path of the file.
        metadata: Key-value pairs of the file.
        names: Names of its tensors.
    """

    path: Path
    metadata: Mapping[str, Any]
    places: Mapping[str, _Place]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors, as the file orders them."""
        return tuple(self.places)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, the slowest axis first, to the last bit what its format says.

        Raises:
            VocabularyError: There is none of this name, or the file is cut off.
        """
        place = self.places.get(name)
        if place is None:
            raise VocabularyError(f"a GGUF file must hold the tensor {name!r}; take a whole model of this architecture")
        size, numbers = _BLOCKS[place.kind]
        length = prod(place.shape) // numbers * size
        with self.path.open("rb") as stream:
            stream.seek(place.start)
            raw = stream.read(length)
        if len(raw) != length:
            raise _damaged()
        return _widened(raw, place.kind).reshape(place.shape)


def read_gguf(path: Path) -> GgufFile:
    """The description of a GGUF file.

    Raises:
        VocabularyError: It is none, of another version, damaged, or quantized in a way that is not read.
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) != _MAGIC or _scalar(stream, "<I") != _VERSION:
                raise VocabularyError(f"a GGUF file must be of version {_VERSION}; take another file of the model")
            tensors, pairs = _scalar(stream, "<Q"), _scalar(stream, "<Q")
            metadata = {_string(stream): _value(stream, _scalar(stream, "<I")) for _ in range(_bounded(pairs))}
            headers = [_tensor_header(stream) for _ in range(_bounded(tensors))]
            alignment = metadata.get("general.alignment", 32)
            data = -(-stream.tell() // alignment) * alignment
    except (struct.error, UnicodeDecodeError, KeyError, TypeError, ZeroDivisionError):
        raise _damaged() from None
    places = {name: _Place(kind, shape, data + offset) for name, kind, shape, offset in headers}
    return GgufFile(path=path, metadata=metadata, places=places)


def _tensor_header(stream: IO[bytes]) -> tuple[str, int, tuple[int, ...], int]:
    name, axes = _string(stream), _scalar(stream, "<I")
    if axes > 4:
        raise _damaged()
    shape = tuple(reversed([_scalar(stream, "<Q") for _ in range(axes)]))
    kind, offset = _scalar(stream, "<I"), _scalar(stream, "<Q")
    if kind not in _BLOCKS or not shape or shape[-1] % _BLOCKS[kind][1]:
        raise VocabularyError(
            f"a GGUF file must be of F32, F16, Q4_0, Q4_1 or Q8_0 tensors, got type number {kind}; take another one"
        )
    return name, kind, shape, offset


def _widened(raw: bytes, kind: int) -> NDArray[np.float32]:
    if kind in (_F32, _F16):
        return np.frombuffer(raw, "<f4" if kind == _F32 else "<f2").astype(np.float32)
    size = _BLOCKS[kind][0]
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, size)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if kind == _Q8_0:
        return (scale * blocks[:, 2:].view(np.int8).astype(np.float32)).reshape(-1)
    half = blocks[:, size - _BLOCK // 2 :]
    # The low halves of 16 bytes are the first 16 numbers, the high halves the other 16.
    whole = np.concatenate([half & 0x0F, half >> 4], axis=1).astype(np.float32)
    if kind == _Q4_0:
        return (scale * (whole - 8)).reshape(-1)
    return (scale * whole + blocks[:, 2:4].copy().view("<f2").astype(np.float32)).reshape(-1)


def _value(stream: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind == _ARRAY:
        of, count = _scalar(stream, "<I"), _bounded(_scalar(stream, "<Q"))
        if of in _SCALARS:
            width = struct.calcsize(_SCALARS[of])
            raw = stream.read(count * width)
            return [item for (item,) in struct.iter_unpack(_SCALARS[of], raw)] if raw else []
        if of != _STRING:
            raise _damaged()
        return [_string(stream) for _ in range(count)]
    return _scalar(stream, _SCALARS[kind])


def _scalar(stream: IO[bytes], form: str) -> Any:
    (value,) = struct.unpack(form, stream.read(struct.calcsize(form)))
    return value


def _string(stream: IO[bytes]) -> str:
    length = _bounded(_scalar(stream, "<Q"))
    raw = stream.read(length)
    if len(raw) != length:
        raise _damaged()
    return raw.decode("utf-8")


def _bounded(count: int) -> int:
    if count > _MOST_ITEMS:
        raise _damaged()
    return count


def _damaged() -> VocabularyError:
    return VocabularyError("the weights must be a whole GGUF file; it is damaged or cut off: install it again")
