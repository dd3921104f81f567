"""A vocabulary on the trusted side: text to token ids and back, beside the embedding table that eta is measured in.

Light on purpose: `tokenizers`, numpy and the files of the bundle, no torch. What of a text its tokens keep, before any
noise, depends on the tokenizer:

| tokenizer                          | case        | spaces, line ends    | letters it does not know             |
|------------------------------------|-------------|----------------------|--------------------------------------|
| WordPiece (BERT, MiniLM)           | as trained  | not kept             | the whole word becomes [UNK]         |
| Unigram (T5)                       | kept        | runs become one      | a run of them becomes <unk>          |
| byte-level BPE (GPT-2, SmolLM2)    | kept        | kept exactly         | none: every byte has a token         |
| BPE of SentencePiece (Llama 2)     | kept        | kept, or runs as one | one token a byte, or <unk>           |
| words of a vector file             | by its flag | not kept             | the whole word becomes [UNK]         |

*The cache of words.* A WordPiece tokenizer spends its time on the same few thousand words, so the ids of those seen
last are kept. Only for tokenizers that work on each word by itself, so that the ids of a text are those of its words,
one after the other: BERT's normalizer treats characters one by one (its decomposition reorders accents, and none moves
over a space), its pre-tokenizer splits at every space, and WordPiece sees one piece of that at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from rapt.arguments import check_arguments
from rapt.errors import CorpusError, UsageError, VocabularyError, name_record
from rapt.local.nearest import NearestToken
from rapt.local.word_vectors import read_word_vectors
from rapt.public_models import PUBLIC_MODELS, find_model_folder, name_model
from rapt.wire.model_files import catch_panic, find_control_ids, make_tokenizer
from rapt.wire.vocabulary_bundle import VocabularyBundle, read_bundle, read_model_bundle, shorten_hash

# At most this many words of this many characters: 20 MB of usual ones.
_MOST_WORDS: Final = 2**16
_LONGEST_WORD: Final = 256
# Vocabularies whose measurements are kept.
_MOST_KEPT: Final = 4


class WordCache:
    """Encodes texts word by word, and keeps the ids of words.

    The words are private: they stay in this process, and a pickled copy starts empty. No id depends on what is kept.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Nothing is kept yet; the tokenizer must be one that `works_on_words`."""
        self._tokenizer = tokenizer
        self._kept: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """An empty one with the same tokenizer."""
        return WordCache, (self._tokenizer,)

    def encode(self, texts: Sequence[str]) -> list[list[int]] | None:
        """The ids of each text, without special tokens; None where a word is too long to be kept.

        Raises:
            Exception: The tokenizer refuses a text; its message may quote it.
        """
        split = [text.split(" ") for text in texts]
        kept = self._kept
        new = {word for words in split for word in words if word not in kept}
        if new:
            if max(map(len, new)) > _LONGEST_WORD:
                return None
            if len(kept) + len(new) > _MOST_WORDS:
                # Begin anew. Another thread may still read the old one, so that is left as it is.
                kept, new = {}, {word for words in split for word in words}
            listed = list(new)
            encodings = self._tokenizer.encode_batch_fast(listed, add_special_tokens=False)
            kept.update(zip(listed, (encoding.ids for encoding in encodings), strict=True))
            self._kept = kept if len(kept) <= _MOST_WORDS else {}
        return [[token for word in words for token in kept[word]] for words in split]


def works_on_words(tokenizer_json: bytes) -> bool:
    """Whether the tokenizer is of BERT's kind, and adds nothing to its vocabulary but control tokens."""
    described = json.loads(tokenizer_json)
    kinds = {part: (described.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")}
    return kinds == {
        "normalizer": "BertNormalizer",
        "pre_tokenizer": "BertPreTokenizer",
        "model": "WordPiece",
    } and all(added.get("special") is True for added in described.get("added_tokens") or ())


Unknown = Literal["unk", "refuse"]


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary:
    """A bundle that can tokenize. Its fields are public; texts are arguments and are not kept.

    Words of texts are, in this process alone, to encode them faster when they come again: see `WordCache`.

    Attributes:
        bundle: Tokenizer, table and eligible ids.
        unknown: Treatment of a word that the tokenizer does not know: `unk` takes its unknown token, which has a row
            and is privatized like any other; `refuse` refuses the text. Such a word never leaves as it is.
    """

    bundle: VocabularyBundle
    unknown: Unknown = "unk"

    def __post_init__(self) -> None:
        """Refuse an unknown policy (`UsageError`)."""
        if self.unknown not in get_args(Unknown):
            raise UsageError(f"unknown words must be for {' or '.join(get_args(Unknown))}, got {self.unknown!r}")

    def __repr__(self) -> str:
        """Name and size: the table and the tokenizer are thousands of lines."""
        return f"Vocabulary(model={self.model[:60]!r}, size={self.size}, dimension={self.dimension})"

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

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for whatever the tokenizer does not know; None where every text has tokens."""
        return self._control[1]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = make_tokenizer(self.bundle.tokenizer_json, model=self.model)
        # A literal "[CLS]" in a text is text: it is split like any other word and never becomes a control token.
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _words(self) -> WordCache | None:
        return WordCache(self._tokenizer) if works_on_words(self.bundle.tokenizer_json) else None

    def _encode_by_words(self, words: WordCache, texts: Sequence[str]) -> list[list[int]] | None:
        """The ids of each text, word by word; None where that is not possible, or there is an error to explain."""
        try:
            with catch_panic():
                return words.encode(texts)
        except Exception:  # tokenizers raises plain Exception; its message may quote the text
            return None

    @cached_property
    def nearest(self) -> NearestToken:
        """The search among the rows of the eligible tokens, which every η shares."""
        return NearestToken(self.embeddings, self.eligible)

    @cached_property
    def _control(self) -> tuple[frozenset[int], int | None]:
        return find_control_ids(self.bundle.tokenizer_json)

    def encode(self, texts: Sequence[str], *, first_position: int = 0) -> list[list[int]]:
        """The content tokens of each text: no special token added, none cut off, none filled up.

        A special token that is written out in a text is split like any other word. Where the tokenizer's model knows
        it as one piece all the same (Unigram does), it becomes the unknown token.

        Args:
            texts: Texts in clear; not kept, and never part of an error.
            first_position: Position of the first text in its file, for messages.

        Raises:
            CorpusError: A text is no string, is not valid Unicode (a lone surrogate, which no UTF-8 file can hold), or
                has an unknown word where those are refused.
            UsageError: The texts are one string, which would be read as a text for each letter.
            VocabularyError: A text has a token without a row in the table, or the tokenizer cannot take it.
        """
        texts = check_texts(texts, first_position=first_position)
        ids = None if self._words is None else self._encode_by_words(self._words, texts)
        if ids is None:
            encodings = self._make_encodings(texts, with_spans=False, first_position=first_position)
            ids = [encoding.ids for encoding in encodings]
        return [self._list_content(content, position) for position, content in enumerate(ids, first_position)]

    def spans(self, texts: Sequence[str], *, first_position: int = 0) -> list[list[tuple[int, int]]]:
        """Where each token of `encode` stands in its text: (start, end) in characters, `text[start:end]`.

        Spans ascend, and what lies between two of them are spaces, or letters that the tokenizer drops. Tokens that
        are bytes of one character share its span; a mark for the beginning of a word may take that of its first
        letter. Spans are positions of private text: like it, they stay here.

        Args:
            texts: Texts in clear; not kept.
            first_position: Position of the first text in its file, for messages.

        Raises:
            CorpusError: The reasons of `encode`.
            UsageError: The reasons of `encode`.
            VocabularyError: The reasons of `encode`.
        """
        texts = check_texts(texts, first_position=first_position)
        encodings = self._make_encodings(texts, with_spans=True, first_position=first_position)
        for position, encoding in enumerate(encodings, first_position):
            self._list_content(encoding.ids, position)
        return [encoding.offsets for encoding in encodings]

    def _make_encodings(self, texts: Sequence[str], *, with_spans: bool, first_position: int) -> list[Encoding]:
        tokenizer = self._tokenizer
        encode = tokenizer.encode_batch if with_spans else tokenizer.encode_batch_fast
        try:
            with catch_panic():
                return encode(list(texts), add_special_tokens=False)
        except Exception:  # tokenizers raises plain Exception
            # The tokenizer's own message may quote the text: it is dropped on purpose.
            position = next((i for i, text in enumerate(texts) if not is_unicode(text)), None)
            if position is None:
                raise VocabularyError(
                    f"the tokenizer of model={self.model!r} must take any text, and failed at one of records "
                    f"{first_position} to {first_position + len(texts) - 1}; choose a model with an unknown token"
                ) from None
            raise CorpusError(
                f"{name_record(first_position + position)} must be valid unicode text; remove its lone surrogates"
            ) from None

    def _list_content(self, ids: list[int], position: int) -> list[int]:
        control, unknown = self._control
        if unknown is not None and not control.isdisjoint(ids):
            ids = [unknown if token_id in control else token_id for token_id in ids]
        if self.unknown == "refuse" and unknown in ids:
            raise CorpusError(
                f"{name_record(position)} must have only words of the vocabulary of model={self.model!r}, got "
                f"{ids.count(unknown)} others, the first as token {ids.index(unknown)}; replace it, or take them as unk"
            )
        if ids and max(ids) >= self.size:
            raise VocabularyError(
                f"{name_record(position)} must have tokens with a row in the table of model={self.model!r}, got one "
                f"beyond its {self.size} rows; take the tokenizer that belongs to the weights"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The tokens as one readable text, special tokens included.

        Raises:
            VocabularyError: The tokenizer cannot write them.
        """
        try:
            with catch_panic():
                return self._tokenizer.decode([int(token_id) for token_id in ids], skip_special_tokens=False)
        except VocabularyError:
            raise
        except Exception:  # tokenizers raises plain Exception
            raise VocabularyError(
                f"the tokenizer of model={self.model!r} must write any of its tokens, and failed; take it from the "
                "model again"
            ) from None

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The written form of each token, `##` and all.

        Raises:
            VocabularyError: The tokenizer has no token of such an id.
        """
        found: list[str] = []
        for position, token_id in enumerate(ids):
            token = self._tokenizer.id_to_token(int(token_id))
            if token is None:
                raise VocabularyError(
                    f"token {position} must be in the vocabulary of model={self.model!r}; "
                    "use the vocabulary it was made with"
                )
            found.append(token)
        return found


_Found = TypeVar("_Found")


def keep_by_hash(measure: Callable[[Vocabulary], _Found]) -> Callable[[Vocabulary], _Found]:
    """Return the function, which then keeps what it found of a few vocabularies.

    Args:
        measure: Depends on nothing but the files of a vocabulary, which its hash covers. Its result is not changed.
    """
    kept: dict[str, _Found] = {}

    @wraps(measure)
    def find(vocabulary: Vocabulary) -> _Found:
        if (known := kept.get(vocabulary.hash)) is not None:
            return known
        found = measure(vocabulary)
        if len(kept) >= _MOST_KEPT:
            kept.clear()
        kept[vocabulary.hash] = found
        return found

    return find


@check_arguments
def load_vocabulary(
    model_or_folder: str | Path, *, unknown: Unknown = "unk", remark: Callable[[str], None] | None = None
) -> Vocabulary:
    """The vocabulary of a public model, a bundle folder, a model folder in Hugging Face's layout, or word vectors.

    Args:
        model_or_folder: A name in `PUBLIC_MODELS`, a name of the Hugging Face hub in its local cache, or a path. A
            folder that holds `vocabulary.json` is a bundle and its hash is checked; any other is read as a model.
            A file is read as word vectors, but one of suffix `.gguf` as a model. Names of files and folders may be
            private, and a manifest names the model: word vectors and models are named after the hash of what they hold.
        unknown: Treatment of words that the tokenizer does not know; see `Vocabulary`.
        remark: Called with what was left out of a file of word vectors.

    Raises:
        VocabularyError: The name is unknown, not on this machine, or a file is missing or damaged.
        WireError: `vocabulary.json` is malformed or of an unknown version.
    """
    path, model_or_folder = Path(model_or_folder), str(model_or_folder)
    if model_or_folder not in PUBLIC_MODELS and path.is_file() and path.suffix.lower() != ".gguf":
        return Vocabulary(read_word_vectors(path, remark=remark), unknown)
    if model_or_folder not in PUBLIC_MODELS and (path / "vocabulary.json").is_file():
        return Vocabulary(read_bundle(path), unknown)
    if model_or_folder in PUBLIC_MODELS:
        return Vocabulary(_read_public_bundle(model_or_folder), unknown)
    bundle = read_model_bundle(find_model_folder(model_or_folder), model=name_model(model_or_folder))
    if path.exists():
        bundle = replace(bundle, model=f"model-{shorten_hash(bundle.hash)}")
    return Vocabulary(bundle, unknown)


@lru_cache(maxsize=1)  # a program that calls a command or two reads and hashes a table of 50 MB once
def _read_public_bundle(model: str) -> VocabularyBundle:
    return read_model_bundle(find_model_folder(model), model=model)


def check_texts(texts: Sequence[str], *, first_position: int) -> list[str]:
    """The texts, each of them a string: tables mark a missing one as None or NaN.

    Raises:
        CorpusError: One is no string.
        UsageError: All of them are one string.
    """
    if isinstance(texts, str | bytes):
        raise UsageError("texts must be a list of strings, got a single one; put it into a list")
    found: list[Any] = list(texts)  # typed code passes strings; notebooks pass what a table holds
    for position, text in enumerate(found, first_position):
        if not isinstance(text, str):
            missing = text is None or text != text
            raise CorpusError(
                f"{name_record(position)} must be a text, got {'none' if missing else type(text).__name__}; "
                f"{'leave it out' if missing else 'make it a string'}"
            )
    return found


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
