"""Accuracy of the three arms on SST-2: clean text, prompt tuning on privatized text, RAPT.

    python benchmarks/sst2_arms.py run --data SST2_FOLDER --out docs/results/sst2_arms.jsonl --eta 70 80 --seeds 0 1 2
    python benchmarks/sst2_arms.py table docs/results/sst2_arms.jsonl

One line a trained model is appended to the file; a line that is there already is not run again, so a run can be cut off
and several processes can share one file. For each seed the training text is privatized once, and both privatized arms
train on that same file; every model is reported on the same privatizations of `dev`. The clean arm holds its
text in memory and its manifest says eta = infinity, which no wire format can write.

Training sentences are those of `train.tsv` with eight words or more (most rows are phrases; `dev` has sentences), the
first 4,000 in the order of their SHA-256. `dev` is read for reporting only. Settings were chosen on other rows of
`train.tsv`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from public_text import by_hash, sst2

from rapt.compare.bench import right_answers
from rapt.compare.intervals import mean_of
from rapt.compare.paper_table import markdown
from rapt.local.mechanisms import make_mechanism
from rapt.local.plain_tokens import plan_plain_tokens
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.service.model.backbone import load_backbone
from rapt.service.model.tuner import ReconstructionConfig, TuningConfig, tune
from rapt.wire.manifest import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import PrivatizedRecord

LABELS = ("negative", "positive")
CLEAN, CONTROL = "clean", "plain tokens, no loss"
ARMS = {
    CLEAN: None,
    "prompt tuning": None,
    "RAPT": ReconstructionConfig(),
    # The control: the same sequence with its privatized plain tokens, and nothing trained on them.
    CONTROL: ReconstructionConfig(weight=0.0),
}
COMPARED = (("RAPT", "prompt tuning"), ("RAPT", CONTROL), (CONTROL, "prompt tuning"))
ACCURACY_HEAD = ["η", "unchanged", "arm", "accuracy, %", "95 % interval"]
ACCURACY_HEAD += ["seeds", "privatizations of dev a seed", "s a run"]


def in_hash_order(path, *, min_words):
    """(sentence, label) in the order of the sentences' SHA-256, each once."""
    labels = sst2(path, shortest=min_words)
    return [(text, labels[text]) for text in by_hash(labels)]


def privatize(vocabulary, pairs, *, eta, plain, seed):
    """A privatized file in memory; eta None leaves the text as it is."""
    stream = insecure_stream(seed)
    plan = plan_plain_tokens(
        vocabulary, count=plain["count"], pool_size=plain["pool"], drawn="record", rng=stream.generator
    )
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta or 1.0)
    privatizer = Privatizer(vocabulary, mechanism, plan)
    texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    manifest = replace(privatizer.manifest(labels=LABELS, randomness=stream.provenance), records=len(pairs))
    clean = vocabulary.encode(texts)
    if eta is None:
        manifest = replace(manifest, mechanism=MechanismSetting(name="none", parameters={"eta": math.inf}))
        records = [PrivatizedRecord(token_ids=tuple(ids), label=y) for ids, y in zip(clean, labels, strict=True)]
        return PrivatizedFile(manifest=manifest, records=tuple(records)), 1.0
    records = privatizer.privatize(texts, labels=labels, stream=stream)
    same = [
        a == b for ids, record in zip(clean, records, strict=True) for a, b in zip(ids, record.token_ids, strict=True)
    ]
    return PrivatizedFile(manifest=manifest, records=tuple(records)), float(np.mean(same))


