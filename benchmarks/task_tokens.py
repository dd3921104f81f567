"""Codes of whole texts beside RAPT's tokens and a denoised backbone, on tasks of many kinds, with every attack.

    python benchmarks/public_tasks.py ... --out TASKS
    rapt denoise PUBLIC... --eta 30 --epochs 1 --precision bfloat16 --out denoised
    python benchmarks/task_tokens.py --tasks TASKS --denoised denoised --work FOLDER --out task_tokens.jsonl \
      --eta 30 --epsilon 4 [--task r8]

PUBLIC are the files `public.csv` that FOLDER has of each task after a first start. For each task the same contributors
and the same judged texts go through `rapt compare`, all cut to their first `--words` words and 128 tokens: tokens
through `laplace` at η, tuned with RAPT and on a denoised backbone (with `--also-at-home` without reconstruction as
well, asked privately and at home); and codes at ε, with the map of the task's public text, asked privately and at home.
MRPC has one code for the pair, from a sixth of its pairs whose labels nobody reads. Attacks are those of `rapt compare
--attacks`: of tokens the strongest reader and how often a text is recognized among 800, and the same of codes. A line a
task: accuracies, and codes at home less each arm on tokens with the interval over seeds and texts. FOLDER keeps the
results of each task, and a run that was cut off goes on there.

With `--readers` a line a reader of codes instead: what it reads by the code and by code and label, beside the blind
guess and what the label alone tells. With `--solved` a line a task, from the results that FOLDER has: logistic
regression on the mean states of the same privatized tokens, of the backbone and of the denoised one, solved and not
stepped, its penalty chosen on a third of its own records, asked privately and at home; and codes at home less these.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from task_codes import tune as tune_head

from rapt.at_home import compare_states
from rapt.compare.bench import run_comparison
from rapt.compare.crowd import open_crowd_bench
from rapt.compare.files import FileMaker
from rapt.compare.plan import (
    CODES_AT_HOME,
    CODES_PRIVATELY,
    DENOISED_PROBING,
    PROMPT,
    RAPT,
    TOKENS_AT_HOME,
    ComparisonPlan,
    order_texts,
)
from rapt.compare.results import AttackRow, ModelRow, read_row
from rapt.compare.summary import estimate_mean
from rapt.compare.texts import choose_crowd, cut_texts, read_split
from rapt.local.codes.codebook import make_codebook, make_pair_codebook, read_pair_states, read_public_states
from rapt.local.codes.encoder import read_encoder
from rapt.local.vocabulary import load_vocabulary
from rapt.service.adapter.task_head import pool_text
from rapt.service.backbone.layout import encode_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone
from rapt.wire.code_bundle import write_code_bundle

TASKS = {"r8": 32, "tweets": 8, "newsgroups": 32, "pairs": 0, "mail": 16, "friends": 8}  # dimensions; pairs have none
OF_TOKENS = (RAPT, DENOISED_PROBING)
ALSO_AT_HOME = (PROMPT, TOKENS_AT_HOME)
ATTACKS = ("embedding_inversion", "bayes")
PUBLIC = 2_000
TOKENS = 128  # of a text, at most


def cut(path, columns, words, most=None):
    """Rows of a file, each text cut to its first words."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[:most]
    return [row | {name: " ".join(row[name].split()[:words]) for name in columns} for row in rows]


def write(path, rows):
    """A CSV file; a text that cutting has made twice stands once."""
    kept = {tuple(value for name, value in row.items() if name != "label"): row for row in rows}.values()
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    return path


def prepare(task, folder, work, words):
    """Files to train and judge on, the code of the task's public text, and the columns of its texts."""
    work.mkdir(parents=True, exist_ok=True)
    columns = ("text", "other") if task == "pairs" else ("text",)
    train = cut(folder / task / "train.csv", columns, words)
    if task == "pairs":
        parts = {"public": [], "train": [], "test": []}
        for row in train:
            digest = hashlib.sha256(f"{row['text']}\t{row['other']}".encode()).digest()[0] % 6
            parts["public" if digest == 0 else "test" if digest == 1 else "train"].append(row)
        public = parts["public"]
    else:
        # Mail has no public text of its kind: another kind stands for it.
        source = "newsgroups" if task == "mail" else task
        public = cut(folder / source / "public.csv", columns, words, PUBLIC)
        parts = {"train": train, "test": cut(folder / task / "test.csv", columns, words)}
    paths = {name: write(work / f"{name}.csv", rows) for name, rows in (parts | {"public": public}).items()}
    code = work / "code"
    if not code.exists():
        encoder = read_encoder("minilm")
        if task == "pairs":
            states = read_pair_states(encoder, [paths["public"]], second_column="other")
            write_code_bundle(make_pair_codebook(encoder, states), code)
        else:
            states = read_public_states(encoder, [paths["public"]], dimensions=TASKS[task])
            write_code_bundle(make_codebook(encoder, states, dimensions=TASKS[task]), code)
    return paths, code, columns


