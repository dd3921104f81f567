"""A model's folder as people have it: which files it must hold, and the tokenizer of one that has a list of words only.

Every reader of a model goes through `read_folder` first, so that what is missing is one line before any work, with the
command that makes it. No file of Python's pickle format is ever opened: it can run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapt.errors import VocabularyError, WireError
from rapt.wire.model_files import find_tensors
from rapt.wire.strict_json import parse_object

_MOST_WORDS_BYTES: Final = 64 * 1024 * 1024
_PICKLED: Final = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-00001-of-*.bin",
    "*.ckpt",
    "*.pt",
)
_OTHER_TOKENIZERS: Final = ("*.model", "vocab.json", "merges.txt")
_CLASS: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,80}", re.ASCII)


@dataclass(frozen=True)
class ModelFolder:
    """The small files of a model.

    Attributes:
        config: Content of `config.json`.
        tokenizer_json: Content of `tokenizer.json`, or what it would be for the words in `vocab.txt`.
    """

    config: Mapping[str, Any]
    tokenizer_json: bytes


def read_folder(folder: Path, *, model: str) -> ModelFolder:
    """Read the small files of a model, whose large ones are there.

    Args:
        folder: Folder in Hugging Face's layout.
        model: Name of the model, for messages.

    Raises:
        VocabularyError: A file is missing, damaged, or in a form that is not read.
    """
    try:
        config = parse_object((folder / "config.json").read_bytes(), what="config.json")
    except (OSError, WireError):
        if (folder / "code.json").is_file():
            raise VocabularyError(
                f"model={model!r} must be a model, got a code of whole texts; name a model, or use it as a code, with "
                "`codes` and `epsilon`"
            ) from None
        raise VocabularyError(
            f"model={model!r} must have config.json, tokenizer.json and model.safetensors; install it again"
        ) from None
    _check_weights(folder, config, model=model)
    try:
        return ModelFolder(config=config, tokenizer_json=(folder / "tokenizer.json").read_bytes())
    except OSError:
        return ModelFolder(config=config, tokenizer_json=_convert_words(folder, model=model))


def _check_weights(folder: Path, config: Mapping[str, Any], *, model: str) -> None:
    """Refuse a folder without weights that can be read (`VocabularyError`); of shards, all must be there."""
    try:
        missing = sorted({path.name for path in find_tensors(folder).values() if not path.is_file()})
    except OSError:
        if not any(next(folder.glob(pattern), None) for pattern in _PICKLED):
            raise VocabularyError(
                f"model={model!r} must have config.json, tokenizer.json and model.safetensors; install it again"
            ) from None
        named = str((config.get("architectures") or ["AutoModel"])[0])
        kind = named if _CLASS.fullmatch(named) else "AutoModel"
        raise VocabularyError(
            f"model={model!r} must have model.safetensors, got weights in a form that can run code; with torch, "
            'transformers and trust in whoever made them, run in its folder: python -c "from transformers import '
            f"{kind} as M; M.from_pretrained('.').save_pretrained('.')\""
        ) from None
    if missing:
        raise VocabularyError(
            f"model={model!r} must have every file that its index names, got {len(missing)} too few, the first of them "
            f"{missing[0]}; fetch it again"
        )


def _convert_words(folder: Path, *, model: str) -> bytes:
    """The `tokenizer.json` of a BERT whose folder has `vocab.txt`, the words in the order of their ids.

    It is written here and not by a library, so that every version of it gives the same bytes and the same hash.
    """
    path = folder / "vocab.txt"
    try:
        if path.stat().st_size > _MOST_WORDS_BYTES:
            raise ValueError
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        vocab = {word.removesuffix("\r"): place for place, word in enumerate(words)}
        settings = _read_settings(folder)
        special = {name: settings.get(name) or usual for name, usual in _BERT_TOKENS.items()}
        start, end = special["cls_token"], special["sep_token"]
        if not {special["unk_token"], start, end} <= vocab.keys():
            raise KeyError
    except (OSError, ValueError, KeyError):
        other = any(next(folder.glob(pattern), None) for pattern in _OTHER_TOKENIZERS)
        raise VocabularyError(
            f"model={model!r} must have tokenizer.json, or the vocab.txt of a BERT; "
            + (
                'with transformers, sentencepiece and trust in whoever made it, run in its folder: python -c "from '
                "transformers import AutoTokenizer as T; T.from_pretrained('.').save_pretrained('.')\""
                if other
                else "install it again"
            )
        ) from None
    pair = [_make_piece("SpecialToken", start, 0), _make_piece("Sequence", "A", 0), _make_piece("SpecialToken", end, 0)]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            describe_special(vocab[token], token)
            for token in sorted(set(special.values()) & vocab.keys(), key=vocab.__getitem__)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(settings.get("tokenize_chinese_chars", True)),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": bool(settings.get("do_lower_case", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": pair,
            "pair": [*pair, _make_piece("Sequence", "B", 1), _make_piece("SpecialToken", end, 1)],
            "special_tokens": {
                token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in (start, end)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": special["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False).encode()


_BERT_TOKENS: Final = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def _read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a tokenizer, its tokens by their content alone; nothing where there are none."""
    try:
        found = parse_object((folder / "tokenizer_config.json").read_bytes(), what="tokenizer_config.json")
    except OSError:
        return {}
    except WireError:
        raise ValueError from None
    plain = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    if not all(isinstance(plain.get(name, ""), str | None) for name in _BERT_TOKENS):
        raise ValueError
    return plain


def _make_piece(kind: str, token: str, segment: int) -> dict[str, Any]:
    return {kind: {"id": token, "type_id": segment}}


def describe_special(token_id: int, content: str) -> dict[str, Any]:
    """A special token, as `tokenizer.json` lists it."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **plain, "special": True}
