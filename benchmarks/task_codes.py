"""What codes of whole texts are worth on tasks of many kinds: topics, tweets, lines of a series, mail.

    python benchmarks/public_tasks.py ... --out TASKS
    python benchmarks/task_codes.py --tasks TASKS --task r8 --cache STATES --out task_codes.jsonl --dimensions 32 \
      --epsilon 2 --epsilon 4 --public reviews=TEXT/public.csv [--center] [--select]

Each contributor of `train.csv` releases one code of one text at ε; a logistic head is fitted on the codewords, its
penalty chosen by the loss on a third of those codewords; it is judged on `test.csv`, *at home* by the clear code of
a text and `rapt.teaching.sharpen_head`, *plainly* by that code without it, and *privately* by a codeword at the same ε.
The map is made of `public.csv` of the task, or of the file of `--public`, without labels. With `--center` a fifth of
the contributors release codes for the centre alone (`rapt.centering`), and the others release centred ones. `--teach`
asks the head of `rapt.teaching` at home as well, *taught*, on the map's public text. `--label-epsilon` randomizes
labels as well. `--names` makes the first directions of the map from the names of the labels, as `train.csv` has
them; *zero* is what these names are worth alone: the name whose state is nearest, nothing sent. `--codes` is r, each at
ε / r. One JSON line for each cell. `--select` judges on a fifth of `train.csv` instead, tuned on the rest: that is
where dimensions and centring are chosen.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from text_codes import interval, states_of

from rapt.centering import center_codes, estimate_center
from rapt.local.codes.codebook import PublicStates, make_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import make_subset
from rapt.teaching import PENALTY, estimate_attenuation, sharpen_head, teach_head
from rapt.wire.code_bundle import project_states, split_into_units

PENALTIES = np.geomspace(1e-1, 1e-5, 5)
FIRST_ROUND = 0.2
PUBLIC = 8_000


def read(path, most=None):
    """Texts and labels of a file; of more than `most`, so many at random."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if most is not None:
        rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))[:most]]
    return [row["text"] for row in rows], [row.get("label") for row in rows]


def fit(inputs, labels, transition, penalty, *, start, steps):
    """A logistic head, (k + 1, C), its bias last, under labels that went through a transition matrix."""
    scale = np.sqrt((inputs**2).mean()) + 1e-12
    padded, classes = np.column_stack([inputs / scale, np.ones(len(inputs))]), len(transition)

    def loss(flat):
        head = flat.reshape(padded.shape[1], classes)
        chances = np.exp(log_softmax(padded @ head, axis=1))
        seen = (chances * transition.T[labels]).sum(axis=1)
        posterior = chances * transition.T[labels] / seen[:, None]
        slope = padded.T @ (chances - posterior) / len(labels)
        slope[:-1] += 2 * penalty * head[:-1]
        return -np.log(seen).mean() + penalty * (head[:-1] ** 2).sum(), slope.ravel()

    first = np.zeros((padded.shape[1], classes)) if start is None else np.vstack([start[:-1] * scale, start[-1:]])
    found = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
    head = found.reshape(padded.shape[1], classes)
    return np.vstack([head[:-1] / scale, head[-1:]])


def tune(inputs, labels, transition):
    """The head whose penalty has the least loss on a third of its own records, which are left out for that."""
    out = np.arange(len(labels)) % 3 == 0
    losses, head = [], None
    for penalty in PENALTIES:  # the strongest first: each starts where the one before it ended
        head = fit(inputs[~out], labels[~out], transition, penalty, start=head, steps=20)
        chances = np.exp(log_softmax(inputs[out] @ head[:-1] + head[-1], axis=1))
        losses.append(-np.log((chances * transition.T[labels[out]]).sum(axis=1)).mean())
    return fit(inputs, labels, transition, PENALTIES[int(np.argmin(losses))], start=head, steps=60)


