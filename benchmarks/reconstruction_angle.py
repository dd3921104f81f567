"""Whether L_rec and L_task pull the prompt the same way: angles between their gradients along a run of RAPT.

    python benchmarks/reconstruction_angle.py --data FOLDER --seeds 2 --out docs/results/reconstruction_angle.jsonl

FOLDER holds `train.csv` and `dev.csv` of `benchmarks/public_text.py`. A model is tuned as the arm `RAPT` of
`rapt compare` is; at five of its states both gradients with respect to the prompt are taken on the same 16 batches of
32 texts. A line of the file is a seed, and holds of each state

- `task_and_rec`: mean cosine of both gradients on one batch;
- `task_and_task`, `rec_and_rec`: mean cosine of one loss's gradients on two batches, what agreement would look like;
- `mean_task_and_mean_rec`: cosine of the mean gradients of all batches;
- `rec_norm_over_task_norm`: ratio of the mean norms, before the weight of L_rec;
- `task_loss`, `rec_loss`: both losses, nats.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from results import machine

from rapt.compare.bench import open_bench
from rapt.compare.plan import ARMS, RAPT, ComparisonPlan
from rapt.compare.texts import read_split
from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.tuner import tune

SHORTEST = 8  # words of a sentence
BATCH, BATCHES, STATES = 32, 16, 5


def main():
    """Read the command line, and write a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--eta", type=float, default=75.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    plan = ComparisonPlan(model=options.model, etas=(options.eta,), arms=(RAPT,), precision="bfloat16")
    files = options.data / "train.csv", options.data / "dev.csv"
    split = read_split(
        files[0], evaluation=files[1], min_words=SHORTEST, training_records=None, evaluation_records=None
    )
    bench = open_bench(plan, split, threads=1)
    for seed in range(options.seeds):
        file = bench.files.training(split.training, eta=options.eta, seed=seed)
        config = ARMS[RAPT].configure(plan.make_config(seed=seed), plan.weight, plan.plain_tokens)
        states = follow_run(bench.backbone, file, config)
        setting = {"model": options.model, "eta": options.eta, "weight": plan.weight, "pool": plan.plain_pool}
        with options.out.open("a") as stream:
            stream.write(json.dumps({**setting, "seed": seed, "states": states, "machine": machine()}) + "\n")


def follow_run(backbone, file, config):
    """The figures of the states of one run."""
    tuning, states = Tuning(backbone, file.manifest, config), []

    def keep(step, parameters):
        with torch.no_grad():
            for name, value in tuning.trained().items():
                value.copy_(parameters[name])
        states.append({"step": step, **measure_angles(tuning, file.records)})

    def keep_state(state, adapter):
        keep(state.step, {name.removeprefix("parameter/"): value for name, value in state.tensors.items()})

    keep(0, {name: value.clone() for name, value in tuning.trained().items()})
    steps = math.ceil(len(file.records) / config.batch_size) * config.epochs
    tune(backbone, file, config=config, on_run_state=keep_state, run_state_every=steps // (STATES - 1))
    return states


def measure_angles(tuning, records):
    """The figures of one state."""
    prompt = [value for name, value in tuning.trained().items() if name.startswith("method.")]
    task, rec, losses = [], [], []
    for first in range(0, BATCHES * BATCH, BATCH):
        found = tuning.losses(records[first : first + BATCH])
        for kept, loss in ((task, found.task), (rec, found.reconstruction)):
            gradients = torch.autograd.grad(loss, prompt, retain_graph=True)
            kept.append(torch.cat([one.flatten() for one in gradients]).double().numpy())
        losses.append((found.task.item(), found.reconstruction.item()))
    task, rec = np.array(task), np.array(rec)
    task_loss, rec_loss = np.mean(losses, axis=0).tolist()
    return {
        "task_and_rec": average_cosine(task, rec),
        "task_and_task": average_cosine(task, np.roll(task, 1, axis=0)),
        "rec_and_rec": average_cosine(rec, np.roll(rec, 1, axis=0)),
        "mean_task_and_mean_rec": average_cosine(task.mean(axis=0)[None], rec.mean(axis=0)[None]),
        "rec_norm_over_task_norm": float(np.linalg.norm(rec, axis=1).mean() / np.linalg.norm(task, axis=1).mean()),
        "task_loss": task_loss,
        "rec_loss": rec_loss,
    }


def average_cosine(left, right):
    """Mean cosine of rows, (n, d) and (n, d)."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / lengths).mean())


if __name__ == "__main__":
    main()
