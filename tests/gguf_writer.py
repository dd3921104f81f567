"""A GGUF file by hand: enough of the format to write what the reader reads."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

STRING, ARRAY, UINT32, INT32, FLOAT32 = 8, 9, 4, 5, 6
F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8


def string(text: str) -> bytes:
    """Length, then bytes."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: object) -> bytes:
    """Type, then value."""
    if isinstance(item, str):
        return struct.pack("<I", STRING) + string(item)
    if isinstance(item, float):
        return struct.pack("<If", FLOAT32, item)
    if isinstance(item, int):
        return struct.pack("<II", UINT32, item)
    assert isinstance(item, list)
    if isinstance(item[0], str):
        body, kind = b"".join(string(text) for text in item), STRING
    else:
        body, kind = struct.pack(f"<{len(item)}i", *item), INT32
    return struct.pack("<IIQ", ARRAY, kind, len(item)) + body


def write_gguf(
    path: Path, metadata: dict[str, object], tensors: dict[str, tuple[tuple[int, ...], int, bytes]], *, version: int = 3
) -> Path:
    """Tensors are (shape with the slowest axis first, type, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(string(key) + value(item) for key, item in metadata.items())
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += string(name) + axes + struct.pack("<IQ", kind, len(data))
        data += raw
        assert prod(shape) > 0
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path
