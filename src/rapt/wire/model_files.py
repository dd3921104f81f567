"""Parts of a public model's files, read without loading it: its tokenizer, and its input embedding table.

Which ids may be an output. An output must not mark a text as privatized or broken, so some tokens are never one, by a
rule on the public tokenizer alone:

- special tokens, and tokens that no training text used (`[unused7]`, `<extra_id_3>`, `<|...|>` and their like);
- `<0x0A>` and its like, the single bytes that SentencePiece falls back to;
- in a byte-level tokenizer, tokens that are not whole characters (they would decode to a replacement character) or that
  hold control characters other than tab and line ends;
- rows of the table beyond the tokenizer, which fill it up to a round number.

All of them may be an input. An emoji that is four bytes is four tokens, and each of them is privatized.

The table, and the weights of an encoder, are read out of safetensors files in Hugging Face's layout, as float32, and
nothing else of them. The header is parsed here, because the numpy side of `safetensors` knows no bfloat16, and every
offset in it is checked before it is followed. Half-width numbers are widened block by block, so that memory stays at
what was asked for and one block.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rapt.errors import VocabularyError, WireError
from rapt.wire.strict_json import parse_object

_NEVER_OUT: Final = re.compile(
    r"\[unused\d+\]|<unused\d+>|<extra_id_\d+>|<\|[^ ]*\|>|<0x[0-9A-Fa-f]{2}>|<reserved_?\d+>|madeupword\d+"
)
# Special tokens that a post-processor of these types puts around one text: its start and its end.
_AROUND: Final = {"BertProcessing": 2, "RobertaProcessing": 2, "ByteLevel": 0}


def find_eligible_ids(tokenizer_json: bytes, *, rows: int) -> NDArray[np.int64]:
    """Find the sorted ids of the tokens that may be an output and have a row in the table of `rows` rows.

    Raises:
        VocabularyError: The bytes are not a tokenizer, or no token is left.
    """
    description = _parse(tokenizer_json)
    try:
        named = _list_tokens(description["model"]["vocab"])
        added = [(item["id"], item["content"], item["special"]) for item in description.get("added_tokens") or []]
        byte_level = _is_byte_level(description)
        kept = {
            token_id
            for token, token_id in named
            if 0 <= token_id < rows and not _NEVER_OUT.fullmatch(token) and not (byte_level and _is_broken(token))
        }
        for token_id, content, special in added:
            if special or _NEVER_OUT.fullmatch(content):
                kept.discard(token_id)
            elif 0 <= token_id < rows:
                kept.add(token_id)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise make_tokenizer_error() from None
    if not kept:
        raise VocabularyError(f"a vocabulary must have at least one eligible token, got rows={rows} and none eligible")
    return np.array(sorted(kept), dtype=np.int64)


def check_sizes(tokenizer_json: bytes, *, rows: int) -> None:
    """Refuse a tokenizer that was made for a table of another size.

    Special tokens may have no row, and a table is often filled up to a round number, but not to twice its size.

    Raises:
        VocabularyError: Tokens of a text have no row, or most rows have no token; or the bytes are not a tokenizer.
    """
    description = _parse(tokenizer_json)
    try:
        added = {item["id"]: item["special"] for item in description.get("added_tokens") or []}
        ids = {token_id for _, token_id in _list_tokens(description["model"]["vocab"])} | added.keys()
        beyond = sum(token_id >= rows and not added.get(token_id, False) for token_id in ids)
        tokens = max(ids, default=-1) + 1
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise make_tokenizer_error() from None
    if beyond or 2 * tokens < rows:
        raise VocabularyError(
            f"a tokenizer must fit its embedding table, got ids up to {tokens - 1} for {rows} rows; "
            "take both from the same model"
        )


def count_special_tokens(tokenizer_json: bytes) -> int:
    """Count the special tokens that the tokenizer puts around one text: BERT 2, T5 1, GPT-2 0, Llama 1.

    Raises:
        VocabularyError: The bytes are not a tokenizer, or its post-processor is of an unknown type.
    """
    try:
        return _count_around(_parse(tokenizer_json).get("post_processor"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise make_tokenizer_error() from None


def find_control_ids(tokenizer_json: bytes) -> tuple[frozenset[int], int | None]:
    """Find the ids of special tokens but the unknown one, and the id of the unknown token, None where there is none.

    Raises:
        VocabularyError: The bytes are not a tokenizer.
    """
    description = _parse(tokenizer_json)
    try:
        model = description["model"]
        special = {item["id"] for item in description.get("added_tokens") or [] if item["special"]}
        unknown = model.get("unk_id")
        if unknown is None and model.get("unk_token") is not None:
            unknown = dict(_list_tokens(model["vocab"])).get(model["unk_token"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise make_tokenizer_error() from None
    return frozenset(special - {unknown}), unknown


@contextmanager
def catch_panic() -> Iterator[None]:
    """Turn a panic of the library of tokenizers, which no `except Exception` sees, into an error without its message.

    A damaged `tokenizer.json` can cause one: for example a table of characters that points outside of itself.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # the library makes its class where nobody can import it
            raise RuntimeError("the tokenizer panicked") from None
        raise


