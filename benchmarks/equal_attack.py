"""Mechanisms at equal success of the strongest attack on SST-2: what a head on a frozen encoder still reads.

    python benchmarks/equal_attack.py run --data SST2_FOLDER --cache FOLDER
    python benchmarks/equal_attack.py run --data SST2_FOLDER --cache FOLDER --expecting --levels 0.57 --arms laplace
    python benchmarks/equal_attack.py axes --data SST2_FOLDER --cache FOLDER
    python benchmarks/equal_attack.py privbench --data SST2_FOLDER --cache FOLDER

For each arm η is sought at which the strongest attack that trains no network (copying, Bayes, Bayes with context) names
a share of the tokens of sentences of `train`. The attackers hold other sentences of `train`, none of which has five
words in a row with a sentence that is attacked or judged. Then 4,000 further sentences of `train` are privatized, a
logistic head on MiniLM's mean state is tuned on them, its ridge chosen on a fifth of them, and all sentences of `dev`
are privatized and judged. An arm that is in the results at a level and a seed is not run again.

With `--expecting` the encoder expects the arm's noise: MiniLM is denoised on what the attackers hold, privatized by the
same mechanism at the same η. `axes` adds how many of the rare words are read, and how many texts are recognized among
1,000 by the words that they share with them. `equal_attack_page.py` makes the tables and the picture.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from attacks_sst2 import sentences
from equal_attack_page import LINES, read_lines
from public_text import by_hash, runs
from scipy import sparse
from text_codes import RIDGES, fit, margins

from rapt.audit.attacks.beliefs import compute_beliefs, normalize_rows
from rapt.audit.attacks.desk import Desk
from rapt.audit.calibration import READING_ATTACKS, StrongestSuccess
from rapt.audit.view import PublicText
from rapt.denoise.plan import PublicTexts, WarmUpPlan
from rapt.denoise.warm_up import Student, warm_up
from rapt.local.mechanisms import Mechanism, make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.layout import encode_with_prompts, lay_out
from rapt.service.backbone.opening import load_backbone

SHORTEST, SHARED_WORDS = 8, 5
CLOSE_ENOUGH, TRIES, USUAL_SLOPE, LEAST_ETA = 0.006, 7, 5.0, 0.1
SLOPES = (1.0, 20.0)
AT_ONCE = 128
# A word is rare that the attackers hold once in 20,000 tokens or less often.
RARE, CANDIDATES = 5e-5, 1_000
HELD_OUT = 256
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
    "vickrey": Arm("vickrey", 108.5),
}


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
        self.cut = lambda row: np.split(row, np.cumsum([len(text) for text in self.attacked])[:-1])

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

    def expecting(self, name: str, eta: float):
        """The encoder after denoising for an arm's noise, and the variance that it explains of clear states."""
        texts = [tuple(text.tolist()) for text in self.held.contents]
        public = PublicTexts(training=tuple(texts[HELD_OUT:]), held_out=tuple(texts[:HELD_OUT]))
        plan = WarmUpPlan(
            model=self.options.model, mechanism=ARMS[name].mechanism, etas=(eta,), epochs=self.options.epochs
        )
        torch.set_num_threads(1)
        student = Student(self.options.model, precision=self.options.precision)

        def say(step: int, steps: int, losses: dict) -> None:
            if step % 50 == 0:
                print(name, step, steps, round(losses["text_error"], 3), flush=True)

        (explained,) = warm_up(student, public, vocabulary=self.vocabulary, plan=plan, on_step=say)
        return student.backbone, {"before": round(explained.before, 3), "after": round(explained.after, 3)}

    def states(self, texts: list[np.ndarray], backbone) -> np.ndarray:
        """The mean state of each text, (n, h); 0 for one without a token."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        found = np.zeros((len(texts), backbone.hidden_size), dtype=np.float32)
        for start in range(0, len(order), AT_ONCE):
            places = [place for place in order[start : start + AT_ONCE] if len(texts[place])]
            if not places:
                continue
            nothing = [0] * len(places)
            with torch.inference_mode():
                layout = lay_out(
                    backbone,
                    prompt_lengths=nothing,
                    privatized_plain_tokens=[()] * len(places),
                    texts=[texts[place].tolist() for place in places],
                )
                states, mask = encode_with_prompts(backbone, layout, None).float(), layout.text_mask[:, :, None]
                found[places] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return found

    def cached(self, name: str, eta: float, seed: int) -> Path:
        """File of the states of an arm's privatization."""
        return self.options.cache / f"{name.replace(', ', '-')}-{eta:g}-{seed}.npz"

    def right(self, name: str, eta: float, seed: int, backbone=None) -> np.ndarray:
        """Which sentences of `dev` a head answers rightly that was tuned on privatized ones, (n,)."""
        path = self.cached(name, eta, seed)
        if backbone is not None or not path.exists():
            rng = np.random.default_rng(seed)
            texts = [self.privatized(ARMS[name], eta, part, rng) for part in (self.train_ids, self.dev_ids)]
            train, judged = (self.states(part, self.backbone if backbone is None else backbone) for part in texts)
            if backbone is None:
                np.savez(path, train=train, judged=judged)
        else:
            kept = np.load(path)
            train, judged = kept["train"], kept["judged"]
        center, size = train.mean(axis=0), train.std()
        head = tune_on_split((train - center) / size, self.labels)
        return (margins(head, (judged - center) / size) > 0) == (self.truth > 0)


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


