"""What each choice in RAPT does: one thing changed at a time, five seeds, on the two-layer BERT.

    python benchmarks/ablations.py run --data FOLDER --out RESULTS [--seeds 5] [--settings base,m40]
    python benchmarks/ablations.py table RESULTS --out docs/results/ablations.json --plot docs/images/ablations.svg

FOLDER holds `train.csv` and `dev.csv` of `benchmarks/public_text.py`; 16,000 texts come from `large.csv`, and all of
SST-2's `train`, most of it phrases, from `phrases.csv`; `large` writes both. Each setting is a comparison of its own
(`rapt.compare`), resumable; seed after seed, so that a run that is cut short is still a comparison. `--settings` runs
some of them, for a run in pieces, and `table` keeps what the file that it writes says of settings without results in
RESULTS. A difference is always between arms that read identical privatized files.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from public_text import sst2

from rapt.compare.bench import run_comparison
from rapt.compare.plan import CLEAN, LONGER, NO_LOSS, PROMPT, RAPT, SHUFFLED, ComparisonPlan
from rapt.compare.results import ModelRow, open_results
from rapt.compare.summary import summarize
from rapt.compare.texts import read_split

ETA, RECORDS, SHORTEST = 83.0, 4_000, 8
NAMES = ("negative", "positive")  # of the labels, as `benchmarks/public_text.py` writes them
BASE = ComparisonPlan(model="bert-tiny", etas=(ETA,), seeds=(0,), arms=(CLEAN, PROMPT, RAPT, NO_LOSS, SHUFFLED, LONGER))
PAIR, TRIO = (PROMPT, RAPT), (PROMPT, RAPT, NO_LOSS)


@dataclass(frozen=True)
class Setting:
    """A setting in which one choice is changed.

    Attributes:
        name: Name on the command line.
        changed: Choice that is changed.
        to: Value that the choice is changed to.
        plan: Plan with the change made.
        records: Number of training texts.
        source: File that the texts come from.
        shortest: Smallest number of words in a text.
    """

    name: str
    changed: str
    to: str
    plan: ComparisonPlan
    records: int = RECORDS
    source: str = "train.csv"
    shortest: int = SHORTEST


def settings() -> list[Setting]:
    """All of them, in the order in which they are run; the first is what the others change one thing of."""
    found = [Setting("base", "base", "m = 20, |T| = 500, λ = 0.1, P = 10, η = 83, 4,000 texts", BASE)]
    for eta in (77.0, 89.0, 95.0):
        found.append(Setting(f"eta{eta:g}", "η", f"{eta:g}", replace(BASE, etas=(eta,), arms=TRIO)))
    for m in (10, 40, 80):
        found.append(Setting(f"m{m}", "m", str(m), replace(BASE, plain_tokens=m, arms=TRIO if m == 40 else PAIR)))
    for weight in (0.01, 1.0, 20.0):
        found.append(Setting(f"weight{weight:g}", "λ", f"{weight:g}", replace(BASE, weight=weight, arms=PAIR)))
    for pool in (100, 7_630):
        found.append(Setting(f"pool{pool}", "|T|", f"{pool:,}", replace(BASE, plain_pool=pool, arms=PAIR)))
    one_list = replace(BASE, plain_drawn="file", arms=TRIO)
    found.append(Setting("file", "plain tokens", "one list a file", one_list))
    for length in (1, 40):
        found.append(Setting(f"P{length}", "P", str(length), replace(BASE, prompt_length=length, arms=PAIR)))
    pair = replace(BASE, arms=PAIR)
    found.append(Setting("texts1000", "texts", "1,000", pair, 1_000))
    found.append(Setting("texts16000", "texts", "16,000", pair, 16_000, "large.csv"))
    # There are no more sentences: these are parts of sentences for the most part, which changes more than their number.
    found.append(Setting("texts66000", "texts", "66,000 phrases", pair, 66_000, "phrases.csv", 1))
    return found


def named(names: str) -> list[Setting]:
    """The settings of these names, `a,b,...`; raises `argparse.ArgumentTypeError` for one that nobody knows."""
    known = {setting.name: setting for setting in settings()}
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown setting={unknown[0]!r}; choose among {', '.join(known)}")
    return [known[name] for name in wanted]


def results_of(folder: Path, setting: Setting) -> Path:
    """The file of one setting."""
    plan = setting.plan
    name = f"eta{plan.etas[0]:g}-m{plan.plain_tokens}-T{plan.plain_pool}-w{plan.weight:g}-P{plan.prompt_length}"
    return folder / f"{name}-{plan.plain_drawn}-n{setting.records}.jsonl"


def run(data: Path, out: Path, chosen: Sequence[Setting], *, seeds: int) -> None:
    """Everything that is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    for count in range(1, seeds + 1):
        for setting in chosen:
            split = read_split(
                data / setting.source,
                evaluation=data / "dev.csv",
                training_records=setting.records,
                evaluation_records=None,
                min_words=setting.shortest,
            )
            path = results_of(out, setting)
            run_comparison(replace(setting.plan, seeds=tuple(range(count))), split, results=path)
            print(f"seeds {count} of {seeds}: {path.name}", flush=True)