def add_lines(path, lines):
    """Print lines and append them to a file."""
    with path.open("a", encoding="utf-8") as stream:
        for line in lines:
            print(json.dumps(line), flush=True)
            stream.write(json.dumps(line) + "\n")


def read_words(plan, split):
    """What each reader of words reads of the codes of the first seed."""
    found = open_crowd_bench(plan, split).audit(epsilon=plan.epsilons[0])
    for item in found.readings:
        if item.beyond is not None:
            shares = {"read": item.first.value, "low": item.first.low, "high": item.first.high, "blind": item.blind}
            shares |= {"label_alone": item.label_alone, "bound": item.bound}
            shares |= dict(zip(("beyond", "beyond_low", "beyond_high"), item.beyond, strict=True))
            sizes = {"texts": found.records, "judged": item.first.n, "seed": plan.seeds[0], "reader": item.reader}
            yield sizes | {name: round(value, 4) for name, value in shares.items()}


def read_states(backbone, file, texts=None):
    """Mean states of a file's texts, (n, h), or of texts in clear; of pairs, what a head compares."""
    parts = texts or [[record.token_ids for record in file.records]]
    if texts is None and file.manifest.pairs:
        parts.append([record.second_token_ids for record in file.records])
    found = []
    for part in parts:
        states = np.empty((len(part), backbone.hidden_size))
        for places in np.array_split(np.argsort([len(ids) for ids in part]), len(part) // 50 + 1):
            layout = lay_out(
                backbone,
                prompt_lengths=[0] * len(places),
                privatized_plain_tokens=[()] * len(places),
                texts=[list(part[place]) for place in places],
            )
            with torch.inference_mode():
                read = encode_with_prompts(backbone, layout, None).float()
                states[places] = pool_text(read, layout.text_mask.float()).numpy()
        found.append(states)
    return compare_states(*found) if len(found) == 2 else found[0]


def solve_on_tokens(plan, split, codes_at_home):
    """Right answers of solved heads on tokens, and codes at home less them, with intervals."""
    files = FileMaker(plan, load_vocabulary(plan.model))
    texts, judged, classes = split.training, split.evaluation, len(split.training.names)
    truth, cell = np.array(judged.labels), {}
    for name, model in (("head on tokens", plan.model), ("head on tokens, denoised", plan.denoised)):
        backbone = load_backbone(model, precision=plan.precision)
        clear = read_states(backbone, None, [list(part) for part in zip(*files.tokenize(judged), strict=True)])
        right = {"privately": [], "at home": []}
        for seed in plan.seeds:
            crowd = choose_crowd(texts, order_texts(len(texts), seed=seed), crowd=plan.crowds[0])
            states = read_states(backbone, files.training(crowd, eta=plan.etas[0], seed=seed))
            center, size = states.mean(axis=0), states.std()
            head = tune_head((states - center) / size, np.array(crowd.labels), np.eye(classes))
            (asked,) = files.evaluation(judged, eta=plan.etas[0], seed=seed)
            for way, found in (("privately", read_states(backbone, asked)), ("at home", clear)):
                right[way].append(((found - center) / size @ head[:-1] + head[-1]).argmax(axis=1) == truth)
        for way, found in right.items():
            for label, values in (
                (f"{name}, {way}", np.array(found, dtype=float)),
                (f"codes asked at home - {name}, {way}", codes_at_home - np.array(found)),
            ):
                mean = estimate_mean(100 * values)
                cell[label] = [round(value, 2) for value in (mean.value, mean.low, mean.high)]
    return cell


def main():
    """Read the command line, write a line a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--tasks", "--work", "--out", "--denoised"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--eta", type=float, default=30.0)
    parser.add_argument("--epsilon", type=float, default=4.0)
    parser.add_argument("--contributors", type=int, default=400)
    parser.add_argument("--judged", type=int, default=400)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--also-at-home", action="store_true", help="tokens without reconstruction, asked in both ways")
    parser.add_argument("--readers", action="store_true", help="readers of codes alone")
    parser.add_argument("--solved", action="store_true", help="solved heads on tokens alone, beside kept results")
    parser.add_argument("--task", action="append", choices=list(TASKS))
    options = parser.parse_args()
    of_tokens = (*(ALSO_AT_HOME if options.also_at_home else ()), *OF_TOKENS)
    for task in options.task or TASKS:
        work = options.work / task
        paths, code, columns = prepare(task, options.tasks, work, options.words)
        split = read_split(
            paths["train"],
            evaluation=paths["test"],
            training_records=2 * options.contributors,  # those that are attacked; a crowd is half of them
            evaluation_records=options.judged,
            text_column_2=columns[1] if len(columns) > 1 else None,
        )
        # A message may hold a word of thousands of tokens: both units read the text before it alike.
        split = cut_texts(split, vocabulary=load_vocabulary("minilm"), most=TOKENS)
        plan = ComparisonPlan(
            model="minilm",
            etas=(options.eta,),
            epsilons=(options.epsilon,),
            codes=str(code),
            crowds=(options.contributors,),
            seeds=tuple(range(options.seeds)),
            arms=(*of_tokens, CODES_PRIVATELY, CODES_AT_HOME),
            denoised=str(options.denoised),
            privatizations=1,
            epochs=options.epochs,
            attacks=ATTACKS,
            attack_tokens=2_000,
            precision=options.precision,
        )
        shared = {"task": task, "model": "minilm", "epsilon": options.epsilon, "words": options.words}
        if options.readers:
            add_lines(options.out, [shared | line for line in read_words(plan, split)])
            continue
        if options.solved:
            kept = [read_row(line) for line in (work / "results.jsonl").read_bytes().splitlines()]
            at_home = [row for row in kept if isinstance(row, ModelRow) and row.arm == CODES_AT_HOME]
            found = np.array([row.right for row in sorted(at_home, key=lambda row: row.seed)], dtype=float)
            line = {"eta": options.eta, "contributors": options.contributors, "seeds": options.seeds}
            line |= {"n": len(split.evaluation)} | solve_on_tokens(plan, split, found[: options.seeds])
            add_lines(options.out, [shared | line])
            continue
        rows = run_comparison(plan, split, results=work / "results.jsonl")
        attacks = {row.epsilon is None: row for row in rows if isinstance(row, AttackRow)}
        right = {
            arm: np.array([row.right for row in sorted(rows_of, key=lambda row: row.seed)], dtype=float)
            for arm in plan.arms
            if (rows_of := [row for row in rows if isinstance(row, ModelRow) and row.arm == arm])
        }
        cell = {
            "task": task,
            "model": "minilm",
            "eta": options.eta,
            "epsilon": options.epsilon,
            "contributors": options.contributors,
            "n": len(split.evaluation),
            "words": options.words,
            "epochs": options.epochs,
            "seeds": options.seeds,
            "most_frequent": round(float(np.mean(split.most_frequent_label_is_right)), 4),
        }
        for name, row in (("tokens", attacks[True]), ("codes", attacks[False])):
            cell[f"attacks_on_{name}"] = {
                "strongest": row.strongest,
                **{key: round(getattr(row, key), 4) for key in ("recovered", "low", "high", "blind", "unchanged")},
                **{key: round(getattr(row, key), 4) for key in ("linked", "linked_low", "linked_high", "bits")},
                "candidates": row.candidates,
                **(
                    {key: round(getattr(row, key), 4) for key in ("label_alone", "beyond", "beyond_low", "beyond_high")}
                    if row.beyond is not None
                    else {}
                ),
            }
        for arm, found in right.items():
            mean = estimate_mean(found)
            cell[arm] = [round(value, 4) for value in (mean.value, mean.low, mean.high)]
        for arm in of_tokens:
            apart = estimate_mean(100 * (right[CODES_AT_HOME] - right[arm]))
            cell[f"codes asked at home - {arm}"] = [round(value, 2) for value in (apart.value, apart.low, apart.high)]
        add_lines(options.out, [cell])


if __name__ == "__main__":
    main()