def make_tokenizer(tokenizer_json: bytes, *, model: str | None = None) -> Tokenizer:
    """Make a tokenizer that cuts off nothing and fills up nothing, whatever its file says.

    Some models ship with both switched on: MiniLM's would cut every text at 128 tokens and fill it up with [PAD].

    Raises:
        VocabularyError: The bytes are not a tokenizer.
    """
    try:
        with catch_panic():
            tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    except Exception:  # the library raises plain Exception, and its message may hold a text
        raise make_tokenizer_error(model) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _parse(tokenizer_json: bytes) -> dict[str, Any]:
    try:
        value = json.loads(tokenizer_json)
    except (ValueError, RecursionError):
        raise make_tokenizer_error() from None
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise make_tokenizer_error()
    return value


def make_tokenizer_error(model: str | None = None) -> VocabularyError:
    """The error of a damaged `tokenizer.json`, for the caller to raise."""
    of = "" if model is None else f" of model={model!r}"
    return VocabularyError(f"tokenizer.json{of} must be a Hugging Face tokenizer; take it from the model again")


def _list_tokens(vocab: Any) -> Iterator[tuple[str, int]]:
    """List tokens and ids: a dict in WordPiece, BPE and WordLevel, a list of (token, score) in Unigram."""
    if isinstance(vocab, dict):
        return iter(vocab.items())
    return ((item[0], position) for position, item in enumerate(vocab))


def _count_around(processor: Mapping[str, Any] | None) -> int:
    if processor is None:
        return 0
    kind = processor["type"]
    if kind == "Sequence":
        return sum(_count_around(part) for part in processor["processors"])
    if kind == "TemplateProcessing":
        named = [piece["SpecialToken"]["id"] for piece in processor["single"] if "SpecialToken" in piece]
        return sum(len(processor["special_tokens"][name]["ids"]) for name in named)
    return _AROUND[kind]


def is_byte_level(tokenizer_json: bytes) -> bool:
    """Whether tokens are written in GPT-2's alphabet of bytes, a word with its space before it."""
    return _is_byte_level(_parse(tokenizer_json))


def _is_byte_level(description: Mapping[str, Any]) -> bool:
    parts: list[Any] = [description.get("pre_tokenizer"), description.get("decoder")]
    while parts:
        part = parts.pop()
        if part is not None and part.get("type") == "ByteLevel":
            return True
        if part is not None and part.get("type") == "Sequence":
            parts += part.get("pretokenizers") or part.get("decoders") or []
    return False


