"""Writes `src/rapt/own_page/figures.json` from the kept lines of docs/results; run as `python tests/page_figures.py`.

The page on the user's machine shows these and no others: how much the strongest attack got, and how good answers were,
each with its setting, its n and its interval.
"""

from __future__ import annotations

import json
from pathlib import Path

from rapt.compare.results import ModelRow, read_row
from rapt.compare.summary import summarize
from rapt.public_models import PUBLIC_CODES, PUBLIC_MODELS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
FIGURES = ROOT / "src" / "rapt" / "own_page" / "figures.json"
TUNED = ("denoised_sst2.jsonl", "denoised_sst2_65_90.jsonl", "denoised_sst2_50_110.jsonl")
TASK = "whether a sentence on a film is favourable (SST-2, 872 sentences of dev)"
DIGITS = 4


def lines(name: str) -> list[dict]:
    """The values of a file of kept lines."""
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def rows_of(*names: str) -> list[ModelRow]:
    """The rows of models of several files."""
    read = (read_row(line) for name in names for line in (RESULTS / name).read_bytes().splitlines())
    return [row for row in read if isinstance(row, ModelRow)]


def share(value: float, low: float, high: float, n: int, **others: object) -> dict:
    """A share with its interval."""
    return {"value": round(value, DIGITS), "low": round(low, DIGITS), "high": round(high, DIGITS), "n": n, **others}


def accuracy(found, *, texts: int, kind: str) -> dict:
    """An accuracy of a summary."""
    mean = found.accuracy
    return share(mean.value, mean.low, mean.high, texts, kind=kind)


def token_figures() -> dict:
    """Tokens of MiniLM's table under the Laplace mechanism."""
    audits = {line["eta"]: line["audit"] for line in lines("attacks_sst2.jsonl")}
    summary = summarize(rows_of(*TUNED))
    texts = 872
    points = []
    for eta, audit in sorted(audits.items()):
        scores = {one["title"]: one["score"]["all_tokens"] for one in audit["results"]}
        name = max(scores, key=lambda one: scores[one]["first"]["value"])
        first, blind = scores[name]["first"], scores[name]["chance"]
        arms = [("RAPT", "RAPT"), ("denoised", "a backbone that expects noise")]
        points.append(
            {
                "at": eta,
                "named": share(
                    first["value"], first["low"], first["high"], first["n"], by=name, blind=round(blind, DIGITS)
                ),
                "right": [accuracy(summary.accuracy(arm, eta), texts=texts, kind=kind) for arm, kind in arms],
            }
        )
    return {
        "hash": PUBLIC_MODELS["minilm"].vocabulary,
        "mechanism": "laplace",
        "named": "words of 250 sentences of SST-2 that the strongest of five attacks names at the first attempt",
        "task": TASK,
        "clear": [accuracy(summary.accuracy("clean", None), texts=texts, kind="a soft prompt on text in clear")],
        "learned_from": "4,000 sentences, five seeds",
        "lines": ["attacks_sst2.jsonl", *TUNED],
        "points": points,
    }


def code_figures() -> dict:
    """Codes of whole texts from the codebook that comes with rapt."""
    name = "crowds_sst2.jsonl"
    attacks = {line["epsilon"]: line for line in lines(name) if line["kind"] == "attack"}
    found = summarize(rows_of(name)).accuracies
    whole = {(item.arm, item.epsilon): item for item in found if item.crowd == 0}
    seeds = {epsilon: len(item.seeds) for (arm, epsilon), item in whole.items() if arm == "codes asked at home"}
    points = []
    for epsilon, line in sorted(attacks.items()):
        arms = [("codes asked at home", "asked at home"), ("codes asked privately", "asked with a private code")]
        right = [
            accuracy(whole[arm, epsilon], texts=872, kind=kind)
            for arm, kind in arms
            if (arm, epsilon) in whole and seeds[epsilon] > 1
        ]
        named = share(
            line["linked"],
            line["linked_low"],
            line["linked_high"],
            2000,
            by="the best attack that there is",
            blind=1 / line["candidates"],
        )
        points.append({"at": epsilon, "named": named, "right": right})
    home = whole["encoder and head at home", None]
    return {
        "hash": PUBLIC_CODES["minilm-codes"],
        "mechanism": "subset",
        "named": "sentences of SST-2 that an attacker who holds 1,000 in clear, the right one among them, picks",
        "task": TASK,
        "clear": [accuracy(home, texts=872, kind="encoder and head at home, nothing sent")],
        "learned_from": "4,000 people with a sentence each, three seeds",
        "lines": [name],
        "points": points,
    }


def write_figures() -> str:
    """The file of figures."""
    return json.dumps([token_figures(), code_figures()], indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FIGURES.write_text(write_figures(), encoding="utf-8")
