"""The vocabulary bundle: everything a user needs to privatize for a backbone, and its hash.

A folder of three public files: `tokenizer.json`, `embeddings.safetensors` and `vocabulary.json` (model, hash, eligible
ids, longest input). The table, (V, d), is float32, or bfloat16 where that is the same numbers; the hash is that of the
numbers as float32 either way. Both sides compute the same hash from the same files, so a privatized file can say which
table its eta belongs to, and a service can refuse a file made for another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError, WireError
from rapt.whole_files import open_whole_folder
from rapt.wire.model_files import (
    check_sizes,
    count_special_tokens,
    find_eligible_ids,
    read_table,
    read_tensor,
    write_tensor,
)
from rapt.wire.model_folder import read_folder
from rapt.wire.strict_json import check_fields, parse_object, read_field, read_ids

SCHEMA: Final = "rapt.vocabulary/1"
TABLE: Final = "embeddings"
# Architectures whose first position is not 0: the table of positions has that many rows more than positions.
_POSITIONS_FROM_PAD: Final = ("roberta", "xlm-roberta", "camembert", "mpnet", "roberta-prelayernorm")
_USUAL_LIMIT: Final = 512  # T5 and others with relative positions name none; they were trained on this


@dataclass(frozen=True, kw_only=True, eq=False)
class VocabularyBundle:
    """A tokenizer, its embedding table and the ids that may be an output.

    Attributes:
        model: Name of the backbone.
        tokenizer_json: Bytes of `tokenizer.json`, as the model's authors wrote them.
        embeddings: The table E, (V, d), float32, read-only. Distances in it are what eta is measured against.
        eligible: Sorted ids that a mechanism may put out, int64: no special and no unused token.
        max_tokens: Longest input of the backbone in tokens, special tokens included.
        special_tokens: Number of special tokens around a text; it follows from `tokenizer_json`.
        hash: `sha256:...` over all of the above but the name.
    """

    model: str
    tokenizer_json: bytes = field_of(repr=False)
    embeddings: NDArray[np.float32] = field_of(repr=False)
    eligible: NDArray[np.int64] = field_of(repr=False)
    max_tokens: int
    special_tokens: int
    hash: str


def make_bundle(
    *, model: str, tokenizer_json: bytes, embeddings: NDArray[np.float32], max_tokens: int
) -> VocabularyBundle:
    """Make the bundle of a tokenizer and a table; the eligible ids follow from the tokenizer.

    Raises:
        VocabularyError: The table is not finite, does not fit the tokenizer, or the bytes are not a tokenizer.
    """
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or not np.isfinite(embeddings).all():
        raise VocabularyError(
            f"an embedding table must be finite float32 of shape (V, d), got {embeddings.dtype} {embeddings.shape}"
        )
    table = np.ascontiguousarray(embeddings)
    table.flags.writeable = False
    check_sizes(tokenizer_json, rows=len(table))
    eligible = find_eligible_ids(tokenizer_json, rows=len(table))
    digest = hashlib.sha256()
    for part in (
        SCHEMA.encode(),
        hashlib.sha256(tokenizer_json).digest(),
        repr(table.shape).encode(),
        table.astype("<f4", copy=False).data.cast("B"),
        eligible.astype("<i8", copy=False).tobytes(),
        str(max_tokens).encode(),
    ):
        digest.update(part)
    return VocabularyBundle(
        model=model,
        tokenizer_json=tokenizer_json,
        embeddings=table,
        eligible=eligible,
        max_tokens=max_tokens,
        special_tokens=count_special_tokens(tokenizer_json),
        hash=f"sha256:{digest.hexdigest()}",
    )


def read_model_bundle(folder: Path, *, model: str) -> VocabularyBundle:
    """Read the bundle of a model in Hugging Face's layout; of the weights only the embedding table is read.

    BERT, T5, GPT-2 and Llama tables and their like; float32, float16 or bfloat16; one file or shards. A BERT may have
    `vocab.txt` for `tokenizer.json`.

    Raises:
        VocabularyError: A file is missing or damaged, or holds no embedding table of a known name.
    """
    found = read_folder(folder, model=model)
    try:
        table = read_table(folder)
    except OSError:
        raise VocabularyError(f"model={model!r} must have weights that can be read; install it again") from None
    return make_bundle(
        model=model,
        tokenizer_json=found.tokenizer_json,
        embeddings=table,
        max_tokens=read_longest_input(found.config),
    )


def read_longest_input(config: Mapping[str, Any]) -> int:
    """Read how many tokens a model takes from its `config.json`, special tokens included.

    Raises:
        VocabularyError: The limit is not a whole number above 0.
    """
    config = config.get("text_config") or config
    longest = config.get("max_position_embeddings") or config.get("n_positions") or _USUAL_LIMIT
    first = find_first_position(config)
    if type(longest) is not int or longest - first < 1:
        raise VocabularyError("config.json must state the longest input as a whole number above 0; correct it")
    return longest - first


def find_first_position(config: Mapping[str, Any]) -> int:
    """Find the row of the table of positions that a model's first token takes.

    Raises:
        VocabularyError: The padding token is not a whole number.
    """
    if config.get("model_type") not in _POSITIONS_FROM_PAD:
        return 0
    # MPNet's code counts from 1 whatever its padding token is; those of the others count from that token.
    first = 2 if config["model_type"] == "mpnet" else (config.get("pad_token_id") or 0) + 1
    if type(first) is not int or first < 0:
        raise VocabularyError("config.json must state the padding token as a whole number; correct it")
    return first


def write_bundle(bundle: VocabularyBundle, folder: Path) -> None:
    """Write the three files into a new or empty folder, which appears whole or not at all.

    Raises:
        UsageError: The folder is not empty, or is something else.
        VocabularyError: The folder cannot be written.
    """
    try:
        with open_whole_folder(folder) as partial:
            (partial / "tokenizer.json").write_bytes(bundle.tokenizer_json)
            write_tensor(partial / "embeddings.safetensors", TABLE, bundle.embeddings)
            (partial / "vocabulary.json").write_text(json.dumps(describe_bundle(bundle)) + "\n", encoding="ascii")
    except OSError as error:
        raise VocabularyError(
            "the folder of a vocabulary must be writable, got "
            f"{error.strerror or type(error).__name__}; free space, or choose another"
        ) from None


def describe_bundle(bundle: VocabularyBundle) -> dict[str, Any]:
    """Return the content of `vocabulary.json`."""
    return {
        "schema": SCHEMA,
        "model": bundle.model,
        "hash": bundle.hash,
        "shape": list(bundle.embeddings.shape),
        "max_tokens": bundle.max_tokens,
        "eligible": bundle.eligible.tolist(),
    }


def read_bundle(folder: Path) -> VocabularyBundle:
    """Read the bundle in a folder, its hash computed again from its files.

    Raises:
        VocabularyError: A file is missing, or the contents do not match the hash.
        WireError: `vocabulary.json` is malformed or of an unknown version.
    """
    what = "vocabulary.json"
    try:
        described = parse_object((folder / "vocabulary.json").read_bytes(), what=what)
        tokenizer_json = (folder / "tokenizer.json").read_bytes()
        table = read_tensor(folder / "embeddings.safetensors", TABLE, axes=2)
    except (OSError, VocabularyError):
        raise VocabularyError(
            "a vocabulary bundle must have vocabulary.json, tokenizer.json and embeddings.safetensors; fetch it again"
        ) from None
    if described.get("schema") != SCHEMA:
        raise WireError(f"{what} must be of schema {SCHEMA!r}; upgrade rapt or fetch the bundle again")
    check_fields(
        described,
        required={"schema", "model", "hash", "shape", "max_tokens", "eligible"},
        optional=set(),
        what=what,
    )
    bundle = make_bundle(
        model=read_field(described, "model", str, what=what),
        tokenizer_json=tokenizer_json,
        embeddings=table,
        max_tokens=read_field(described, "max_tokens", int, what=what),
    )
    check_hash(bundle, expected=read_field(described, "hash", str, what=what))
    if read_ids(described, "eligible", what=what) != tuple(bundle.eligible.tolist()):
        raise VocabularyError("a vocabulary must list the eligible ids of its tokenizer; fetch the bundle again")
    return bundle


def check_hash(bundle: VocabularyBundle, *, expected: str) -> None:
    """Refuse a vocabulary that is not the promised one.

    Raises:
        VocabularyError: The hashes differ.
    """
    if bundle.hash != expected:
        raise VocabularyError(
            f"vocabulary hashes must be equal, got {shorten_hash(bundle.hash)}, promised {shorten_hash(expected)}; "
            "privatize with the vocabulary of the service's model"
        )


def shorten_hash(full: str) -> str:
    """Return the first 12 hex digits of a `sha256:` hash, for people."""
    return full.removeprefix("sha256:")[:12]