def _make_byte_alphabet() -> dict[str, int]:
    """Map the character that stands for each byte to it: itself where it can be seen, else the next one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(rest)}


_BYTES: Final = _make_byte_alphabet()


def _is_broken(token: str) -> bool:
    """Whether a byte-level token is not whole characters, or holds a control character."""
    if any(letter not in _BYTES for letter in token):
        return False  # an added token, which is written as it reads
    try:
        text = bytes(_BYTES[letter] for letter in token).decode("utf-8")
    except UnicodeDecodeError:
        return True
    return any(unicodedata.category(letter) == "Cc" and letter not in "\t\n\r" for letter in text)


# Ends of the names under which models keep the table, in the order in which they are looked for.
TABLE_NAMES: Final = (
    "embeddings.word_embeddings.weight",  # BERT, RoBERTa, DistilBERT
    "shared.weight",  # T5, BART: before the copies of its encoder and decoder
    "encoder.embed_tokens.weight",  # an encoder-decoder without a shared table
    "tok_embeddings.weight",  # ModernBERT
    "embed_tokens.weight",  # Llama, SmolLM2, Mistral, Qwen, OPT
    "wte.weight",  # GPT-2
    "embed_in.weight",  # GPT-NeoX
    "word_embedding.weight",  # XLNet
    "word_embeddings.weight",  # Falcon, BLOOM
)
_ITEM_TYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# As in the format's own reader.
_MOST_HEADER_BYTES: Final = 100_000_000
_BLOCK_ITEMS: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class _Place:
    """Place of a tensor in a file, checked: numbers of `item_type`, of this shape, from byte `start` on."""

    item_type: str
    shape: tuple[int, ...]
    start: int


def read_table(folder: Path) -> NDArray[np.float32]:
    """Read the input embedding table, (V, d), of the model in a folder, whole or in shards.

    Raises:
        VocabularyError: No weights are there, they are damaged, or hold no table under one known name.
        OSError: A file cannot be read.
    """
    name = find_table_name(list(find_tensors(folder)))
    return read_tensors(folder, [name], axes=2)[name]


def find_tensors(folder: Path) -> dict[str, Path]:
    """Find the tensors of the model in a folder: each one's name, and the file that holds it.

    Raises:
        VocabularyError: The weights are damaged, or an index leads elsewhere.
        OSError: A file cannot be read.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        with whole.open("rb") as stream:
            return dict.fromkeys((key for key in _read_header(stream)[0] if key != "__metadata__"), whole)
    return {name: folder / shard for name, shard in _read_weight_map(index).items()}


def hash_model(folder: Path) -> str:
    """The digest of a model's tokenizer and weights as they lie in its folder, `sha256:...`.

    Raises:
        VocabularyError: A file is missing.
    """
    digest = hashlib.sha256()
    try:
        for path in [folder / "tokenizer.json", *sorted(folder.glob("*.safetensors"))]:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
    except OSError:
        raise VocabularyError("a model must have tokenizer.json and weights as safetensors; install it again") from None
    return f"sha256:{digest.hexdigest()}"


def count_parameters(folder: Path) -> int:
    """Count the numbers in all tensors of the model in a folder; only the headers are read.

    Raises:
        VocabularyError: The weights are damaged, an index leads elsewhere, or a tensor is of no usual type.
        OSError: A file cannot be read.
    """
    found = 0
    for path in dict.fromkeys(find_tensors(folder).values()):
        with path.open("rb") as stream:
            header, start = _read_header(stream)
        size = path.stat().st_size
        places = (
            _find_place(entry, start=start, size=size, axes=None)
            for name, entry in header.items()
            if name != "__metadata__"
        )
        found += sum(prod(place.shape) for place in places)
    return found


def read_tensors(folder: Path, names: Sequence[str], *, axes: int | None = None) -> dict[str, NDArray[np.float32]]:
    """Read tensors of the model in a folder as float32; of the other weights only the headers are read.

    Args:
        folder: Folder in Hugging Face's layout.
        names: Names of tensors, all of which must be there.
        axes: Number of axes that each of them must have; None for any.

    Raises:
        VocabularyError: A tensor is missing or damaged, or its type is not a usual one.
        OSError: A file cannot be read.
    """
    places = find_tensors(folder)
    if missing := [name for name in names if name not in places]:
        raise VocabularyError(
            f"the weights must hold {len(names)} tensors under known names, got {len(missing)} too few, the first of "
            f"them {missing[0]}; give a whole model"
        )
    found: dict[str, NDArray[np.float32]] = {}
    for path in dict.fromkeys(places[name] for name in names):
        with path.open("rb") as stream:
            header, start = _read_header(stream)
            for name in (name for name in names if places[name] == path):
                if name not in header:
                    raise VocabularyError(
                        f"{path.name} must hold the table that the index promises; fetch the model again"
                    )
                place = _find_place(header[name], start=start, size=path.stat().st_size, axes=axes)
                found[name] = _read_place(stream, place)
    return found


