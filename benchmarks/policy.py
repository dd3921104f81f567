"""An entity policy beside a uniform η: names that attacks read, and what a tuned model is worth, on the same sentences.

    python benchmarks/policy.py SST2 --out FOLDER --eta 75

No data set with labelled names is at hand, so one is made: names of the package `faker` (public lists of names, cities,
companies, and the forms of addresses and numbers) are put into sentences of SST-2 by ten templates, an entity or two in
each. So the text around the names is written by templates, and real text would be harder for a recognizer in some ways
and easier in others. The recognizers see no label. One JSON document; the comparison's own files lie beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
from faker import Faker
from sklearn.linear_model import LogisticRegression

from rapt.audit import AuditPlan, audit_file
from rapt.compare import Comparison, ComparisonPlan, TextFiles, compare_files
from rapt.local.corpus import privatize_corpus
from rapt.local.mechanisms import make_mechanism
from rapt.local.policy.policy import Policy
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS

TEMPLATES = (
    "{person} wrote : {text}",
    "{text} - {person}",
    "as {person} told me , {text}",
    "{text} said {person} from {place}",
    "in {place} we saw it : {text}",
    "{text} ( {person} , {organization} )",
    "{organization} made this ; {text}",
    "{text} write to {email}",
    "{text} call {person} at {phone}",
    "my friend {first} thinks {text}",
)
POLICY = """[kinds]
person = {mask = "somebody"}
place = {mask = "somewhere"}
organization = {mask = "a company"}
email = {mask = "an address"}
phone = {mask = "a number"}
"""
WORDS = 8  # of a sentence, at least
ATTACKS = ("embedding_inversion", "bayes", "context")


def make_lines(sentences, *, seed):
    """Labelled texts: a template for each sentence, filled with what `faker` draws, and where each entity stands."""
    fake, rng = Faker("en_US"), random.Random(seed)
    fake.seed_instance(seed)
    for sentence, label in sentences:
        words = {
            "person": lambda: f"{fake.first_name()} {fake.last_name()}",
            "first": fake.first_name,
            "place": fake.city,
            "organization": fake.company,
            "email": fake.email,
            "phone": lambda: fake.numerify("+1 ### ### ####"),
        }
        text, entities = "", []
        for part in rng.choice(TEMPLATES).replace("{", "|{").replace("}", "}|").split("|"):
            name = part.strip("{}") if part.startswith("{") else None
            written = part if name is None else sentence if name == "text" else words[name]()
            if name not in (None, "text"):
                kind = "person" if name == "first" else name
                entities.append({"start": len(text), "end": len(text) + len(written), "kind": kind})
            text += written
        yield {"text": text, "label": label, "entities": entities}


def read_sentences(path, *, count, seed):
    """Sentences of a file of SST-2 that are long enough, in an order drawn once."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [(row["sentence"].strip(), row["label"]) for row in csv.DictReader(stream, delimiter="\t", quoting=3)]
    kept = [row for row in dict(rows).items() if len(row[0].split()) >= WORDS]
    order = np.random.default_rng(seed).permutation(len(kept))[:count]
    return [kept[place] for place in order]


def attack(folder, *, eta, under, limit, seed):
    """The shares of each kind that the recognizers miss and that the strongest attack on that kind reads."""
    table = load_vocabulary("minilm")
    setting = Privatizer(table, make_mechanism("laplace", vocabulary=table, eta=eta), NO_PLAIN_TOKENS)
    policy = folder / "policy.toml"
    out = folder / f"{'policy' if under else 'uniform'}-{eta:g}.jsonl"
    privatize_corpus(
        folder / "evaluation.jsonl",
        out,
        privatizer=PolicyPrivatizer(setting, Policy.read(policy)) if under else setting,
        stream=insecure_stream(seed),
        ledger=None,
        overwrite=True,
    )
    report = audit_file(
        AuditPlan(
            file=out,
            original=folder / "evaluation.jsonl",
            policy=policy if under else None,
            entities_labelled=folder / "evaluation.jsonl",
            public_text=folder / "training.jsonl",
            attacks=ATTACKS,
            limit=limit,
            seed=seed,
        )
    )
    read = {}
    for result in report.audit.results:
        for group in result.detail.entities:
            if group.name not in read or group.first.value > read[group.name]["value"]:
                read[group.name] = asdict(group.first) | {"attack": result.attack, "as_sent": group.unchanged}
    strongest = asdict(report.audit.strongest.score.all_tokens.first)
    missed = {one.kind: asdict(one.missed) | {"whole": one.whole} for one in report.missed}
    return {"eta": eta, "missed": missed, "read": read, "strongest_on_all_tokens": strongest}


def linear_accuracy(folder, *, eta, seeds):
    """Accuracy of a logistic regression on mean rows of privatized tokens, uniform and under the policy, by seed."""
    table = load_vocabulary("minilm")
    setting = Privatizer(table, make_mechanism("laplace", vocabulary=table, eta=eta), NO_PLAIN_TOKENS)
    under = PolicyPrivatizer(setting, Policy.read(folder / "policy.toml"))
    rows = {}
    for name in ("training", "evaluation"):
        lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        rows[name] = ([line["text"] for line in lines], np.array([int(line["label"]) for line in lines]))
    right = {"uniform": [], "policy": []}
    for seed in range(seeds):
        for way, privatizer in (("uniform", setting), ("policy", under)):
            vectors = {}
            for place, name in enumerate(rows):
                records = privatizer.privatize(rows[name][0], labels=None, stream=insecure_stream(10 * seed + place))
                vectors[name] = [table.embeddings[list(record.token_ids)].mean(axis=0) for record in records]
            head = LogisticRegression(max_iter=300, C=10).fit(vectors["training"], rows["training"][1])
            right[way].append(head.predict(vectors["evaluation"]) == rows["evaluation"][1])
    counts = {way: np.mean(own, axis=0) for way, own in right.items()}
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(counts["policy"]), size=(4000, len(counts["policy"])))
    difference = counts["policy"] - counts["uniform"]
    low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
    return {
        "head": "logistic regression on the mean row of a text's privatized tokens, MiniLM's table",
        "training": len(rows["training"][0]),
        "evaluation": len(rows["evaluation"][0]),
        "seeds": seeds,
        "accuracy": {way: float(own.mean()) for way, own in counts.items()},
        "difference": {"value": float(difference.mean()), "low": float(low), "high": float(high)},
        "most_frequent": float(max(np.mean(rows["evaluation"][1]), 1 - np.mean(rows["evaluation"][1]))),
    }


def tuned_accuracy(folder, *, eta, seeds, precision):
    """Accuracy of MiniLM tuned by a soft prompt, uniform and under the policy: the arms of `rapt compare`."""
    plan = ComparisonPlan(
        model="minilm",
        etas=(eta,),
        arms=("without reconstruction", "policy"),
        policy=str(folder / "policy.toml"),
        seeds=tuple(range(seeds)),
        privatizations=1,
        plain_tokens=0,
        precision=precision,
    )
    texts = TextFiles(training=folder / "training.jsonl", evaluation=folder / "evaluation.jsonl")
    summary = compare_files(Comparison(plan=plan, texts=texts, out=folder / "comparison")).summary
    return {
        "accuracy": [asdict(one) for one in summary.accuracies],
        "difference": [asdict(one) for one in summary.differences],
    }


def main():
    """Make the texts, and run the steps that are asked for; what earlier steps found stays in the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sst2", type=Path, help="folder with train.tsv and dev.tsv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--training", type=int, default=2000)
    parser.add_argument("--evaluation", type=int, default=800)
    parser.add_argument("--eta", type=float, default=75.0)
    parser.add_argument("--limit", type=int, default=8000, help="tokens that are attacked")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--steps", default="uniform,policy,linear", help="of uniform, policy, linear and tuned")
    asked = parser.parse_args()
    folder = asked.out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.toml").write_text(POLICY)
    for name, source, count, seed in (
        ("training", "train.tsv", asked.training, 1),
        ("evaluation", "dev.tsv", asked.evaluation, 2),
    ):
        lines = make_lines(read_sentences(asked.sst2 / source, count=count, seed=seed), seed=seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = folder / "policy.json"
    found = json.loads(document.read_text()) if document.exists() else {}
    found["command"] = (
        f"python benchmarks/policy.py SST2 --out FOLDER --training {asked.training} --evaluation {asked.evaluation} "
        f"--eta {asked.eta:g} --limit {asked.limit} --seeds {asked.seeds}"
    )
    for step in asked.steps.split(","):
        if step in ("uniform", "policy"):
            found[step] = attack(folder, eta=asked.eta, under=step == "policy", limit=asked.limit, seed=0)
        elif step == "linear":
            found[step] = linear_accuracy(folder, eta=asked.eta, seeds=asked.seeds)
        else:
            found[step] = tuned_accuracy(folder, eta=asked.eta, seeds=asked.seeds, precision=asked.precision)
        document.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