Tries = list[tuple[float, float]]


def solve(success: Callable[[float], float], *, target: float, start: float, known: Tries) -> Tries:
    """The tries (η, success), the nearest to the target last, by secants of logits over log η.

    What is known of other targets gives the first try.
    """
    tries: Tries = []
    for _ in range(TRIES):
        eta = _next_eta([*known, *tries], target=target) or start
        tries.append((eta, success(eta)))
        near, share = min(tries, key=lambda one: abs(one[1] - target))
        # Where hardly a token stays by itself, what is read above the target is a floor.
        if abs(share - target) <= CLOSE_ENOUGH or (near <= LEAST_ETA and share > target):
            break
    return sorted(tries, key=lambda one: -abs(one[1] - target))


def _next_eta(known: Tries, *, target: float) -> float | None:
    """Where the secant of the nearest try below the target and the nearest above meets it; None if nothing is known."""
    if not known:
        return None
    nearest = sorted(known, key=lambda one: abs(one[1] - target))
    near, share = nearest[0]
    beyond = [one for one in nearest[1:] if (one[1] > target) != (share > target)]
    slope = USUAL_SLOPE
    for eta, other in beyond[:1]:
        slope = min(max((logit(share) - logit(other)) / math.log(near / eta), SLOPES[0]), SLOPES[1])
    return max(float(f"{near * math.exp((logit(target) - logit(share)) / slope):.5g}"), LEAST_ETA)


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


class Kept:
    """The lines of results, which grow."""

    def __init__(self, path: Path) -> None:
        """Begin with what is there."""
        self.path = path

    def find(self, **wanted) -> list[dict]:
        """The lines that say all of this."""
        return [row for row in read_lines(self.path) if all(row.get(key) == value for key, value in wanted.items())]

    def write(self, row: dict) -> dict:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print({key: value for key, value in row.items() if key != "right"}, flush=True)
        return row


def run(options: argparse.Namespace) -> None:
    """Find η of each arm and level, attack and judge, and write a line for each result."""
    options.cache.mkdir(parents=True, exist_ok=True)
    bench, kept = Bench(options), Kept(options.out)
    kind = "expecting" if options.expecting else "accuracy"
    for level, name in itertools.product(options.levels, options.arms):
        cell = {"level": level, "arm": name}
        tries = [(eta, share) for row in kept.find(kind="eta", arm=name) for eta, share in row.get("tries", ())]
        eta = (
            kept.find(kind="eta", **cell)
            or [kept.write({"kind": "eta", **cell} | calibrate(bench, name, level, known=tries))]
        )[0]["eta"]
        missing = [seed for seed in range(options.seeds) if not kept.find(kind=kind, seed=seed, **cell)]
        backbone, explained = bench.expecting(name, eta) if options.expecting and missing else (None, {})
        for seed in missing:
            right = bench.right(name, eta, seed, backbone)
            line = {"kind": kind, **cell, "seed": seed, "n": len(right), **explained}
            kept.write(line | {"accuracy": round(right.mean(), 4), "right": np.packbits(right).tobytes().hex()})


def measure_axes(options: argparse.Namespace) -> None:
    """Attack the privatizations that are kept once more, and write how many rare words and whole texts are named."""
    bench, kept = Bench(options), Kept(options.out)
    tokens = np.concatenate(bench.attacked)
    rare = bench.prior[tokens] < RARE
    others = [np.array(text) for text in bench.held.contents[: CANDIDATES - len(bench.attacked)]]
    for line in kept.find(kind="eta"):
        cell = {"level": line["level"], "arm": line["arm"]}
        if cell["arm"] not in options.arms or kept.find(kind="axes", **cell):
            continue
        arm, eta = ARMS[line["arm"]], line["eta"]
        if arm.mechanism is None:
            stays = np.random.default_rng(0).random(len(tokens)) < eta
            released = [text[part] for text, part in zip(bench.attacked, bench.cut(stays), strict=True)]
            named = {"embedding_inversion": stays}
        else:
            success = bench.success(arm, bench.attacked, seed=0)
            desk = success.open_desk(eta)
            named, released = success.attack(desk), bench.cut(desk.view.observed)
        strongest = max(named, key=lambda name: named[name].mean())
        recognized = recognize(released, [*bench.attacked, *others], bench.prior) == np.arange(len(released))
        kept.write(
            {"kind": "axes", **cell, "rare": int(rare.sum()), "texts": len(released), "among": CANDIDATES}
            | {"rare_read": round(float(named[strongest][rare].sum()) / max(int(rare.sum()), 1), 4)}
            | {"recognized": round(float(recognized.mean()), 4)}
        )


