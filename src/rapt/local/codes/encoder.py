"""A public encoder on the user's machine, without torch: each text becomes the mean state of its tokens.

The weights lie where `rapt.public_models` finds them; `TextEncoder.hash` says which they are. Texts are ordered by
length and computed so many positions at a time, so a state differs by rounding alone from that of the text by itself;
which code a rounding leads to changes no guarantee (docs/decisions/0024-encoder-in-numpy.md has the figures).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError, WireError
from rapt.local.codes.forward import EncoderShape, Forward
from rapt.local.vocabulary import Vocabulary
from rapt.public_models import find_model_folder, name_model
from rapt.wire.model_files import (
    catch_panic,
    find_table_name,
    find_tensors,
    make_tokenizer,
    make_tokenizer_error,
    read_tensors,
)
from rapt.wire.model_folder import read_folder
from rapt.wire.vocabulary_bundle import make_bundle, read_longest_input

SCHEMA: Final = "rapt.encoder/1"
# Positions that are computed at a time: enough for the matrix products, few enough for a core's cache.
_POSITIONS: Final = 512


@dataclass(frozen=True, eq=False, repr=False)
class TextEncoder:
    """A tokenizer and a frozen encoder; texts are arguments and are not kept.

    Attributes:
        model: Name of the encoder: as it was asked for, or the name of its folder.
        hash: `sha256:...` over the tokenizer, the sizes, and every weight that is read, as float32.
        max_tokens: Longest input in tokens, special tokens included; what is longer is cut at its end.
        vocabulary: Tokenizer of the encoder and its embedding table.
        forward: Layers of the encoder.
        around: Ids of the special tokens before and after a text.
    """

    model: str
    hash: str
    max_tokens: int
    vocabulary: Vocabulary
    forward: Forward
    around: tuple[tuple[int, ...], tuple[int, ...]]

    def __repr__(self) -> str:
        """Name and width: the weights are millions of numbers."""
        return f"TextEncoder(model={self.model[:60]!r}, hidden_size={self.hidden_size}, max_tokens={self.max_tokens})"

    @property
    def hidden_size(self) -> int:
        """Width h of a state."""
        return self.forward.shape.width

    def encode(self, texts: Sequence[str], *, first_position: int = 0) -> NDArray[np.float32]:
        """Mean last-layer state of each text, (n, h).

        The mean is over the tokens of the text: special tokens are inputs, and their states are left out. A text
        without tokens has the mean state of the special tokens.

        Args:
            texts: Texts in clear; they are not kept, and never part of an error.
            first_position: Position of the first text in its file, for messages.

        Raises:
            CorpusError: A text is no string, or is not valid Unicode.
            UsageError: The texts are one string.
            VocabularyError: The tokenizer cannot take a text.
        """
        before, after = self.around
        content = self.vocabulary.encode(texts, first_position=first_position)
        rows = [[*before, *ids[: self.max_tokens - len(before) - len(after)], *after] for ids in content]
        means = np.empty((len(rows), self.hidden_size), dtype=np.float32)
        for groups in _cut_into_batches([len(row) for row in rows]):
            states = self.forward.states([np.array([rows[i] for i in places]) for places in groups])
            start = 0
            for places in groups:
                length = len(rows[places[0]])
                span = states[start : start + len(places) * length].reshape(len(places), length, -1)
                start += len(places) * length
                inside = slice(len(before), length - len(after))
                means[places] = (span[:, inside] if inside.start < inside.stop else span).mean(axis=1)
        return means

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than `max_tokens` and are cut.

        Raises:
            RaptError: The reasons of `encode`.
        """
        room = self.max_tokens - sum(map(len, self.around))
        return sum(len(ids) > room for ids in self.vocabulary.encode(texts))


def read_encoder(model: str | Path) -> TextEncoder:
    """Read an encoder: BERT, RoBERTa or MPNet and their like, in float32, float16 or bfloat16.

    Args:
        model: A name in `rapt.public_models.PUBLIC_MODELS`, a name of the Hugging Face hub in its local cache, or a
            folder with config.json, tokenizer.json and model.safetensors.

    Raises:
        VocabularyError: The name is unknown, a file is missing or damaged, or it is no encoder of a known kind.
    """
    name = name_model(str(model))
    folder = find_model_folder(str(model))
    small = read_folder(folder, model=name)
    config, tokenizer_json = small.config, small.tokenizer_json
    try:
        shape = EncoderShape.of(config)
        names = set(find_tensors(folder))
        prefix = find_table_name(sorted(names)).removesuffix(shape.list_tensors()[0])
        stored = {tensor: _find_stored_name(prefix + tensor, names) for tensor in shape.list_tensors()}
        found = read_tensors(folder, list(stored.values()))
    except (OSError, WireError):
        raise VocabularyError(
            f"model={name!r} must have config.json, tokenizer.json and model.safetensors; install it again"
        ) from None
    weights = {tensor: found[name_in_file] for tensor, name_in_file in stored.items()}
    forward = Forward.of(weights, shape)
    max_tokens = min(read_longest_input(config), len(forward.positions))
    bundle = make_bundle(model=name, tokenizer_json=tokenizer_json, embeddings=forward.words, max_tokens=max_tokens)
    around = _find_around(tokenizer_json, model=name)
    if max_tokens <= sum(map(len, around)):
        raise VocabularyError(f"an encoder must take at least one token of a text, got max_tokens={max_tokens}")
    return TextEncoder(
        model=name,
        hash=_hash_encoder(tokenizer_json, shape, weights),
        max_tokens=max_tokens,
        vocabulary=Vocabulary(bundle),
        forward=forward,
        around=around,
    )


def _find_stored_name(name: str, names: Set[str]) -> str:
    """Find the name of a tensor in a file: checkpoints from TensorFlow call those of a norm gamma and beta."""
    earlier = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return earlier if name not in names and earlier in names else name


def _hash_encoder(tokenizer_json: bytes, shape: EncoderShape, weights: dict[str, NDArray[np.float32]]) -> str:
    """The digest of what a state depends on; the type that a file keeps its numbers in is no part of it."""
    digest = hashlib.sha256(f"{SCHEMA} {shape!r}".encode())
    digest.update(hashlib.sha256(tokenizer_json).digest())
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].shape!r}".encode())
        digest.update(weights[name].astype("<f4", copy=False).data.cast("B"))
    return f"sha256:{digest.hexdigest()}"


def _find_around(tokenizer_json: bytes, *, model: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the special tokens before and after a text, from a text of one word."""
    tokenizer = make_tokenizer(tokenizer_json, model=model)
    try:
        with catch_panic():
            encoding = tokenizer.encode("a")
    except Exception:  # the library raises plain Exception
        raise make_tokenizer_error(model) from None
    special = encoding.special_tokens_mask
    if 0 not in special:
        raise VocabularyError(f"the tokenizer of model={model!r} must have tokens for a text; choose another encoder")
    first, last = special.index(0), len(special) - special[::-1].index(0)
    return tuple(encoding.ids[:first]), tuple(encoding.ids[last:])


def _cut_into_batches(lengths: Sequence[int]) -> Iterator[list[list[int]]]:
    """Cut texts in order of length into batches; each is the places of its texts, by length."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch: list[int] = []
    positions = 0
    for place in [*order, None]:
        if batch and (place is None or positions + lengths[place] > _POSITIONS):
            yield [list(places) for _, places in groupby(batch, key=lengths.__getitem__)]
            batch, positions = [], 0
        if place is not None:
            batch.append(place)
            positions += lengths[place]