def rows_of(path: Path) -> list[ModelRow]:
    """The finished lines of one setting."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not lines:
        return []
    with open_results(path, settings={json.loads(lines[0])["setting"]}) as file:
        return [row for row in file.rows if isinstance(row, ModelRow)]


def table(folder: Path, *, known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting and arm: accuracy, and the difference from no reconstruction on the same files.

    Args:
        folder: Folder of the results.
        known: Rows of an earlier table, which stay where the folder has no result of a setting.
    """
    found = []
    for setting in settings():
        summary = summarize(rows_of(results_of(folder, setting)))
        if not summary.accuracies:
            found += [row for row in known if (row["changed"], row["to"]) == (setting.changed, setting.to)]
        for item in summary.accuracies:
            found.append(_row(setting, item.arm, item.accuracy, seeds=len(item.seeds)))
        for item in summary.differences:
            if item.arm == RAPT:
                found.append(_row(setting, f"{RAPT} − {item.other}", item.points, seeds=len(item.seeds), scale=1.0))
    return found


def _row(setting: Setting, what: str, mean: Any, *, seeds: int, scale: float = 100.0) -> dict[str, Any]:
    return {
        "changed": setting.changed,
        "to": setting.to,
        "what": what,
        "points": round(scale * mean.value, 2),
        "low": round(scale * mean.low, 2),
        "high": round(scale * mean.high, 2),
        "each_seed": [round(scale * value, 2) for value in mean.each_seed],
        "seeds": seeds,
    }


def picture(rows: list[dict[str, Any]]) -> str:
    """RAPT minus no reconstruction, each setting a line with its interval, as an SVG."""
    rows = [row for row in rows if row["what"] == f"{RAPT} − {PROMPT}"]
    left, wide, high = 210, 420, 26
    reach = max(abs(end) for row in rows for end in (row["low"], row["high"])) * 1.05
    height = 70 + high * len(rows)

    def across(points: float) -> float:
        return left + wide * (points + reach) / (2 * reach)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 20} {height}" role="img">',
        "<title>What reconstruction gains, in points of accuracy</title>",
        "<style>text{font:13px system-ui,sans-serif;fill:#24292f}line{stroke:#0969da;stroke-width:2}"
        "circle{fill:#0969da}.zero{stroke:#8c959f;stroke-width:1;stroke-dasharray:4 4}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}line{stroke:#58a6ff}circle{fill:#58a6ff}}</style>",
        '<text x="10" y="20">RAPT minus no reconstruction, same files, points (95 % interval)</text>',
        f'<line class="zero" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="32" y2="{height - 30}"/>',
        f'<text x="{across(0):.1f}" y="{height - 10}" text-anchor="middle">0</text>',
    ]
    for end in (-1.0, 1.0):
        value = round(end * reach * 0.9, 1)
        parts.append(f'<text x="{across(value):.1f}" y="{height - 10}" text-anchor="middle">{value:+g}</text>')
    for place, row in enumerate(rows):
        y = 45 + high * place
        name = "base" if row["changed"] == "base" else f"{row['changed']} = {row['to']}"
        parts.append(f'<text x="10" y="{y + 4}">{name}</text>')
        parts.append(f'<line x1="{across(row["low"]):.1f}" x2="{across(row["high"]):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle cx="{across(row["points"]):.1f}" cy="{y}" r="4"/>')
    return "\n".join([*parts, "</svg>", ""])


def large(source: Path, data: Path) -> None:
    """The 4,000 sentences with as many more as there are, and with every phrase: for the settings with more texts."""
    with (data / "train.csv").open(encoding="utf-8", newline="") as stream:
        first = {row["text"]: row["label"] for row in csv.DictReader(stream)}
    for name, shortest in (("large.csv", SHORTEST), ("phrases.csv", 1)):
        rest = {text: NAMES[label] for text, label in sst2(source, shortest=shortest).items()}
        with (data / name).open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("text", "label"), *(first | rest).items()])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("large")
    made.add_argument("--sst2", type=Path, required=True, help="train.tsv")
    made.add_argument("--data", type=Path, required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--seeds", type=int, default=5)
    runs.add_argument("--settings", type=named, default=settings(), metavar="A,B,...", help="default: all")
    shown = commands.add_parser("table")
    shown.add_argument("results", type=Path)
    shown.add_argument("--out", type=Path, required=True)
    shown.add_argument("--plot", type=Path, required=True)
    chosen = parser.parse_args()
    if chosen.command == "large":
        large(chosen.sst2, chosen.data)
    elif chosen.command == "run":
        run(chosen.data, chosen.out, chosen.settings, seeds=chosen.seeds)
    else:
        known = json.loads(chosen.out.read_text(encoding="utf-8"))["rows"] if chosen.out.exists() else []
        rows = table(chosen.results, known=known)
        document = {"command": "python benchmarks/ablations.py run --data FOLDER --out RESULTS", "rows": rows}
        chosen.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        chosen.plot.write_text(picture(rows), encoding="utf-8")
        for row in rows:
            print(row["changed"], row["to"], row["what"], row["points"], row["low"], row["high"], row["each_seed"])


if __name__ == "__main__":
    main()