def right_answers(bundle, states, labels, asked, truth, options, *, epsilon, rng, classes, public=None):
    """Right answers, one each: at home, plainly, privately, and taught where there is public text; and c."""
    mechanism = make_subset(bundle, epsilon=epsilon)
    rows = rng.permutation(len(states))[: options.contributors]
    if options.center:
        cut = int(FIRST_ROUND * len(rows))
        given = mechanism.privatize(project_states(states[rows[:cut]], bundle), rng=rng)
        bundle = center_codes(bundle, estimate_center(bundle, mechanism.setting, given))
        mechanism, rows = make_subset(bundle, epsilon=epsilon), rows[cut:]
    words = bundle.codewords.astype(np.float64)

    def draw(codes):
        ids = mechanism.privatize(codes, rng=rng)
        return np.concatenate([book[column] for book, column in zip(words, ids.T, strict=True)], axis=1)

    kept, transition = labels[rows], np.eye(classes)
    if options.label_epsilon:
        other = 1 / (np.exp(options.label_epsilon) + classes - 1)
        transition = np.full((classes, classes), other) + np.eye(classes) * (1 - classes * other)
        moved = rng.random(len(kept)) < other * (classes - 1)
        kept = np.where(moved, (kept + rng.integers(1, classes, size=len(kept))) % classes, kept)
    released = draw(project_states(states[rows], bundle))
    head = tune(released, kept, transition)
    shares = np.exp(log_softmax(released @ head[:-1] + head[-1], axis=1)).mean(axis=0)
    clear = project_states(asked, bundle)
    clear = split_into_units(clear, codes_of_a_text=bundle.codes).reshape(clear.shape)
    attenuation = estimate_attenuation(bundle, mechanism.setting)
    weight, bias = sharpen_head(head[:-1].T, head[-1], shares=np.maximum(shares, 1e-6), attenuation=attenuation)
    logits = (
        clear @ weight.T + bias,
        clear @ head[:-1] + head[-1],
        draw(project_states(asked, bundle)) @ head[:-1] + head[-1],
    )
    if public is not None:
        shares = np.maximum(shares, 1e-6)
        taught = teach_head(
            public,
            head[:-1].T,
            head[-1],
            bundle=bundle,
            setting=mechanism.setting,
            shares=shares,
            penalty=options.teach,
        )
        logits = (*logits, asked @ taught[0].T + taught[1])
    return [one.argmax(axis=1) == truth for one in logits], attenuation


def share_by_names(judged, named, public):
    """Share of texts whose own label's name is the nearest, by the cosine of states around the public mean."""
    asked, truth = judged
    names = named - named.mean(axis=0)
    scores = (asked - public.mean(axis=0)) @ (names / np.linalg.norm(names, axis=1, keepdims=True)).T
    return round(float((scores.argmax(axis=1) == truth).mean()), 4)


def main():
    """Read the command line, write a line a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--tasks", "--cache", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--public", help="NAME=FILE; without it, the task's own public text")
    parser.add_argument("--dimensions", type=int, action="append", required=True)
    parser.add_argument("--epsilon", type=float, action="append", required=True)
    parser.add_argument("--codes", type=int, default=1)
    parser.add_argument("--codewords", type=int, default=4_096)
    parser.add_argument("--contributors", type=int, default=4_000)
    parser.add_argument("--label-epsilon", type=float, default=0.0)
    parser.add_argument("--center", action="store_true")
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--select", action="store_true")
    parser.add_argument("--teach", type=float, nargs="?", const=PENALTY, help="with this penalty; default: rapt's")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    encoder = read_encoder(options.model)
    folder = options.tasks / options.task
    kind, _, path = (options.public or f"own={folder / 'public.csv'}").partition("=")
    states, names = {}, {}
    for name in ("train", "test"):
        texts, names[name] = read(folder / f"{name}.csv")
        states[name] = states_of(encoder, texts, options.cache)
    public = states_of(encoder, read(Path(path), None if kind == "own" else PUBLIC)[0], options.cache)
    classes = sorted(set(names["train"]))
    labels = {name: np.array([classes.index(one) for one in found]) for name, found in names.items()}
    tuned, judged = (states["train"], labels["train"]), (states["test"], labels["test"])
    if options.select:
        held = np.arange(len(labels["train"])) % 5 == 0
        tuned, judged = ((states["train"][where], labels["train"][where]) for where in (~held, held))
    named = encoder.encode(classes) if options.names else None
    for dimensions in options.dimensions:
        bundle = make_codebook(
            encoder,
            PublicStates(texts=public, names=named),
            dimensions=dimensions,
            codewords=options.codewords,
            codes=options.codes,
        )
        for epsilon in options.epsilon:
            runs = [
                right_answers(
                    bundle,
                    *tuned,
                    *judged,
                    options,
                    epsilon=epsilon,
                    rng=np.random.default_rng(seed),
                    classes=len(classes),
                    public=public if options.teach else None,
                )
                for seed in range(options.seeds)
            ]
            right = np.array([run[0] for run in runs], dtype=float)
            cell = {
                "task": options.task,
                "model": encoder.model,
                "public": kind,
                "center": options.center,
                "judged": "train" if options.select else "test",
                "n": len(judged[1]),
                "classes": len(classes),
                "blind": round(float(np.bincount(judged[1]).max() / len(judged[1])), 4),
                "contributors": min(options.contributors, len(tuned[1])),
                "dimensions": dimensions,
                "codes": options.codes,
                "epsilon": epsilon,
                "label_epsilon": options.label_epsilon,
                "attenuation": round(float(runs[0][1]), 4),
                **({"penalty": options.teach} if options.teach else {}),
                **({"names": True, "zero": share_by_names(judged, named, public)} if named is not None else {}),
                "seeds": options.seeds,
            }
            for place, name in enumerate(("at_home", "plainly", "privately", "taught")[: right.shape[1]]):
                cell[name] = round(float(right[:, place].mean()), 4)
                cell[f"{name}_interval"] = round(interval(right[:, place]), 4)
            print(json.dumps(cell), flush=True)
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(cell) + "\n")


if __name__ == "__main__":
    main()