def run(options):
    """Train and report every model that the file does not hold yet."""
    torch.set_num_threads(options.threads)
    vocabulary, backbone = load_vocabulary(options.model), load_backbone(options.model)
    training = in_hash_order(options.data / "train.tsv", min_words=8)[: options.records]
    dev = in_hash_order(options.data / "dev.tsv", min_words=1)
    plain = {"count": options.plain_tokens, "pool": options.pool}
    done = {key(json.loads(line)) for line in options.out.read_text().splitlines()} if options.out.exists() else set()
    for seed in options.seeds:
        for eta in (None, *options.eta):
            for arm, reconstruction in ARMS.items():
                row = {"arm": arm, "eta": eta, "seed": seed, "model": options.model, "records": len(training)}
                if (eta is None) != (arm == CLEAN) or key(row) in done or arm not in options.arms:
                    continue
                config = TuningConfig(seed=seed, reconstruction=reconstruction)
                file, kept = privatize(vocabulary, training, eta=eta, plain=plain, seed=1000 + seed)
                start = time.perf_counter()
                adapter = tune(backbone, file, config=config)
                seconds = time.perf_counter() - start
                draws = 1 if eta is None else options.draws
                right = np.zeros(len(dev), dtype=int)
                for draw in range(draws):
                    # Seeds apart from those of training, the same for both arms: they answer identical queries.
                    queries, _ = privatize(vocabulary, dev, eta=eta, plain=plain, seed=10_000 + 100 * seed + draw)
                    right += right_answers(backbone, adapter, queries)
                row |= {
                    "draws": draws,
                    "accuracy": float(right.mean() / draws),
                    "unchanged": kept,
                    "seconds": round(seconds, 1),
                    "threads": options.threads,
                    "plain_tokens": None if reconstruction is None else plain,
                    "config": asdict(config),
                    "right": "".join(map(str, right)),
                }
                with options.out.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(arm, eta, seed, round(row["accuracy"], 4), f"{seconds:.0f} s", file=sys.stderr, flush=True)


def key(row):
    """What makes two lines the same run."""
    return (row["arm"], row["eta"], row["seed"], row["model"], row["records"])


def table(options):
    """Accuracy of each arm, and RAPT minus prompt tuning on the same files, in Markdown."""
    shares, rows = {}, {}
    for row in sorted(map(json.loads, options.file.read_text().splitlines()), key=lambda row: row["seed"]):
        setting = (row["eta"], row["arm"])
        shares.setdefault(setting, {})[row["seed"]] = np.array([int(c) for c in row["right"]]) / row["draws"]
        rows.setdefault(setting, []).append(row)
    accuracies = [ACCURACY_HEAD]
    for (eta, arm), runs in sorted(rows.items(), key=lambda item: (item[0][0] or math.inf, item[0][1])):
        mean = mean_of(np.stack(list(shares[eta, arm].values())))
        kept, seconds = (np.mean([row[name] for row in runs]) for name in ("unchanged", "seconds"))
        interval = f"{mean.low:.1%} – {mean.high:.1%}"
        told = [f"{kept:.1%}", arm, f"{mean.value:.1%}", interval, len(runs), runs[0]["draws"], f"{seconds:.0f}"]
        accuracies.append([str(eta or "—"), *map(str, told)])
    differences = [["η", "difference on the same files", "points", "95 % interval", "each seed"]]
    for eta, (first, second) in product(sorted({eta for eta, _ in rows if eta is not None}), COMPARED):
        left, right = shares.get((eta, first), {}), shares.get((eta, second), {})
        if seeds := sorted(left.keys() & right.keys()):
            mean = mean_of(100 * np.stack([left[seed] - right[seed] for seed in seeds]))
            each = ", ".join(f"{value:+.1f}" for value in mean.each_seed)
            interval = f"{mean.low:+.1f} – {mean.high:+.1f}"
            differences.append([str(eta), f"{first} − {second}", f"{mean.value:+.1f}", interval, each])
    print(markdown(accuracies), markdown(differences), sep="\n", end="")


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--data", type=Path, required=True, help="folder with SST-2's train.tsv and dev.tsv")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--model", default="minilm")
    one.add_argument("--eta", type=float, nargs="+", default=[70.0, 80.0])
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.add_argument("--arms", nargs="+", default=list(ARMS))
    one.add_argument("--records", type=int, default=4000)
    one.add_argument("--draws", type=int, default=3, help="privatizations of dev for each model")
    one.add_argument("--plain-tokens", type=int, default=20)
    one.add_argument("--pool", type=int, default=500)
    one.add_argument("--threads", type=int, default=1)
    one.set_defaults(run=run)
    two = commands.add_parser("table")
    two.add_argument("file", type=Path)
    two.set_defaults(run=table)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
