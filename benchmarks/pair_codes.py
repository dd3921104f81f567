"""One code for a pair, or one for each of its texts: MRPC in five folds, at one ε for the whole pair.

    python benchmarks/public_tasks.py ... --out TASKS
    python benchmarks/pair_codes.py --tasks TASKS --cache STATES --out pair_codes.jsonl --model MPNET --epsilon 4

*One for the pair*: the cosine of the two states, in equal public bins from 0.6 to 1, leaves by the subset mechanism
over bins: one of the m nearest, or another. The joint law of true bins and labels is found from the released bins by
expectation and maximization through the known channel. At home a logistic curve of that law reads the clear cosine;
privately the likelier label of a released bin is the answer. *One each*: each text leaves as a codeword at ε / 2, and a
logistic head reads the products of the two, at home as `rapt.at_home.sharpen_head` has it. Folds are by a hash of the
pair. One JSON line for each cell.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

import numpy as np
from scipy.special import log_softmax
from task_codes import tune
from text_codes import interval, states_of

from rapt.at_home import sharpen_head
from rapt.local.codes.codebook import PublicStates, make_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import make_subset
from rapt.wire.code_bundle import project_states

LOW, HIGH = 0.6, 1.0
FOLDS, DRAWS, DIMENSIONS = 5, 5, 8


def channel_of(bins, preferred, epsilon):
    """P(released bin | true bin), (N, N)."""
    centers = np.arange(bins)
    order = np.argsort(abs(centers[:, None] - centers) + 1e-9 * centers, axis=1)
    hit = np.exp(epsilon) * preferred / (np.exp(epsilon) * preferred + bins - preferred)
    found = np.full((bins, bins), (1 - hit) / (bins - preferred))
    np.put_along_axis(found, order[:, :preferred], hit / preferred, axis=1)
    return found


def draw(channel, true, rng):
    """A released bin for each true one."""
    return (rng.random(len(true))[:, None] > channel.cumsum(axis=1)[true]).sum(axis=1).clip(max=len(channel) - 1)


def joint_law(channel, released, labels):
    """P(true bin, label), (N, 2), the likeliest one."""
    seen = np.zeros((len(channel), 2))
    np.add.at(seen, (released, labels), 1)
    law = np.full(seen.shape, 1 / seen.size)
    for _ in range(200):
        law *= channel @ (seen / np.maximum(channel.T @ law, 1e-12))
        law /= law.sum()
    return law


def curve_of(law):
    """The logistic curve of the cosine that has the law's labels."""
    bins = len(law)
    inputs = np.column_stack([LOW + (np.arange(bins) + 0.5) * (HIGH - LOW) / bins, np.ones(bins)])
    head, weights = np.zeros(2), law.sum(axis=1)
    for _ in range(30):
        chances = 1 / (1 + np.exp(-inputs @ head))
        bend = (inputs * (chances * (1 - chances) * weights)[:, None]).T @ inputs + 1e-6 * np.eye(2)
        head += np.linalg.solve(bend, inputs.T @ (law[:, 1] - chances * weights))
    return head


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
    folds = np.array([digest[0] % FOLDS for digest in digests])
    units = [states / np.linalg.norm(states, axis=1, keepdims=True) for states in both]
    cosines = (units[0] * units[1]).sum(axis=1)
    blind = round(float(max(labels.mean(), 1 - labels.mean())), 4)

    def write(arm, epsilon, right, **others):
        """Right answers by draw and pair, (2, draws, n): at home, privately."""
        cell = {"model": encoder.model, "arm": arm, "epsilon": epsilon, "n": len(labels), "blind": blind, **others}
        for name, found in zip(("at_home", "privately"), right, strict=True):
            cell |= {name: round(float(found.mean()), 4), f"{name}_interval": round(interval(found), 4)}
        print(json.dumps(cell), flush=True)
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(cell) + "\n")

    for epsilon in options.epsilon:
        for bins, preferred in ((4, 1), (8, 1), (8, 2), (16, 4)):
            channel = channel_of(bins, preferred, epsilon)
            true = ((cosines - LOW) / (HIGH - LOW) * bins).astype(int).clip(0, bins - 1)
            right = np.zeros((2, DRAWS, len(labels)))
            for seed in range(DRAWS):
                rng = np.random.default_rng(seed)
                given, asked = draw(channel, true, rng), draw(channel, true, rng)
                for fold in range(FOLDS):
                    out = folds == fold
                    law = joint_law(channel, given[~out], labels[~out])
                    head = curve_of(law)
                    right[0, seed, out] = (cosines[out] * head[0] + head[1] > 0) == labels[out]
                    right[1, seed, out] = (channel.T @ law).argmax(axis=1)[asked[out]] == labels[out]
            write("one for the pair", epsilon, right, bins=bins, preferred=preferred)
        right = np.zeros((2, DRAWS, len(labels)))
        for fold in range(FOLDS):
            out = folds == fold
            public = np.concatenate([states[~out] for states in both])  # better than any public text: an upper bound
            bundle = make_codebook(encoder, PublicStates(texts=public), dimensions=DIMENSIONS)
            mechanism, words = make_subset(bundle, epsilon=epsilon / 2), bundle.codewords[0].astype(float)
            codes = [project_states(states, bundle) for states in both]
            for seed in range(DRAWS):
                rng = np.random.default_rng(seed)
                given, asked = (
                    np.multiply(*(words[mechanism.privatize(part, rng=rng)[:, 0]] for part in codes)) for _ in range(2)
                )
                head = tune(given[~out], labels[~out], np.eye(2))
                shares = np.exp(log_softmax(given[~out] @ head[:-1] + head[-1], axis=1)).mean(axis=0)
                kept = mechanism.measure_attenuation(codes[0][:300]) ** 2  # of a product of two
                weight, bias = sharpen_head(head[:-1].T, head[-1], shares=shares, attenuation=kept)
                logits = (codes[0] * codes[1]) @ weight.T + bias, asked @ head[:-1] + head[-1]
                for place, found in enumerate(logits):
                    right[place, seed, out] = found[out].argmax(axis=1) == labels[out]
        write("one each", epsilon, right, dimensions=DIMENSIONS)


if __name__ == "__main__":
    main()