def read_tensor(path: Path, name: str, *, axes: int | None = None) -> NDArray[np.float32]:
    """Read one tensor of a safetensors file as float32.

    Raises:
        VocabularyError: It is missing or damaged, or of an unusual type.
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        header, start = _read_header(stream)
        return _read_place(stream, _find_place(header.get(name), start=start, size=path.stat().st_size, axes=axes))


def is_short(numbers: NDArray[np.float32]) -> bool:
    """Whether no number loses a digit as bfloat16, the upper half of a float32."""
    return not any((block & np.uint32(0xFFFF)).any() for block in _divide(numbers))


def _divide(numbers: NDArray[np.float32]) -> Iterator[NDArray[np.uint32]]:
    """The bits of the numbers, block by block."""
    flat = np.ascontiguousarray(numbers, dtype="<f4").reshape(-1).view("<u4")
    return (flat[begin : begin + _BLOCK_ITEMS] for begin in range(0, flat.size, _BLOCK_ITEMS))


def write_tensor(path: Path, name: str, numbers: NDArray[np.float32]) -> None:
    """Write one tensor as a safetensors file: as bfloat16 where no number loses a digit by that, else as float32.

    Raises:
        OSError: The file cannot be written.
    """
    blocks, short = _divide(numbers), is_short(numbers)
    entry = {
        "dtype": "BF16" if short else "F32",
        "shape": list(numbers.shape),
        "data_offsets": [0, (2 if short else 4) * numbers.size],
    }
    header = json.dumps({name: entry}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for block in blocks:
            stream.write(((block >> np.uint32(16)).astype("<u2") if short else block).data)


def find_table_name(names: list[str]) -> str:
    """Find the name of the input embedding table among the tensors of a model.

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


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        shards = parse_object(index.read_bytes(), what=index.name)["weight_map"]
        # A shard lies beside its index: a name that leads elsewhere is not followed.
        if all(type(shard) is str and shard not in ("", ".", "..") and "\0" not in shard for shard in shards.values()):
            if all(Path(shard).name == shard and "\\" not in shard for shard in shards.values()):
                return dict(shards)
    except (KeyError, AttributeError, WireError):
        pass
    raise VocabularyError(f"{index.name} must map each weight to a file beside it; fetch the model again")


def _read_header(stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file, and where its data begins."""
    length = int.from_bytes(stream.read(8), "little")
    raw = stream.read(length) if 0 < length <= _MOST_HEADER_BYTES else b""
    if len(raw) != length or not raw:
        raise _make_damaged_error()
    try:
        return parse_object(raw, what="the header"), 8 + length
    except WireError:
        raise _make_damaged_error() from None


def _find_place(entry: Any, *, start: int, size: int, axes: int | None) -> _Place:
    try:
        item_type, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _make_damaged_error() from None
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if type(item_type) is not str or not all(type(number) is int and number >= 0 for number in numbers):
        raise _make_damaged_error()
    if item_type not in _ITEM_TYPES or (axes or len(shape)) != len(shape) or not prod(shape):
        raise VocabularyError(
            f"an embedding table must be rows of {', '.join(_ITEM_TYPES)}, got another type or {len(shape)} axes; "
            "give a model that is not quantized"
            if axes == 2
            else f"weights must be of {', '.join(_ITEM_TYPES)}, got another type; give a model that is not quantized"
        )
    if end - begin != prod(shape) * np.dtype(_ITEM_TYPES[item_type]).itemsize or start + end > size:
        raise _make_damaged_error()
    return _Place(item_type=item_type, shape=tuple(shape), start=start + begin)


def _read_place(stream: IO[bytes], place: _Place) -> NDArray[np.float32]:
    table = np.empty(place.shape, dtype=np.float32)
    flat = table.reshape(-1)
    stream.seek(place.start)
    for begin in range(0, flat.size, _BLOCK_ITEMS):
        count = min(_BLOCK_ITEMS, flat.size - begin)
        dtype = np.dtype(_ITEM_TYPES[place.item_type])
        raw = stream.read(count * dtype.itemsize)
        if len(raw) != count * dtype.itemsize:
            raise _make_damaged_error()
        items = np.frombuffer(raw, dtype=dtype)
        if place.item_type == "BF16":  # the upper half of a float32
            items = (items.astype("<u4") << np.uint32(16)).view("<f4")
        with np.errstate(over="ignore"):  # a float64 too large becomes inf, which no bundle takes
            flat[begin : begin + count] = items.astype(np.float32)
    return table


def _make_damaged_error() -> VocabularyError:
    return VocabularyError("the weights must be a whole safetensors file; it is damaged or cut off: fetch it again")
