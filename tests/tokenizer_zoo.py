"""Models of every architecture, a few kilobytes each: a trained tokenizer and a table in the model's own names."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WIDTH = 8
BERT_ROWS = 153
LINES = [
    "The film was good, and the actors were better than the story.",
    "A bad film: slow, loud, and far too long. Nobody laughed!",
    "Ein schöner Film über Käse. Une histoire très émouvante.",
    "It's 2024 and 3 of 5 stars are enough for me.",
] * 5


def _list_pieces(special: list[str]) -> list[str]:
    """Letters, words and ends of words; the library's own trainer finds others in every run."""
    words = sorted(set(re.findall(r"\w+", " ".join(LINES).lower())))
    words = [unicodedata.normalize("NFD", word) for word in words]
    words = ["".join(letter for letter in word if not unicodedata.combining(letter)) for word in words]
    first = sorted(set("".join(words)) | set(".,:!'"))
    rest = sorted({"##" + letter for word in words for letter in word[1:]})
    ends = sorted({"##" + word[start:] for word in words for start in range(1, len(word) - 1)})
    pieces = list(dict.fromkeys([*special, *first, *rest, *words, *ends]))
    assert len(pieces) >= BERT_ROWS
    return pieces[:BERT_ROWS]


def bert(folder: Path) -> Path:
    """WordPiece, lower-case; two special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(
        models.WordPiece(dict(zip(_list_pieces(special), range(BERT_ROWS), strict=True)), unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _write(folder, tokenizer, "bert.embeddings.word_embeddings.weight", max_position_embeddings=64)


def t5(folder: Path) -> Path:
    """Unigram with sentinel tokens, a shared table, and a closing </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(4))]
    tokenizer.train_from_iterator(
        LINES,
        trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    # The trainer leaves tokens of one score in any order.
    trained = json.loads(tokenizer.to_str())
    known = [(piece, round(score, 5)) for piece, score in trained["model"]["vocab"]]
    trained["model"]["vocab"] = known[: len(special)] + sorted(known[len(special) :], key=lambda one: (-one[1], one[0]))
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _write(folder, tokenizer, "shared.weight", padding_rows=5, others=("encoder.embed_tokens.weight",))


def gpt2(folder: Path) -> Path:
    """Byte-level BPE; no special token around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return _write(folder, tokenizer, "transformer.wte.weight", n_positions=64)


def roberta(folder: Path) -> Path:
    """Byte-level BPE between <s> and </s>, with a <mask>."""
    return _spaced(folder, "roberta.embeddings.word_embeddings.weight", max_position_embeddings=66)


def bart(folder: Path) -> Path:
    """RoBERTa's tokenizer, under BART's name of the table."""
    return _spaced(folder, "model.shared.weight", max_position_embeddings=64)


def _spaced(folder: Path, name: str, **config: int) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _write(folder, tokenizer, name, **config)


def smollm2(folder: Path) -> Path:
    """Byte-level BPE with single digits and reserved tokens, under Llama's name of the table, in two shards."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens(["<|tool|>", "    "])  # not special by their flag
    return _write(folder, tokenizer, "model.embed_tokens.weight", shards=True, max_position_embeddings=64)


def llama2(folder: Path) -> Path:
    """BPE in SentencePiece's way: bytes to fall back to, one <s> in front."""
    letters = sorted({letter for line in LINES for letter in line} - {" "})
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "l")]
    names += [left + right for left, right in merges]
    vocab = {name: place for place, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _write(folder, tokenizer, "model.embed_tokens.weight", bfloat16=True, max_position_embeddings=64)


ZOO = {"bert": bert, "t5": t5, "gpt2": gpt2, "smollm2": smollm2, "llama2": llama2}
SPECIAL_TOKENS = {"bert": 2, "t5": 1, "gpt2": 0, "smollm2": 0, "llama2": 1}


def rows_of(folder: Path) -> int:
    """How many tokens the tokenizer in a folder has."""
    return int(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


def random_table(rows: int, width: int = WIDTH) -> np.ndarray:
    """A table whose numbers bfloat16 can hold, so that every width gives the same one."""
    numbers = np.random.default_rng(rows).standard_normal((rows, width)).astype(np.float32)
    return (numbers.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def write_bfloat16(path: Path, tensors: dict[str, ArrayLike]) -> None:
    """A safetensors file of bfloat16, which numpy has not, so the bytes are laid out by hand."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        raw = (np.asarray(values, dtype="<f4").view("<u4") >> 16).astype("<u2").tobytes()
        shape = list(np.shape(values))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    name: str,
    *,
    padding_rows: int = 0,
    others: tuple[str, ...] = (),
    shards: bool = False,
    bfloat16: bool = False,
    **config: int,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    table = random_table(tokenizer.get_vocab_size() + padding_rows)
    tensors = {"lm_head.bias": np.zeros(3, np.float32), name: table, **dict.fromkeys(others, table)}
    if bfloat16:
        write_bfloat16(folder / "model.safetensors", tensors)
    elif shards:
        places = {key: f"model-0000{i}-of-00002.safetensors" for i, key in enumerate(tensors, 1)}
        for key, place in places.items():
            save_file({key: tensors[key]}, folder / place)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder
