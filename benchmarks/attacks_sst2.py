"""All attacks on the sentences of SST-2's dev part, over η: how many tokens each recovers, and what it held.

    python benchmarks/attacks_sst2.py --data SST2_FOLDER --eta 50 75 110 --out docs/results/attacks_sst2.jsonl
    python benchmarks/attacks_sst2.py --table docs/results/attacks_sst2.jsonl

The attackers hold sentences of `train` with eight words or more, in clear, with their labels; none of them is in `dev`.
Labels are sent in clear. One privatization for each η. Results are appended an η at a time, and an η that is there with
the same settings is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from rapt.audit.attacks import ATTACKS
from rapt.audit.audit import audit_view
from rapt.audit.kept_results import to_json
from rapt.audit.truth import match_truth
from rapt.audit.view import adversary_view, public_text
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS, Randomness
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest

LEAST_WORDS = 8


LABELS = ("negative", "positive")


def sentences(path: Path) -> dict[str, int]:
    """The sentences of a file of GLUE's SST-2 and their labels, in its order."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["sentence"]: int(row["label"]) for row in rows}


def privatized(
    vocabulary: Vocabulary, contents: list[list[int]], labels: list[int], *, mechanism: str, eta: float, seed: int
) -> PrivatizedFile:
    """The sentences after the mechanism, from a seed: an experiment on public text."""
    made = make_mechanism(mechanism, vocabulary=vocabulary, eta=eta, allow_unproved=True)
    flat = np.array([token for content in contents for token in content], dtype=np.int64)
    released = made.privatize(flat, rng=np.random.default_rng(seed))
    cuts = np.cumsum([len(content) for content in contents])[:-1]
    records = tuple(
        PrivatizedRecord(token_ids=tuple(part.tolist()), label=label)
        for part, label in zip(np.split(released, cuts), labels, strict=True)
    )
    manifest = Privatizer(vocabulary, made, NO_PLAIN_TOKENS).manifest(
        labels=LABELS, randomness=Randomness(source=f"PCG64 (numpy), seed {seed}, public text")
    )
    return PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)


def run(options: argparse.Namespace) -> None:
    """Attack at every η, and append the results."""
    vocabulary = load_vocabulary(options.model)
    rng = np.random.default_rng(options.seed)
    train, judged = sentences(options.data / "train.tsv"), sentences(options.data / "dev.tsv")
    dev = list(judged)
    own = sorted({text for text in train if len(text.split()) >= LEAST_WORDS} - set(dev))
    own = [own[i] for i in rng.permutation(len(own))[: options.public]]
    chosen = np.sort(rng.permutation(len(dev))[: options.sentences])
    contents = vocabulary.encode([dev[i] for i in chosen])
    source = f"{len(own):,} sentences of SST-2's train"
    public = replace(public_text(own, vocabulary.bundle, source=source), labels=tuple(train[text] for text in own))
    settings = {
        "model": options.model,
        "mechanism": options.mechanism,
        "sentences": len(chosen),
        "public": len(own),
        "attacks": options.attacks,
        "seed": options.seed,
    }
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for eta in options.eta:
        if any(row["eta"] == eta and row["settings"] == settings for row in done):
            continue
        started = time.monotonic()
        labels = [judged[dev[i]] for i in chosen]
        file = privatized(vocabulary, contents, labels, mechanism=options.mechanism, eta=eta, seed=options.seed)
        view = adversary_view(file, vocabulary.bundle, public=public)
        truth = match_truth(view, contents)
        found = audit_view(view, truth, attacks=options.attacks, seed=options.seed)
        row = {"eta": eta, "settings": settings, "seconds": round(time.monotonic() - started), "audit": to_json(found)}
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(table([row]), flush=True)  # a program, not the library


def table(rows: list[dict]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| η | attack | recovered | 95 % interval | on changed tokens | times inversion | tokens | without text |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["eta"]):
        results = row["audit"]["results"]
        base = next((r for r in results if r["attack"] == "embedding_inversion"), results[0])
        for result in results:
            whole, changed = result["score"]["all_tokens"], result["score"]["changed_tokens"]
            first = whole["first"]
            times = first["value"] / base["score"]["all_tokens"]["first"]["value"]
            lines.append(
                f"| {row['eta']:g} | {result['title']} | {first['value']:.1%} | {first['low']:.1%} – "
                f"{first['high']:.1%} | {changed['first']['value']:.1%} | {times:.2f} | {first['n']:,} | "
                f"{whole['chance']:.1%} |"
            )
        if (bound := row["audit"]["bound"]) is not None:
            success = bound["success"]
            lines.append(
                f"| {row['eta']:g} | *bound without context* | {success['value']:.1%} | {success['low']:.1%} – "
                f"{bound['high']:.1%} | | | {success['n']:,} | |"
            )
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of train.tsv and dev.tsv")
    parser.add_argument("--eta", type=float, nargs="+", default=[50, 60, 70, 75, 80, 90, 110])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--mechanism", default="laplace")
    parser.add_argument("--sentences", type=int, default=872)
    parser.add_argument("--public", type=int, default=20_000)
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("attacks_sst2.jsonl"))
    parser.add_argument("--table", type=Path, help="print the table of these results and do nothing else")
    options = parser.parse_args()
    if options.table is not None:
        rows = [json.loads(line) for line in options.table.read_text(encoding="utf-8").splitlines()]
        print(table(rows))
    elif options.data is None:
        parser.error("give --data, or --table")
    else:
        run(options)


if __name__ == "__main__":
    main()
