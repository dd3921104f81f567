"""Mechanisms at equal success of the strongest attack on SST-2: what a head on a frozen encoder still reads.

    python benchmarks/equal_attack.py run --data SST2_FOLDER --cache FOLDER --out LINES.jsonl
    python benchmarks/equal_attack.py table --out docs/results/mechanisms_equal_attack.jsonl
    python benchmarks/equal_attack.py picture FILE.svg --out docs/results/mechanisms_equal_attack.jsonl

For each arm η is sought at which the strongest attack that trains no network (copying, Bayes, Bayes with context) names
a share of the tokens of sentences of `train`. The attackers hold other sentences of `train`, none of which has five
words in a row with a sentence that is attacked or judged. Then 4,000 further sentences of `train` are privatized, a
logistic head on MiniLM's mean state is tuned on them, its ridge chosen on a fifth of them, and all sentences of `dev`
are privatized and judged. An arm that is in the results at a level and a seed is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from attacks_sst2 import sentences
from public_text import by_hash, runs
from text_codes import RIDGES, fit, interval, margins

from rapt.audit.attacks.beliefs import compute_beliefs, normalize_rows
from rapt.audit.attacks.desk import Desk
from rapt.audit.calibration import READING_ATTACKS, StrongestSuccess
from rapt.audit.view import PublicText
from rapt.drawing import Figure, Line, draw_picture
from rapt.local.mechanisms import Mechanism, make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.layout import encode_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone

SHORTEST, SHARED_WORDS = 8, 5
CLOSE_ENOUGH, TRIES, USUAL_SLOPE, LEAST_ETA = 0.006, 7, 5.0, 0.1
AT_ONCE = 128
# Share of a belief that an attacker keeps for word frequencies, so that one wrong certainty costs 7 bits at most.
DOUBT = 0.01


@dataclass(frozen=True)
class Arm:
    """A way to privatize: a mechanism from where η begins, or erasure; and what may read it."""

    mechanism: str | None
    start: float = 75.0
    is_sorted: bool = False

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks: in a bag there is no word before another."""
        return tuple(name for name in READING_ATTACKS if not (self.is_sorted and name == "context"))


ARMS = {
    "laplace": Arm("laplace", 76.9),
    "exponential": Arm("exponential", 14.6),
    "unit-laplace": Arm("unit-laplace", 86),
    "mahalanobis": Arm("mahalanobis", 89),
    "rank-fix": Arm("rank-fix", 79.7),
    "soft-pos": Arm("soft-pos", 10.5),
    "custext": Arm("custext", 0.1),
    "laplace, sorted": Arm("laplace", 78.8, is_sorted=True),
    "erasure": Arm(None),
    "vickrey": Arm("vickrey", 100),
}

NOISY = ("laplace", "unit-laplace", "mahalanobis", "rank-fix", "vickrey")


