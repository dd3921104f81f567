"""Where the tokens of texts lie when the texts stand one after another, and which texts are read in one batch.

How the rows of a table are written: words, and pieces of words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError
from rapt.local.vocabulary import Vocabulary
from rapt.public_models import find_model_folder
from rapt.wire.vocabulary_bundle import VocabularyBundle

Ints = NDArray[np.int64]


def place_in_text(lengths: Ints) -> Ints:
    """Place of each token within its own text, from 0, (n,)."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def padded_places(lengths: Ints, group: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Places of the tokens of some texts among all tokens, and which are any, (B, T) each.

    Behind its end a text has the place of its first token.

    Args:
        lengths: Tokens of each text.
        group: Texts, (B,); none is empty.
    """
    starts = (np.cumsum(lengths) - lengths)[group, None]
    along = np.arange(int(lengths[group].max()))
    inside = along < lengths[group, None]
    return np.where(inside, starts + along, starts), inside


def batch_texts(lengths: Ints, texts: Ints, *, together: int) -> Iterator[Ints]:
    """Texts of nearly one length, up to `together` of them; those without tokens are left out.

    Args:
        lengths: Tokens of each text.
        texts: Texts to choose from; texts of one length come in this order.
        together: Texts of a batch.
    """
    texts = texts[lengths[texts] > 0]
    ordered = texts[np.argsort(lengths[texts], kind="stable")]
    for start in range(0, len(ordered), together):
        yield ordered[start : start + together]


@lru_cache(maxsize=2)
def write_rows(bundle: VocabularyBundle) -> tuple[str, ...]:
    """The written form of each row of the table; empty where no token stands there."""
    vocabulary = Vocabulary(bundle)
    written = []
    for row in range(vocabulary.size):
        try:
            written += vocabulary.tokens([row])
        except VocabularyError:  # a table padded to a round number of rows
            written.append("")
    return tuple(written)


_PIECE: Final = "##"
_STARTS: Final = ("\u2581", "\u0120")  # sentencepiece, byte-level BPE


@lru_cache(maxsize=2)
def mark_pieces(bundle: VocabularyBundle) -> NDArray[np.bool_]:
    """Whether each row of the table goes on the word before it, (V,)."""
    written = write_rows(bundle)
    marked = any(name.startswith(_STARTS) for name in written)
    return np.array([not name.startswith(_STARTS) if marked else name.startswith(_PIECE) for name in written])


_DECODERS: Final = ("ForCausalLM", "LMHeadModel")
_MOST_OF_A_CONFIG: Final = 1_000_000


def find_decoder(model: str) -> Path:
    """The folder of a decoder: a public model, a folder in Hugging Face's layout, or a name in the local cache.

    Raises:
        VocabularyError: Files of the model are missing, or it is no decoder with weights in safetensors.
    """
    folder = find_model_folder(model)
    try:
        with (folder / "config.json").open("rb") as file:
            names = json.loads(file.read(_MOST_OF_A_CONFIG)).get("architectures")
    except (OSError, ValueError, AttributeError):
        names = None
    if not isinstance(names, list) or not any(str(name).endswith(_DECODERS) for name in names):
        raise VocabularyError(
            "a language model must be a decoder, and config.json names no architecture of one; give another folder"
        )
    if not any(folder.glob("*.safetensors")):
        raise VocabularyError("a language model must have its weights in safetensors, got none; convert it first")
    return folder
