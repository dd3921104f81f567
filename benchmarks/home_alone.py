"""What somebody reaches alone, at home and in clear, on n labelled sentences of his own: the control of every service.

    python benchmarks/public_text.py ... --tasks --out TEXT
    python benchmarks/home_alone.py --text TEXT --model minilm --cache STATES --out home_alone.jsonl

Two ways: a bag of words (`rapt.local.own_model`), and a logistic head on the states of a public encoder, its ridge
chosen by five-fold cross-validation on those n sentences. Judged on `dev.csv`. One JSON line for each way and n; the
mean over seeds, each with other sentences of `train.csv`. Nothing is sent, and nothing is private about it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from text_codes import interval, margins, read, states_of, tune

from rapt.local.codes.encoder import read_encoder
from rapt.local.own_model import count_words

SIZES = (100, 400, 1_000, 4_000)


def main():
    """Read the command line, write a line for each way and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--text", "--cache", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    encoder = read_encoder(options.model)
    (texts, labels), (asked, truth) = (read(options.text / name) for name in ("train.csv", "dev.csv"))
    states, judged = (states_of(encoder, part, options.cache) for part in (texts, asked))
    # A head on all numbers of a state wants them of size 1, as codes are.
    center, size = states.mean(axis=0), states.std()
    states, judged = (states - center) / size, (judged - center) / size
    for count in SIZES:
        right = {"words": [], encoder.model: []}
        for seed in range(options.seeds):
            chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
            words = count_words([texts[place] for place in chosen], labels[chosen].astype(np.int64), classes=2)
            right["words"].append((words.answer(asked)[:, 1] > np.log(0.5)) == (truth > 0))
            head = tune(states[chosen], labels[chosen])
            right[encoder.model].append((margins(head, judged) > 0) == (truth > 0))
        for way, found in right.items():
            line = {
                "way": way,
                "sentences": count,
                "seeds": options.seeds,
                "n": len(asked),
                "accuracy": round(float(np.mean(found)), 4),
                "half_width": round(interval(np.array(found)), 4),
            }
            print(json.dumps(line), flush=True)
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
