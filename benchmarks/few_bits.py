"""What 8 and 4 bits cost: one backbone with whole weights and with few, tuned and judged on identical private files.

    python benchmarks/few_bits.py --data FOLDER --seeds 5 --out docs/results/few_bits.jsonl
    python benchmarks/few_bits.py --table docs/results/few_bits.jsonl

FOLDER holds `train.csv` and `dev.csv` of `benchmarks/public_text.py`. A seed fixes the noise of both files and the
initialization; each of its arms reads the same files, prompt tuning without reconstruction, by `rapt.compare`'s own
bench, or `--method`. `--eta clear` leaves the texts as they are, `--judged` takes the first so many of dev. A line for
each seed and arm is added to `--out`, and what is there is not computed again; `--table` prints accuracies on dev and
differences from whole weights in points, each with a 95 % interval over seeds and sentences. `--arms whole` alone says
how another model tunes: a `--model` may be a folder, whose name is kept.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from results import machine

from rapt.compare.bench import open_bench
from rapt.compare.plan import CLEAN, PROMPT, Cell, ComparisonPlan
from rapt.compare.summary import estimate_mean
from rapt.compare.texts import read_split
from rapt.public_models import name_model
from rapt.service.adapter.methods import METHODS, PROMPT_TUNING
from rapt.service.backbone.opening import load_backbone

SHORTEST = 8
WHOLE = "whole"
# Number format and weights of each arm.
ARMS = {
    WHOLE: ("float32", "whole"),
    "8bit": ("float32", "8bit"),
    "4bit": ("float32", "4bit"),
    "bfloat16": ("bfloat16", "whole"),
}


# Setting of a line: lines that differ in it are apart. The first ones named no method.
SETTING = ("model", "eta", "method", "records")


def read_setting(line):
    """What a line was measured on, beside its seed and arm."""
    return tuple(line.get(name, PROMPT_TUNING) for name in SETTING)


def read_lines(path):
    """The lines of a result; none where there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(options):
    """Every seed and arm that the file does not have yet."""
    eta = None if options.eta == "clear" else float(options.eta)
    plan = ComparisonPlan(
        model=options.model,
        etas=() if eta is None else (eta,),
        arms=(CLEAN if eta is None else PROMPT,),
        privatizations=options.privatizations,
        method=options.method,
    )
    split = read_split(
        options.data / "train.csv",
        evaluation=options.data / "dev.csv",
        training_records=options.records,
        evaluation_records=options.judged,
        min_words=SHORTEST,
    )
    bench = open_bench(plan, split, threads=1)
    setting = dict(zip(SETTING, (name_model(options.model), eta, options.method, options.records), strict=True))
    known = {(*read_setting(line), line["seed"], line["arm"]) for line in read_lines(options.out)}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for arm in options.arms:
            precision, weights = ARMS[arm]
            if (*setting.values(), seed, arm) in known:
                continue
            backbone = load_backbone(options.model, precision=precision, device="cpu", weights=weights)
            row = replace(bench, backbone=backbone).train_and_judge(Cell(arm=plan.arms[0], eta=eta, seed=seed))
            judged = asdict(row)
            line = setting | {
                "seed": seed, "arm": arm, "privatizations": row.privatizations, "right": judged["right"],
                "seconds": row.seconds, "machine": machine(),
            }  # fmt: skip
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            print(seed, arm, round(np.mean(row.right) / row.privatizations, 4), row.seconds, flush=True)


def show(path):
    """Accuracies and differences, a line each."""
    lines = read_lines(path)
    for setting in dict.fromkeys(map(read_setting, lines)):
        found = {}
        for line in lines:
            if read_setting(line) == setting:
                right = np.array(line["right"]) / line["privatizations"]
                found.setdefault(line["arm"], {})[line["seed"]] = right
        for arm, runs in found.items():
            seeds = sorted(runs.keys() & found[WHOLE].keys())
            own = np.stack([runs[seed] for seed in seeds])
            said = estimate_mean(own)
            named = " ".join(f"{name}={value}" for name, value in zip(SETTING, setting, strict=True))
            text = f"{named} {arm}: {100 * said.value:.1f} ({100 * said.low:.1f} to {100 * said.high:.1f})"
            if arm != WHOLE:
                apart = estimate_mean(own - np.stack([found[WHOLE][seed] for seed in seeds]))
                text += f"; {100 * apart.value:+.1f} ({100 * apart.low:+.1f} to {100 * apart.high:+.1f})"
            print(text, f"n={own.shape[1]} seeds={len(seeds)}")


def main():
    """Run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--eta", default="75", help="1/distance, or clear")
    parser.add_argument("--method", choices=sorted(METHODS), default=PROMPT_TUNING)
    parser.add_argument("--records", type=int, default=2_000)
    parser.add_argument("--judged", type=int, help="sentences of dev; all without it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--privatizations", type=int, default=1, help="of dev, each judged once")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if options.table is not None:
        show(options.table)
    else:
        run(options)


if __name__ == "__main__":
    main()