class Bench:
    """Texts, tables and the encoder of all runs, each made once."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Read the texts."""
        self.options = options
        self.vocabulary = load_vocabulary(options.model)
        labels, judged = sentences(options.data / "train.tsv"), sentences(options.data / "dev.tsv")
        own = by_hash({text for text in labels if len(text.split()) >= SHORTEST} - set(judged))
        self.train, rest = own[: options.train], own[options.train :]
        attacked, rest = rest[: options.attacked], rest[options.attacked :]
        taken = set().union(*(runs(text, SHARED_WORDS) for text in (*attacked, *judged)))
        held = [text for text in rest if not runs(text, SHARED_WORDS) & taken][: options.public]
        self.labels = np.array([labels[text] for text in self.train], dtype=float)
        self.truth = np.array(list(judged.values()))
        self.train_ids, self.dev_ids, self.attacked, contents = (
            [np.array(ids, dtype=np.int64) for ids in self.vocabulary.encode(part) if ids]
            for part in (self.train, list(judged), attacked, held)
        )
        self.held = PublicText(contents=tuple(contents), source=f"{len(contents):,} sentences of SST-2's train")
        self.prior = self.held.prior(self.vocabulary.bundle).probabilities

    @cached_property
    def backbone(self):
        """The frozen encoder."""
        torch.set_num_threads(1)
        return load_backbone(self.options.model, precision=self.options.precision, device="cpu")

    def make(self, arm: Arm) -> Callable[[float], Mechanism]:
        """The arm's mechanism at an η."""
        return lambda eta: make_mechanism(arm.mechanism, vocabulary=self.vocabulary, eta=eta, allow_unproved=True)

    def success(self, arm: Arm, texts: list[np.ndarray], *, seed: int) -> StrongestSuccess:
        """The attacks on these texts."""
        rng = np.random.default_rng(seed)
        return StrongestSuccess(
            self.make(arm), self.vocabulary, attacked=texts, held=self.held, rng=rng, attacks=arm.attacks
        )

    def privatized(self, arm: Arm, eta: float, texts: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """The texts as they leave: of erasure η is the share that is kept."""
        if arm.mechanism is None:
            return [text[rng.random(len(text)) < eta] for text in texts]
        released = self.make(arm)(eta).privatize(np.concatenate(texts), rng=rng)
        parts = np.split(released, np.cumsum([len(text) for text in texts])[:-1])
        return [np.sort(part) for part in parts] if arm.is_sorted else parts

    def states(self, texts: list[np.ndarray]) -> np.ndarray:
        """The mean state of each text, (n, h); 0 for one without a token."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        found = np.zeros((len(texts), self.backbone.hidden_size), dtype=np.float32)
        for start in range(0, len(order), AT_ONCE):
            places = [place for place in order[start : start + AT_ONCE] if len(texts[place])]
            if not places:
                continue
            nothing = [0] * len(places)
            with torch.inference_mode():
                layout = lay_out(
                    self.backbone,
                    prompt_lengths=nothing,
                    privatized_plain_tokens=[()] * len(places),
                    texts=[texts[place].tolist() for place in places],
                )
                states, mask = encode_with_prompts(self.backbone, layout, None).float(), layout.text_mask[:, :, None]
                found[places] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return found

    def right(self, name: str, eta: float, seed: int) -> np.ndarray:
        """Which sentences of `dev` a head answers rightly that was tuned on privatized ones, (n,)."""
        path = self.options.cache / f"{name.replace(', ', '-')}-{eta:g}-{seed}.npz"
        if not path.exists():
            rng = np.random.default_rng(seed)
            train, judged = (self.privatized(ARMS[name], eta, part, rng) for part in (self.train_ids, self.dev_ids))
            np.savez(path, train=self.states(train), judged=self.states(judged))
        kept = np.load(path)
        center, size = kept["train"].mean(axis=0), kept["train"].std()
        head = tune_on_split((kept["train"] - center) / size, self.labels)
        return (margins(head, (kept["judged"] - center) / size) > 0) == (self.truth > 0)


def tune_on_split(states: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The head whose ridge has the least loss on the last fifth of the sentences, tuned on all of them."""
    part = len(labels) * 4 // 5

    def loss(ridge: float) -> float:
        said = margins(fit(states[:part], labels[:part], ridge), states[part:])
        return float(np.logaddexp(0, np.where(labels[part:] > 0, -said, said)).sum())

    return fit(states, labels, min(RIDGES, key=loss))


def logit(share: float) -> float:
    """The logarithm of the odds, of a share that is kept off 0 and 1."""
    share = min(max(share, 1e-4), 1 - 1e-4)
    return math.log(share / (1 - share))


def solve(success: Callable[[float], float], *, target: float, start: float) -> list[tuple[float, float]]:
    """The tries (η, success), the nearest to the target last, by secants of logits over log η."""
    tries, eta, slope = [], start, USUAL_SLOPE
    for _ in range(TRIES):
        tries.append((eta, success(eta)))
        near, share = min(tries, key=lambda known: abs(known[1] - target))
        # Where hardly a token stays by itself, what is read above the target is a floor.
        if abs(share - target) <= CLOSE_ENOUGH or (eta <= LEAST_ETA and share > target):
            break
        if len(tries) > 1:
            (one, low), (other, high) = sorted(tries, key=lambda known: abs(known[1] - target))[:2]
            slope = min(max((logit(high) - logit(low)) / math.log(other / one), 1.0), 20.0)
        eta = float(f"{near * math.exp((logit(target) - logit(share)) / slope):.5g}")
    return sorted(tries, key=lambda known: -abs(known[1] - target))


def measure_bits(desk: Desk, tokens: np.ndarray, prior: np.ndarray, *, context: bool) -> float:
    """Mean bits that the attacker learns of a token: log2 of his belief in it over its frequency."""
    lattice = desk.lattice()
    beliefs = compute_beliefs(desk) if context else normalize_rows(lattice.evidence + lattice.prior)
    hits = lattice.candidates[:, :-1] == tokens[:, None]
    rows, column = np.arange(len(tokens)), np.where(hits.any(axis=1), hits.argmax(axis=1), hits.shape[1])
    chance = np.exp(beliefs[rows, column])
    # A token that is no candidate has its share of what is left for all such tokens.
    left = 1 - np.exp(lattice.prior[:, :-1]).sum(axis=1)
    usual = np.where(column < hits.shape[1], prior[tokens], np.maximum(left, prior[tokens]))
    return float(np.log2((1 - DOUBT) * chance / usual + DOUBT).mean())


def read_texts(bench: Bench, arm: Arm, success: StrongestSuccess | None, eta: float) -> dict:
    """What the attacks read of one privatization of the attacked sentences, in tokens and in bits; halves of 95 %."""
    tokens = np.concatenate(bench.attacked)
    weight = -np.log2(bench.prior[tokens])
    place = np.repeat(np.arange(len(bench.attacked)), [len(text) for text in bench.attacked])

    def share(named: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
        """The share and half its interval, with the sentence as the unit of chance."""
        whole = float((named * weights).sum() / weights.sum())
        of_texts = np.bincount(place, (named - whole) * weights)
        return round(whole, 4), round(1.96 * float(np.sqrt((of_texts**2).sum())) / float(weights.sum()), 4)

    if success is None:
        named = np.random.default_rng(0).random(len(tokens)) < eta
        found, learned = {"embedding_inversion": named}, float((named * weight).mean())
    else:
        desk = success.open_desk(eta)
        found = success.attack(desk)
        learned = measure_bits(desk, tokens, bench.prior, context="context" in arm.attacks)
    strongest = max(found, key=lambda name: found[name].mean())
    return {
        "read": {name: share(named, np.ones(len(tokens))) for name, named in found.items()},
        "strongest": strongest,
        "bits_read": share(found[strongest], weight),
        "bits_learned": round(learned, 3),
        "bits": round(float(weight.mean()), 3),
        "tokens": len(tokens),
    }


def run(options: argparse.Namespace) -> None:
    """Find η of each arm and level, attack and judge, and write a line for each result."""
    options.cache.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)

    def known(**wanted) -> dict | None:
        rows = read_lines(options.out)
        return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)

    def write(row: dict) -> dict:
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print({key: value for key, value in row.items() if key != "right"}, flush=True)
        return row

    for level in options.levels:
        for seed in range(options.seeds):
            for name in options.arms:
                cell = {"level": level, "arm": name}
                found = known(kind="eta", **cell) or write({"kind": "eta", **cell} | calibrate(bench, name, level))
                if known(kind="accuracy", seed=seed, **cell) is None:
                    right = bench.right(name, found["eta"], seed)
                    line = {"kind": "accuracy", **cell, "seed": seed, "n": len(right)}
                    write(line | {"accuracy": round(right.mean(), 4), "right": np.packbits(right).tobytes().hex()})


