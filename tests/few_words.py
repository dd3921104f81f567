"""A real model of few words: `bert-tiny` without all but the most frequent tokens, under a name of the hub's cache.

What a command computes grows with the table: noise, channels, distances and heads over 2,500 rows cost a tenth of those
over 30,522, and every rare word is still spelled in pieces. `FEW_WORDS` is its name wherever a model may be named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from safetensors.numpy import load_file, save_file

from rapt.public_models import find_model_folder

FEW_WORDS: Final = "few-words"
# The tokens of `bert-tiny` stand in the order of their frequency, after the letters.
_KEPT: Final = 3_500
# Rarer words that tests look for as one token.
_RARE: Final = ("cancer", "email", "nice", "soup", "suicide", "ticket", "write", "zeppelin")
_COMMIT: Final = "0" * 40


def write_few_words(cache: Path) -> Path:
    """Put the model into a folder that is laid out as the hub's cache, and return that folder."""
    source, folder = find_model_folder("bert-tiny"), cache / f"models--{FEW_WORDS}" / "snapshots" / _COMMIT
    folder.mkdir(parents=True)
    (cache / f"models--{FEW_WORDS}" / "refs").mkdir()
    (cache / f"models--{FEW_WORDS}" / "refs" / "main").write_text(_COMMIT)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    kept = [word for word in words if words[word] < _KEPT and not word.startswith("[unused")] + list(_RARE)
    rows = [words[word] for word in kept]
    tokenizer["model"]["vocab"] = new = {word: place for place, word in enumerate(kept)}
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["content"]]
    for name, token in tokenizer["post_processor"]["special_tokens"].items():
        token["ids"] = [new[name]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(kept)}), encoding="utf-8")
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if len(tensor) == len(words):
            tensors[name] = tensor[rows]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return cache