def recognize(released: list[np.ndarray], candidates: list[np.ndarray], prior: np.ndarray) -> np.ndarray:
    """The text in clear that shares most words with each released one, a word weighing its bits, (texts,)."""
    weight = -np.log2(np.maximum(prior, 1e-12))

    def count(texts: list[np.ndarray]) -> sparse.csr_array:
        rows = np.repeat(np.arange(len(texts)), [len(set(text.tolist())) for text in texts])
        names = np.concatenate([np.unique(text) for text in texts])
        return sparse.csr_array((np.ones(len(rows)), (rows, names)), shape=(len(texts), len(prior)))

    clear = count(candidates)
    shared = (count(released).multiply(weight) @ clear.T).toarray()
    # Long texts share more by chance: each is judged by what it has beside what it might have.
    return (shared / np.sqrt(clear @ weight)).argmax(axis=1)


def calibrate(bench: Bench, name: str, level: float, *, known: Tries) -> dict:
    """η of an arm at a level of the strongest attack, all that was tried, and what is read there.

    Args:
        bench: Texts and tables.
        name: Name of the arm.
        level: Share of the tokens that is read.
        known: Tries of the arm at other levels.
    """
    arm, seen = ARMS[name], {}
    if arm.mechanism is None:
        return {"eta": level} | read_texts(bench, arm, None, level)
    success = bench.success(arm, bench.attacked, seed=0)

    def strongest(eta: float) -> float:
        seen[eta] = read_texts(bench, arm, success, eta)
        print(name, level, eta, seen[eta], flush=True)
        return seen[eta]["read"][seen[eta]["strongest"]][0]

    tries = solve(strongest, target=level, start=arm.start, known=known)
    return {"eta": tries[-1][0], "tries": tries} | seen[tries[-1][0]]


def measure_privbench(options: argparse.Namespace) -> None:
    """Write two measures of PrivBench for the privatizations of `dev` whose states are in the cache.

    `nearest` is the mean rank of a text's privatized form among those of all texts by the cosine with the text in
    clear, 1 at worst for privacy; `cosine` the mean cosine of both.
    """
    bench, kept = Bench(options), Kept(options.out)

    def scaled(states: np.ndarray) -> np.ndarray:
        return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-9)

    clear = scaled(bench.states(bench.dev_ids, bench.backbone))
    for line in kept.find(kind="eta"):
        cell = {"level": line["level"], "arm": line["arm"]}
        for seed in range(options.seeds):
            path = bench.cached(cell["arm"], line["eta"], seed)
            if cell["arm"] not in options.arms or not path.exists() or kept.find(kind="privbench", seed=seed, **cell):
                continue
            cosines = clear @ scaled(np.load(path)["judged"]).T
            own = np.diag(cosines)
            ranks = 1 + (cosines > own[:, None]).sum(axis=1)
            found = {"nearest": round(float(ranks.mean()), 2), "cosine": round(float(own.mean()), 4)}
            kept.write({"kind": "privbench", **cell, "seed": seed, "n": len(ranks), **found})


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("axes", measure_axes), ("privbench", measure_privbench)):
        way = ways.add_parser(name)
        way.set_defaults(function=function)
        way.add_argument("--out", type=Path, default=LINES, help="lines of results")
        way.add_argument("--data", type=Path, required=True, help="folder of train.tsv and dev.tsv")
        way.add_argument("--cache", type=Path, required=True, help="folder of states")
        way.add_argument("--model", default="minilm")
        way.add_argument("--precision", default="bfloat16")
        way.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
        for option, count in (("seeds", 3), ("train", 4_000), ("attacked", 300), ("public", 20_000)):
            way.add_argument(f"--{option}", type=int, default=count)
        if function is run:
            way.add_argument("--levels", type=float, nargs="+", default=[0.57, 0.4])
            way.add_argument("--expecting", action="store_true", help="with an encoder that expects the arm's noise")
            way.add_argument("--epochs", type=float, default=1.0, help="passes over what the attackers hold")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
