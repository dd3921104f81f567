"""A vocabulary on the trusted side: text to token ids and back, beside the embedding table that eta is measured in.

Light on purpose: `tokenizers`, numpy and the files of the bundle, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rapt.errors import CorpusError, VocabularyError
from rapt.public_models import PUBLIC_MODELS, model_directory
from rapt.wire.vocabulary_bundle import VocabularyBundle, bundle_from_model_directory, read_bundle


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A bundle that can tokenize. Its fields are public; texts are arguments and are not kept."""

    bundle: VocabularyBundle

    @property
    def model(self) -> str:
        """Name of the backbone."""
        return self.bundle.model

    @property
    def hash(self) -> str:
        """`sha256:...` of tokenizer, table, eligible ids and longest input."""
        return self.bundle.hash

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """The table E, (V, d), read-only."""
        return self.bundle.embeddings

    @property
    def eligible(self) -> NDArray[np.int64]:
        """Sorted ids that a mechanism may put out."""
        return self.bundle.eligible

    @property
    def dimension(self) -> int:
        """Width d of an embedding."""
        return int(self.bundle.embeddings.shape[1])

    @property
    def size(self) -> int:
        """Number of rows V of the table."""
        return int(self.bundle.embeddings.shape[0])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_str(self.bundle.tokenizer_json.decode("utf-8"))
        except Exception:  # tokenizers raises plain Exception
            raise VocabularyError(
                f"tokenizer.json of model={self.model!r} must be a Hugging Face tokenizer; take it from the model again"
            ) from None
        # Some models ship with both switched on: MiniLM's would cut every text at 128 and fill it up with [PAD].
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # A literal "[CLS]" in a text is text: it is split like any other word and never becomes a control token.
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encode(self, texts: Sequence[str], *, first_position: int = 0) -> list[list[int]]:
        """The content tokens of each text: no special token added, none cut off, none filled up.

        Args:
            texts: In clear; not kept, and never part of an error.
            first_position: Position of the first text in its file, for messages.

        Raises:
            CorpusError: A text is not valid Unicode (a lone surrogate, which no UTF-8 file can hold).
        """
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, ValueError):
            # The tokenizer's own message may quote the text: it is dropped on purpose.
            position = next((i for i, text in enumerate(texts) if not _is_unicode(text)), 0)
            raise CorpusError(
                f"record {first_position + position} must be valid unicode text; remove its lone surrogates"
            ) from None
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The tokens as one readable text, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The written form of each token, `##` and all.

        Raises:
            VocabularyError: The tokenizer has no token of such an id.
        """
        found: list[str] = []
        for position, token_id in enumerate(ids):
            token = self._tokenizer.id_to_token(token_id)
            if token is None:
                raise VocabularyError(
                    f"token {position} must be in the vocabulary of model={self.model!r}; "
                    "use the vocabulary it was made with"
                )
            found.append(token)
        return found


def load_vocabulary(model_or_folder: str) -> Vocabulary:
    """The vocabulary of a public model, of a bundle folder, or of a model folder in Hugging Face's layout.

    Args:
        model_or_folder: A name in `PUBLIC_MODELS`, or a path. A folder that holds `vocabulary.json` is a bundle and its
            hash is checked; any other is read as a model whose name is the folder's.

    Raises:
        VocabularyError: The name is unknown, its distribution is not installed, or a file is missing or damaged.
        WireError: `vocabulary.json` is malformed or of an unknown version.
    """
    if model_or_folder not in PUBLIC_MODELS and (Path(model_or_folder) / "vocabulary.json").is_file():
        return Vocabulary(read_bundle(Path(model_or_folder)))
    folder = model_directory(model_or_folder)
    name = model_or_folder if model_or_folder in PUBLIC_MODELS else folder.resolve().name
    return Vocabulary(bundle_from_model_directory(folder, model=name))


def _is_unicode(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