def calibrate(bench: Bench, name: str, level: float) -> dict:
    """η of an arm at a level of the strongest attack, all that was tried, and what is read there."""
    arm, seen = ARMS[name], {}
    if arm.mechanism is None:
        return {"eta": level} | read_texts(bench, arm, None, level)
    success = bench.success(arm, bench.attacked, seed=0)

    def strongest(eta: float) -> float:
        seen[eta] = read_texts(bench, arm, success, eta)
        print(name, level, eta, seen[eta], flush=True)
        return seen[eta]["read"][seen[eta]["strongest"]][0]

    tries = solve(strongest, target=level, start=arm.start * math.exp((logit(level) - logit(0.57)) / USUAL_SLOPE))
    return {"eta": tries[-1][0], "tries": tries} | seen[tries[-1][0]]


def read_lines(path: Path) -> list[dict]:
    """The lines of a file, none where it is not there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Result:
    """What stands about an arm at a level; intervals are halves of 95 %."""

    level: float
    arm: str
    eta: float
    read: dict
    right: np.ndarray

    @property
    def accuracy(self) -> tuple[float, float]:
        """Percent right and half the interval over seeds and sentences."""
        return 100 * float(self.right.mean()), 100 * interval(self.right)

    def lead(self, other: Result) -> tuple[float, float]:
        """Points above another arm on the same seeds and sentences."""
        seeds = min(len(self.right), len(other.right))
        apart = self.right[:seeds].astype(float) - other.right[:seeds]
        return 100 * float(apart.mean()), 100 * interval(apart)


def collect(rows: list[dict]) -> list[Result]:
    """The results of all cells that are complete."""
    found = []
    for line in (row for row in rows if row["kind"] == "eta"):
        own = [row for row in rows if (row["level"], row["arm"]) == (line["level"], line["arm"])]
        judged = sorted((row for row in own if row["kind"] == "accuracy"), key=lambda row: row["seed"])
        if judged:
            right = [np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))[: row["n"]] for row in judged]
            found.append(Result(line["level"], line["arm"], line["eta"], line, np.array(right, dtype=float)))
    return found


def table(options: argparse.Namespace) -> None:
    """Markdown, a row an arm, for each level."""
    results = collect(read_lines(options.out))
    for level in dict.fromkeys(result.level for result in results):
        of_level = [result for result in results if result.level == level]
        first = next((result for result in of_level if result.arm == "laplace"), of_level[0])
        print(
            f"\nAt {level:.0%}\n\n| arm | η | right on `dev`, % | points above `laplace` | seeds | copying, % "
            "| Bayes, % | context, % | bits read, % | bits learned |\n|---|---|---|---|---|---|---|---|---|---|"
        )
        for result in sorted(of_level, key=lambda result: -result.accuracy[0]):
            (accuracy, half), (lead, width) = result.accuracy, result.lead(first)
            said = [result.read["read"].get(name) for name in READING_ATTACKS]
            shares = ["" if one is None else f"{100 * one[0]:.1f} ± {100 * one[1]:.1f}" for one in said]
            bits, learned = result.read["bits_read"], result.read["bits_learned"]
            print(
                f"| {result.arm} | {result.eta:.4g} | {accuracy:.1f} ± {half:.1f} | {lead:+.1f} ± {width:.1f} "
                f"| {len(result.right)} | {' | '.join(shares)} | {100 * bits[0]:.1f} | {learned:.2f} |"
            )


def picture(options: argparse.Namespace) -> None:
    """Accuracy over the bits that an attacker learns: a box of 95 % an arm, in two panels."""
    results = collect(read_lines(options.out))
    reach = [one.read["bits_learned"] for one in results]
    usual = next((one for one in results if one.arm == "laplace"), results[0]).accuracy[0]
    # Both panels have the axis of the first, so that each has a line over all of it.
    across_all = tuple((bits, usual) for bits in (0.9 * min(reach), 1.12 * max(reach)))
    figures = []
    for title, noisy in (("Noise on the table's rows", True), ("All else", False)):
        lines = []
        reference = Line(name="level of laplace", style="fourth dashed", points=across_all)
        for name, arm in ARMS.items():
            own = sorted((one for one in results if one.arm == name), key=lambda one: one.read["bits_learned"])
            if (arm.mechanism in NOISY and not arm.is_sorted) == noisy and own:
                style = ("first", "second", "third", "fourth")[len(lines) % 4] + (" dashed" if len(lines) >= 4 else "")
                # Two points make a mark as wide as a hundredth of its place.
                points = [(one.read["bits_learned"] * side, one.accuracy) for one in own for side in (0.99, 1.01)]
                lines.append(
                    Line(
                        name=name,
                        style=style,
                        points=tuple((bits, middle) for bits, (middle, _) in points),
                        ends=tuple((middle - half, middle + half) for _, (middle, half) in points),
                    )
                )
        across = "bits that the attacker learns of a token (logarithmic)"
        figures.append(Figure(title=title, across=across, up="right on dev, %", lines=(*lines, reference), step=5.0))
    levels = " and ".join(f"{level:.0%}" for level in dict.fromkeys(one.level for one in results))
    drawn = draw_picture(
        figures,
        title=f"What is left for a task where the strongest attack reads {levels} of the tokens",
        subtitle="SST-2, MiniLM, a linear head on privatized sentences; boxes of 95 % over seeds and sentences",
        description="Accuracy of each mechanism against the bits that the attacker learns of a token.",
    )
    options.picture.write_text(drawn, encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("table", table), ("picture", picture)):
        way = ways.add_parser(name)
        way.set_defaults(function=function)
        way.add_argument("--out", type=Path, required=True, help="lines of results")
        if function is picture:
            way.add_argument("picture", type=Path)
        if function is run:
            way.add_argument("--data", type=Path, required=True, help="folder of train.tsv and dev.tsv")
            way.add_argument("--cache", type=Path, required=True, help="folder of states")
            way.add_argument("--model", default="minilm")
            way.add_argument("--precision", default="bfloat16")
            way.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
            way.add_argument("--levels", type=float, nargs="+", default=[0.57, 0.4])
            for option, count in (("seeds", 3), ("train", 4_000), ("attacked", 300), ("public", 20_000)):
                way.add_argument(f"--{option}", type=int, default=count)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
