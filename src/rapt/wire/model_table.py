"""The input embedding table of a model in Hugging Face's layout, out of its safetensors files, as float32.

Only the table is read. The header is parsed here, because the numpy side of `safetensors` knows no bfloat16, and every
offset in it is checked before it is followed. Half-width numbers are widened block by block, so that memory stays at
the table and one block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError, WireError
from rapt.wire.strict_json import parse_object

# Ends of the names under which models keep the table, in the order in which they are looked for.
TABLE_NAMES: Final = (
    "embeddings.word_embeddings.weight",  # BERT, RoBERTa, DistilBERT
    "shared.weight",  # T5, BART: before the copies of its encoder and decoder
    "encoder.embed_tokens.weight",  # an encoder-decoder without a shared table
    "embed_tokens.weight",  # Llama, SmolLM2, Mistral, Qwen, OPT
    "wte.weight",  # GPT-2
    "embed_in.weight",  # GPT-NeoX
    "word_embeddings.weight",  # Falcon, BLOOM
)
_ITEM_TYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# As in the format's own reader.
_MOST_HEADER_BYTES: Final = 100_000_000
_BLOCK_ITEMS: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class _Place:
    """Where a table lies in a file, checked: `rows` x `width` numbers of `item_type` from byte `start` on."""

    item_type: str
    rows: int
    width: int
    start: int


def read_table(folder: Path) -> NDArray[np.float32]:
    """The input embedding table, (V, d), of the model in a folder, whole or in shards.

    Raises:
        VocabularyError: No weights are there, they are damaged, or hold no table under one known name.
        OSError: A file cannot be read.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        with whole.open("rb") as stream:
            header, start = _header(stream)
            name = table_name([key for key in header if key != "__metadata__"])
            return _read(stream, _place(header[name], start=start, size=whole.stat().st_size))
    shards = _weight_map(index)
    name = table_name(list(shards))
    path = folder / shards[name]
    with path.open("rb") as stream:
        header, start = _header(stream)
        if name not in header:
            raise VocabularyError(f"{path.name} must hold the table that the index promises; fetch the model again")
        return _read(stream, _place(header[name], start=start, size=path.stat().st_size))


def table_name(names: list[str]) -> str:
    """The name of the input embedding table among the tensors of a model.

    Raises:
        VocabularyError: None has a known ending, or several have the same.
    """
    for ending in TABLE_NAMES:
        found = [name for name in names if name == ending or name.endswith("." + ending)]
        if len(found) == 1:
            return found[0]
        if found:
            raise VocabularyError(
                f"the weights must hold one input embedding table, got {len(found)} that end in {ending}; "
                "give a model of text alone"
            )
    raise VocabularyError(
        f"the weights must hold an input embedding table under a known name; known endings are {', '.join(TABLE_NAMES)}"
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        shards = parse_object(index.read_bytes(), what=index.name)["weight_map"]
        # A shard lies beside its index: a name that leads elsewhere is not followed.
        if all(type(shard) is str and shard not in ("", ".", "..") and "\0" not in shard for shard in shards.values()):
            if all(Path(shard).name == shard and "\\" not in shard for shard in shards.values()):
                return dict(shards)
    except (KeyError, AttributeError, WireError):
        pass
    raise VocabularyError(f"{index.name} must map each weight to a file beside it; fetch the model again")


def _header(stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    length = int.from_bytes(stream.read(8), "little")
    raw = stream.read(length) if 0 < length <= _MOST_HEADER_BYTES else b""
    if len(raw) != length or not raw:
        raise _damaged()
    try:
        return parse_object(raw, what="the header"), 8 + length
    except WireError:
        raise _damaged() from None


def _place(entry: Any, *, start: int, size: int) -> _Place:
    try:
        item_type, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _damaged() from None
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if type(item_type) is not str or not all(type(number) is int and number >= 0 for number in numbers):
        raise _damaged()
    if item_type not in _ITEM_TYPES or len(shape) != 2 or not prod(shape):
        raise VocabularyError(
            f"an embedding table must be rows of {', '.join(_ITEM_TYPES)}, got another type or {len(shape)} axes; "
            "give a model that is not quantized"
        )
    if end - begin != prod(shape) * np.dtype(_ITEM_TYPES[item_type]).itemsize or start + end > size:
        raise _damaged()
    return _Place(item_type=item_type, rows=shape[0], width=shape[1], start=start + begin)


def _read(stream: IO[bytes], place: _Place) -> NDArray[np.float32]:
    table = np.empty((place.rows, place.width), dtype=np.float32)
    flat = table.reshape(-1)
    stream.seek(place.start)
    for begin in range(0, flat.size, _BLOCK_ITEMS):
        count = min(_BLOCK_ITEMS, flat.size - begin)
        dtype = np.dtype(_ITEM_TYPES[place.item_type])
        raw = stream.read(count * dtype.itemsize)
        if len(raw) != count * dtype.itemsize:
            raise _damaged()
        items = np.frombuffer(raw, dtype=dtype)
        if place.item_type == "BF16":  # the upper half of a float32
            items = (items.astype("<u4") << np.uint32(16)).view("<f4")
        with np.errstate(over="ignore"):  # a float64 too large becomes inf, which no bundle takes
            flat[begin : begin + count] = items.astype(np.float32)
    return table


def _damaged() -> VocabularyError:
    return VocabularyError("the weights must be a whole safetensors file; it is damaged or cut off: fetch it again")
