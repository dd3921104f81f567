"""How good the backbone is with all the labelled text there is, clear or privatized: a line for each trained model.

    python benchmarks/clean_ceiling.py run --data SST2_FOLDER --out RESULTS --recipe "lora every layer, all" --seeds 0
    python benchmarks/clean_ceiling.py run ... --eta 75  # all rows as the Laplace mechanism leaves them
    python benchmarks/clean_ceiling.py table RESULTS

A recipe is chosen by the accuracy on 2,000 rows of `train.tsv` that no model is trained on. Most rows there are
phrases, and phrases of one sentence are in both parts, so that figure is too good; it only ranks. `dev` is read for
reporting.
The text is public and in memory only; in clear it has a manifest that no wire format can write.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from public_text import sst2

from rapt.audit.intervals import wilson
from rapt.compare.bench import judge_answers
from rapt.compare.files import FileMaker
from rapt.compare.plan import CLEAN, ComparisonPlan
from rapt.compare.texts import LabelledTexts
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuner import tune
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.privatized_file import PrivatizedFile

NAMES = ("negative", "positive")
HELD_OUT = 2_000
EVERY_LAYER = ("query", "key", "value", "dense")
RECIPES = {
    "prompt": (4_000, 8, make_default_config("prompt_tuning")),
    "lora, all": (None, 1, replace(make_default_config("lora"), epochs=2)),
    "lora every layer, all": (
        None,
        1,
        replace(
            make_default_config("lora"),
            lora_targets=EVERY_LAYER,
            lora_rank=16,
            lora_alpha=32.0,
            learning_rate=0.001,
            head_learning_rate=0.003,
            epochs=2,
        ),
    ),
}


def read_rows(path: Path, *, seed: int) -> list[tuple[str, int]]:
    """(text, label) of a file of SST-2, each once, in an order of the seed's."""
    rows = sorted(sst2(path, shortest=1).items())
    return [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]


def run(args: argparse.Namespace) -> None:
    """Train each recipe with each seed, one line a model."""
    torch.set_num_threads(args.threads)
    vocabulary = load_vocabulary(args.model)
    backbone = load_backbone(args.model, precision=args.precision)
    etas = () if args.eta is None else (args.eta,)
    files = FileMaker(ComparisonPlan(model=args.model, etas=etas, arms=(CLEAN,)), vocabulary)

    def file_of(rows: Sequence[tuple[str, int]], *, seed: int = 0) -> PrivatizedFile:
        texts = LabelledTexts(texts=tuple(row[0] for row in rows), labels=tuple(row[1] for row in rows), names=NAMES)
        return files.training(texts, eta=args.eta, seed=seed)

    dev = read_rows(args.data / "dev.tsv", seed=0)
    told = {text for text, _ in dev}
    rows = [row for row in read_rows(args.data / "train.tsv", seed=0) if row[0] not in told]
    held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    for name in args.recipe:
        records, words, config = RECIPES[name]
        training = [row for row in rows if len(row[0].split()) >= words][:records]
        for seed in args.seeds:
            start = time.perf_counter()
            adapter = tune(backbone, file_of(training, seed=seed), config=replace(config, seed=seed))
            row = {
                "recipe": name,
                **({} if args.eta is None else {"eta": args.eta}),
                "seed": seed,
                "precision": args.precision,
                "records": len(training),
                "seconds": round(time.perf_counter() - start, 1),
                "held_out": float(np.mean(judge_answers(backbone, adapter, file_of(held_out, seed=1_000 + seed)))),
                "dev_right": int(np.sum(judge_answers(backbone, adapter, file_of(dev, seed=2_000 + seed)))),
                "dev": len(dev),
            }
            with args.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            print(row, flush=True)


def table(args: argparse.Namespace) -> None:
    """Markdown, a row a recipe."""
    rows = [json.loads(line) for line in args.results.read_text(encoding="utf-8").splitlines()]
    print(
        "| recipe | η | texts | seeds | held-out phrases, % | dev, % | 95 % interval |\n|---|---|---|---|---|---|---|"
    )
    for name, eta in dict.fromkeys((row["recipe"], row.get("eta")) for row in rows):
        own = [row for row in rows if (row["recipe"], row.get("eta")) == (name, eta)]
        right, total = sum(row["dev_right"] for row in own), sum(row["dev"] for row in own)
        # Seeds answer the same sentences: the interval counts each sentence once.
        low, high = wilson(right / total, trials=total / len(own), quantile=1.96)
        held_out = np.mean([row["held_out"] for row in own])
        noise, size = "in clear" if eta is None else f"{eta:g}", own[0]["records"]
        print(
            f"| {name} | {noise} | {size:,} | {len(own)} | {100 * held_out:.1f} | {100 * right / total:.1f} "
            f"| {100 * low:.1f} – {100 * high:.1f} |"
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("run")
    training.add_argument("--data", type=Path, required=True)
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--model", default="minilm")
    training.add_argument("--recipe", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    training.add_argument("--seeds", nargs="+", type=int, default=[0])
    training.add_argument("--eta", type=float, help="privatize all rows by the Laplace mechanism; in clear without")
    training.add_argument("--threads", type=int, default=1)
    training.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the backbone")
    training.set_defaults(work=run)
    showing = commands.add_parser("table")
    showing.add_argument("results", type=Path)
    showing.set_defaults(work=table)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
