"""One code for a pair, or one for each of its texts: MRPC in five folds, at one ε for the whole pair.

    python benchmarks/public_tasks.py ... --out TASKS
    python benchmarks/pair_codes.py --tasks TASKS --cache STATES --out pair_codes.jsonl --model MPNET --epsilon 4

*One for the pair*: a code of pairs, `rapt.local.codes.codebook.make_pair_codebook`, made of a sixth of the pairs whose
labels are not used; the head that the service solves, asked at home as `rapt.at_home` has it and privately. *One each*:
each text leaves as a codeword at ε / 2, and a logistic head reads the products of the two, at home as
`rapt.teaching.sharpen_head` has it. Folds, and the public sixth, are by a hash of the pair. One JSON line a cell.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax
from task_codes import tune
from text_codes import interval, states_of

from rapt.at_home import fit_attenuation
from rapt.local.codes.codebook import PublicStates, make_codebook, make_pair_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import make_subset
from rapt.service.tuning.code_head import choose_penalty, solve_head, tally_labels
from rapt.teaching import sharpen_head
from rapt.wire.code_bundle import compare_pairs, place_on_arc, project_states

FOLDS, DRAWS, DIMENSIONS = 5, 5, 8


def head_over(words, given, labels):
    """The head that the service solves on released codewords, and what a home needs of it."""
    states, shape = torch.from_numpy(words), (len(words), 2)
    penalty = choose_penalty(states, given, labels, 2, private=None, seed=0)
    weight, bias = solve_head(states, tally_labels(given, labels, shape), penalty=penalty, label_privacy=None)
    shares = (states @ weight.T + bias).softmax(dim=1).numpy()[given].mean(axis=0)
    return weight.numpy(), bias.numpy(), shares


def main():
    """Read the command line, write a line a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--tasks", "--cache", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--epsilon", type=float, action="append", required=True)
    options = parser.parse_args()
    encoder = read_encoder(options.model)
    with (options.tasks / "pairs" / "train.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = np.array([int(row["label"]) for row in rows])
    both = [states_of(encoder, [row[column] for row in rows], options.cache) for column in ("text", "other")]
    digests = [hashlib.sha256(f"{row['text']}\t{row['other']}".encode()).digest() for row in rows]
    folds = np.array([digest[0] % (FOLDS + 1) for digest in digests])  # the last one is public
    judged, alike = folds < FOLDS, compare_pairs(*both)
    blind = round(float(max(labels[judged].mean(), 1 - labels[judged].mean())), 4)

    def write(arm, epsilon, right, **others):
        """Right answers by draw and pair, (2, draws, n): at home, privately."""
        cell = {
            "model": encoder.model,
            "arm": arm,
            "epsilon": epsilon,
            "n": int(judged.sum()),
            "blind": blind,
            **others,
        }
        for name, found in zip(("at_home", "privately"), right[:, :, judged], strict=True):
            cell |= {name: round(float(found.mean()), 4), f"{name}_interval": round(interval(found), 4)}
        print(json.dumps(cell), flush=True)
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(cell) + "\n")

    for epsilon in options.epsilon:
        for size in (4, 8, 64):
            bundle = make_pair_codebook(encoder, PublicStates(texts=alike[~judged]), codewords=size)
            mechanism, words = make_subset(bundle, epsilon=epsilon), bundle.codewords[0].astype(float)
            codes = project_states(alike, bundle)
            kept, offset = fit_attenuation(mechanism, place_on_arc(np.linspace(-1, 1, 256)))
            right = np.zeros((2, DRAWS, len(labels)))
            for seed in range(DRAWS):
                rng = np.random.default_rng(seed)
                given, asked = (mechanism.privatize(codes, rng=rng)[:, 0] for _ in range(2))
                for fold in range(FOLDS):
                    out = folds == fold
                    weight, bias, shares = head_over(words, given[judged & ~out], labels[judged & ~out])
                    sharp, shift = sharpen_head(weight, bias + weight @ offset, shares=shares, attenuation=kept)
                    right[0, seed, out] = (codes[out] @ sharp.T + shift).argmax(axis=1) == labels[out]
                    right[1, seed, out] = (words @ weight.T + bias).argmax(axis=1)[asked[out]] == labels[out]
            write("one for the pair", epsilon, right, codewords=size, preferred=mechanism.preferred)
        right = np.zeros((2, DRAWS, len(labels)))
        for fold in range(FOLDS):
            out = folds == fold
            public = np.concatenate(
                [states[judged & ~out] for states in both]
            )  # better than any public text: an upper bound
            bundle = make_codebook(encoder, PublicStates(texts=public), dimensions=DIMENSIONS)
            mechanism, words = make_subset(bundle, epsilon=epsilon / 2), bundle.codewords[0].astype(float)
            codes = [project_states(states, bundle) for states in both]
            for seed in range(DRAWS):
                rng = np.random.default_rng(seed)
                given, asked = (
                    np.multiply(*(words[mechanism.privatize(part, rng=rng)[:, 0]] for part in codes)) for _ in range(2)
                )
                head = tune(given[judged & ~out], labels[judged & ~out], np.eye(2))
                shares = np.exp(log_softmax(given[judged & ~out] @ head[:-1] + head[-1], axis=1)).mean(axis=0)
                kept = mechanism.measure_attenuation(codes[0][:300]) ** 2  # of a product of two
                weight, bias = sharpen_head(head[:-1].T, head[-1], shares=shares, attenuation=kept)
                logits = (codes[0] * codes[1]) @ weight.T + bias, asked @ head[:-1] + head[-1]
                for place, found in enumerate(logits):
                    right[place, seed, out] = found[out].argmax(axis=1) == labels[out]
        write("one each", epsilon, right, dimensions=DIMENSIONS)


if __name__ == "__main__":
    main()
