"""What whole texts as codes are worth: a head tuned on private codes, asked at home and privately.

    python benchmarks/public_text.py ... --tasks --out TEXT
    python benchmarks/text_codes.py --text TEXT --model minilm --cache STATES --out text_codes.jsonl
    python benchmarks/text_codes.py ... --task task_tweets.csv --task task_goods.csv --dimensions 2 --dimensions 4

Each of the contributors releases one code of one sentence of `train.csv` at ε, for the whole sentence; a logistic head
is fitted on the codewords, its ridge chosen by five-fold cross-validation of the private codes; it is judged on
`dev.csv`. *At home* it sees the clear code of a sentence and is asked as `rapt.teaching.sharpen_head` has it, *plainly*
without that, *privately* a codeword at the same ε. Directions come from `public.csv`, or the file of `--public`, and
the public tasks. One JSON line for each cell. `--select` judges on a fifth of the contributors'
sentences instead, tuned on the rest: that is where dimensions and maps are chosen.

States are kept in the cache, by the encoder's hash and the texts. With a cell's seed everything is repeatable.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

import numpy as np

from rapt.local.codes.codebook import PublicStates, make_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import make_subset
from rapt.teaching import estimate_attenuation, sharpen_head
from rapt.wire.code_bundle import project_states

RIDGES = np.geomspace(1e-3, 1e5, 9)  # the strongest is what the service tries, λ = 10 on 4,000 texts
FOLDS = 5
PUBLIC = 8_000


def read(path, most=None):
    """Texts and labels of a file, in the file's order; the order of public_text.py is that of a hash."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if most is not None:  # the kinds of public.csv stand one after another
        rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))[:most]]
    return [row["text"] for row in rows], np.array([row.get("label") == "positive" for row in rows], dtype=float)


def states_of(encoder, texts, cache):
    """States of texts, from the cache where they are there."""
    digest = hashlib.sha256("\n".join([encoder.hash, *texts]).encode()).hexdigest()[:16]
    path = cache / f"{encoder.model}-{digest}.npy"
    if not path.exists():
        np.save(path, encoder.encode(texts))
    return np.load(path).astype(np.float32)


def fit(codes, labels, ridge):
    """A logistic head by Newton's method, its bias last."""
    inputs = np.column_stack([codes, np.ones(len(codes))])
    penalty = np.append(np.full(codes.shape[1], ridge), 1e-6)
    head = np.zeros(inputs.shape[1])
    for _ in range(8):
        chances = 1 / (1 + np.exp(-inputs @ head))
        curvature = (inputs * (chances * (1 - chances))[:, None]).T @ inputs + np.diag(penalty)
        head -= np.linalg.solve(curvature, inputs.T @ (chances - labels) + penalty * head)
    return head


def margins(head, codes):
    """What a head says."""
    return codes @ head[:-1] + head[-1]


def tune(codes, labels):
    """The head whose ridge has the least held-out loss on the codes themselves."""
    fold = np.arange(len(codes)) % FOLDS
    losses = []
    for ridge in RIDGES:
        said = np.empty(len(codes))
        for out in range(FOLDS):
            said[fold == out] = margins(fit(codes[fold != out], labels[fold != out], ridge), codes[fold == out])
        losses.append(np.logaddexp(0, np.where(labels > 0, -said, said)).sum())
    return fit(codes, labels, RIDGES[int(np.argmin(losses))])


def accuracies(mechanism, train, judged, *, seed, contributors, kept):
    """Right answers, one each: at home, plainly and privately."""
    (codes, labels), (asked, right) = train, judged
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(codes))[:contributors]
    words = mechanism.bundle.codewords[0].astype(np.float64)
    given = words[mechanism.privatize(codes[chosen], rng=rng)[:, 0]]
    head = tune(given, labels[chosen])
    share = np.clip((1 / (1 + np.exp(-margins(head, given)))).mean(), 1e-6, 1 - 1e-6)
    weight, bias = sharpen_head(
        np.stack([-head[:-1] / 2, head[:-1] / 2]),
        np.array([-head[-1] / 2, head[-1] / 2]),
        shares=np.array([1 - share, share]),
        attenuation=kept,
    )
    sharp = np.append(weight[1] - weight[0], bias[1] - bias[0])
    private = words[mechanism.privatize(asked, rng=rng)[:, 0]]
    return [(margins(*pair) > 0) == (right > 0) for pair in ((sharp, asked), (head, asked), (head, private))]


def interval(right):
    """Half the width of a 95 % interval over seeds and sentences: (seeds, n), sentences as clusters."""
    seeds, count = right.shape
    of_texts = right.mean(axis=0).var(ddof=1) / count
    of_seeds = right.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    return 1.96 * float(np.sqrt(of_texts + of_seeds))


def main():
    """Read the command line, write a line a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--text", "--cache", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--public", default="public.csv")
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--dimensions", type=int, action="append")
    parser.add_argument("--epsilon", type=float, action="append")
    parser.add_argument("--contributors", type=int, default=4_000)
    parser.add_argument("--codewords", type=int, default=4_096)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--select", action="store_true")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    encoder = read_encoder(options.model)

    def load(name, most=None):
        texts, labels = read(options.text / name, most)
        return states_of(encoder, texts, options.cache), labels

    train, public = load("train.csv"), load(options.public, PUBLIC)
    judged = train if options.select else load("dev.csv")
    tasks = [load(name) for name in options.task]
    known = PublicStates(texts=public[0], tasks=tuple((states, labels.astype(np.int64)) for states, labels in tasks))
    if options.select:
        held = np.arange(len(train[0])) % FOLDS == 0
        train, judged = (tuple(part[where] for part in train) for where in (~held, held))
    for dimensions in options.dimensions or (4, 8, 16, 32):
        bundle = make_codebook(encoder, known, dimensions=dimensions, codewords=options.codewords)
        tuned, asked = ((project_states(states, bundle), labels) for states, labels in (train, judged))
        clear = ((margins(tune(*tuned), asked[0]) > 0) == (asked[1] > 0)).mean()
        for epsilon in options.epsilon or (1.0, 2.0, 4.0, 8.0):
            mechanism = make_subset(bundle, epsilon=epsilon)
            kept = estimate_attenuation(bundle, mechanism.setting)
            runs = [
                accuracies(mechanism, tuned, asked, seed=seed, contributors=options.contributors, kept=kept)
                for seed in range(options.seeds)
            ]
            right = np.array(runs, dtype=float)
            cell = {
                "model": encoder.model,
                "public": options.public,
                "tasks": options.task,
                "judged": "train" if options.select else "dev",
                "n": len(asked[0]),
                "contributors": min(options.contributors, len(tuned[0])),
                "dimensions": dimensions,
                "epsilon": epsilon,
                "preferred": mechanism.preferred,
                "codewords": bundle.size,
                "attenuation": round(mechanism.measure_attenuation(tuned[0][:500]), 4),
                "clear_code": round(float(clear), 4),
                "seeds": options.seeds,
            }
            for place, name in enumerate(("at_home", "plainly", "privately")):
                cell[name] = round(float(right[:, place].mean()), 4)
                cell[f"{name}_interval"] = round(interval(right[:, place]), 4)
            print(json.dumps(cell), flush=True)
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(cell) + "\n")


if __name__ == "__main__":
    main()
