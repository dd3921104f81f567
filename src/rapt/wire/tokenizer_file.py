"""What a `tokenizer.json` says of itself, without loading it: which ids may be an output, what goes around a text.

An output must not mark a text as privatized or broken, so some tokens are never one, by a rule on the public tokenizer
alone:

- special tokens, and tokens that no training text used (`[unused7]`, `<extra_id_3>`, `<|...|>` and their like);
- `<0x0A>` and its like, the single bytes that SentencePiece falls back to;
- in a byte-level tokenizer, tokens that are not whole characters (they would decode to a replacement character) or that
  hold control characters other than tab and line ends;
- rows of the table beyond the tokenizer, which fill it up to a round number.

All of them may be an input. An emoji that is four bytes is four tokens, and each of them is privatized.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import VocabularyError

_NEVER_OUT: Final = re.compile(
    r"\[unused\d+\]|<unused\d+>|<extra_id_\d+>|<\|[^ ]*\|>|<0x[0-9A-Fa-f]{2}>|<reserved_?\d+>|madeupword\d+"
)
# Special tokens that a post-processor of these types puts around one text: its start and its end.
_AROUND: Final = {"BertProcessing": 2, "RobertaProcessing": 2, "ByteLevel": 0}


def eligible_ids(tokenizer_json: bytes, *, rows: int) -> NDArray[np.int64]:
    """Sorted ids of the tokens that may be an output and have a row in the table of `rows` rows.

    Raises:
        VocabularyError: The bytes are not a tokenizer, or no token is left.
    """
    description = _parse(tokenizer_json)
    try:
        named = _named_tokens(description["model"]["vocab"])
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
        raise _not_a_tokenizer() from None
    if not kept:
        raise VocabularyError(f"a vocabulary must have at least one eligible token, got rows={rows} and none eligible")
    return np.array(sorted(kept), dtype=np.int64)


def special_tokens(tokenizer_json: bytes) -> int:
    """How many special tokens the tokenizer puts around one text: BERT 2, T5 1, GPT-2 0, Llama 1.

    Raises:
        VocabularyError: The bytes are not a tokenizer, or its post-processor is of an unknown type.
    """
    try:
        return _around(_parse(tokenizer_json).get("post_processor"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _not_a_tokenizer() from None


def control_ids(tokenizer_json: bytes) -> tuple[frozenset[int], int | None]:
    """The ids of special tokens but the unknown one, and the id of the unknown token, None where there is none.

    Raises:
        VocabularyError: The bytes are not a tokenizer.
    """
    description = _parse(tokenizer_json)
    try:
        model = description["model"]
        special = {item["id"] for item in description.get("added_tokens") or [] if item["special"]}
        unknown = model.get("unk_id")
        if unknown is None and model.get("unk_token") is not None:
            unknown = dict(_named_tokens(model["vocab"])).get(model["unk_token"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise _not_a_tokenizer() from None
    return frozenset(special - {unknown}), unknown


@contextmanager
def no_panic() -> Iterator[None]:
    """Make a panic of the library of tokenizers, which no `except Exception` sees, an error without its message.

    A damaged `tokenizer.json` brings one about: a table of characters that points outside of itself, for one.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # the library makes its class where nobody can import it
            raise RuntimeError("the tokenizer panicked") from None
        raise


def _parse(tokenizer_json: bytes) -> dict[str, Any]:
    try:
        value = json.loads(tokenizer_json)
    except (ValueError, RecursionError):
        raise _not_a_tokenizer() from None
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise _not_a_tokenizer()
    return value


def _not_a_tokenizer() -> VocabularyError:
    return VocabularyError("tokenizer.json must be a Hugging Face tokenizer; take it from the model again")


def _named_tokens(vocab: Any) -> Iterator[tuple[str, int]]:
    """Tokens and ids: a dict in WordPiece, BPE and WordLevel, a list of (token, score) in Unigram."""
    if isinstance(vocab, dict):
        return iter(vocab.items())
    return ((item[0], position) for position, item in enumerate(vocab))


def _around(processor: Mapping[str, Any] | None) -> int:
    if processor is None:
        return 0
    kind = processor["type"]
    if kind == "Sequence":
        return sum(_around(part) for part in processor["processors"])
    if kind == "TemplateProcessing":
        named = [piece["SpecialToken"]["id"] for piece in processor["single"] if "SpecialToken" in piece]
        return sum(len(processor["special_tokens"][name]["ids"]) for name in named)
    return _AROUND[kind]


def _is_byte_level(description: Mapping[str, Any]) -> bool:
    """Whether tokens are written in GPT-2's alphabet of bytes."""
    parts: list[Any] = [description.get("pre_tokenizer"), description.get("decoder")]
    while parts:
        part = parts.pop()
        if part is not None and part.get("type") == "ByteLevel":
            return True
        if part is not None and part.get("type") == "Sequence":
            parts += part.get("pretokenizers") or part.get("decoders") or []
    return False


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte: itself where it can be seen, else the next one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(rest)}


_BYTES: Final = _byte_alphabet()


def _is_broken(token: str) -> bool:
    """Whether a byte-level token is not whole characters, or holds a control character."""
    if any(letter not in _BYTES for letter in token):
        return False  # an added token, which is written as it reads
    try:
        text = bytes(_BYTES[letter] for letter in token).decode("utf-8")
    except UnicodeDecodeError:
        return True
    return any(unicodedata.category(letter) == "Cc" and letter not in "\t\n\r" for letter in text)
