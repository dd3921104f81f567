"""What replaced words are worth to a language model that reads words, as the gateway sends them with --words and --eta.

    OMP_NUM_THREADS=2 python benchmarks/words_to_model.py SST2_DEV.tsv --texts 400 --eta 75 90 --json FILE

The vocabulary is that of MiniLM's whole words, written as a file of word vectors. A small language model, which was not
tuned, sees four public examples and then a sentence, in clear or replaced, and says by which of two words it goes on.
The same sentences in all arms. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import machine, publish
from transformers import AutoModelForCausalLM, AutoTokenizer

from rapt.audit.intervals import compute_independent_share
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, find_whole_words
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.public_models import find_model_folder
from rapt.wire.manifest import NO_PLAIN_TOKENS

EXAMPLES = (
    ("a warm and funny film with a great cast", "positive"),
    ("the story is dull and the jokes are terrible", "negative"),
    ("an ugly , tired mess that goes nowhere", "negative"),
    ("beautifully made and a joy to watch", "positive"),
)


def write_vectors(path: Path) -> None:
    """Write the rows of MiniLM's whole words as word vectors, with the marks that stand alone."""
    vocabulary = load_vocabulary("minilm")
    words = find_whole_words(vocabulary, at_most=vocabulary.size)
    written = dict(zip(vocabulary.tokens(words), words, strict=True))
    for mark in vocabulary.eligible.tolist():
        (token,) = vocabulary.tokens([mark])
        if len(token) == 1:
            written[token] = mark
    with path.open("w", encoding="utf-8") as stream:
        for word, row in written.items():
            stream.write(f"{word} {' '.join(f'{value:.6f}' for value in vocabulary.embeddings[row])}\n")


def make_scorer(name: str) -> Any:
    """Return a function that says whether a sentence is rather positive, by the model's next word."""
    folder = find_model_folder(name)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    model.eval()
    said = [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in ("negative", "positive")]
    shown = "".join(f"Review: {text}\nSentiment: {label}\n\n" for text, label in EXAMPLES)

    with torch.inference_mode():
        first = model(torch.tensor([tokenizer.encode(shown, add_special_tokens=False)]), use_cache=True).past_key_values

    @torch.inference_mode()
    def score(text: str) -> float:
        ids = torch.tensor([tokenizer.encode(f"Review: {text}\nSentiment:", add_special_tokens=False)])
        logits = model(ids, past_key_values=deepcopy(first)).logits[0, -1]
        return float(logits[said[1]] - logits[said[0]])

    return score


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--eta", type=float, nargs="+", default=[75.0, 90.0])
    parser.add_argument("--texts", type=int, default=150)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(2)
    delimiter = "\t" if given.dev.suffix == ".tsv" else ","
    with given.dev.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter=delimiter))
    chosen = np.random.default_rng(0).permutation(len(rows))[: given.texts]
    texts = [rows[row]["sentence"].strip() for row in chosen]
    labels = np.array([int(rows[row]["label"]) for row in chosen])
    with tempfile.TemporaryDirectory() as folder:
        vectors = Path(folder) / "vectors.txt"
        write_vectors(vectors)
        vocabulary = load_vocabulary(str(vectors))
    score = make_scorer(given.model)
    # The model's own leaning is taken out by the public examples alone: texts without their labels.
    leaning = float(np.median([score(text) for text, _ in EXAMPLES]))
    arms: dict[str, list[str]] = {"clear": texts}
    kept: dict[str, float] = {"clear": 1.0}
    contents = vocabulary.encode(texts)
    for eta in given.eta:
        mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
        privatizer = Privatizer(vocabulary=vocabulary, mechanism=mechanism, plain_tokens=NO_PLAIN_TOKENS)
        records = privatizer.privatize(texts, labels=None, stream=secure_stream())
        arms[f"eta={eta:g}"] = [" ".join(vocabulary.tokens(record.token_ids)) for record in records]
        same = [
            x == y
            for own, record in zip(contents, records, strict=True)
            for x, y in zip(own, record.token_ids, strict=True)
        ]
        kept[f"eta={eta:g}"] = float(np.mean(same))
    found = {}
    for name, own in arms.items():
        right = (np.array([score(text) for text in own]) > leaning) == (labels == 1)
        share = compute_independent_share(right)
        found[name] = {"right": share.value, "low": share.low, "high": share.high, "words_kept": kept[name]}
        print(json.dumps({name: found[name]}), flush=True)
    publish(
        {"model": given.model, "texts": len(texts), "words": vocabulary.size, "arms": found, "machine": machine()},
        file=given.json,
    )


if __name__ == "__main__":
    main()
