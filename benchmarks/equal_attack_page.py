"""The tables and the picture of `docs/results/mechanisms.md`, from its kept lines.

python benchmarks/equal_attack_page.py                    # the tables
python benchmarks/equal_attack_page.py --check            # fails where the page says anything else
python benchmarks/equal_attack_page.py --picture docs/images/equal_attack.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from text_codes import interval

from rapt.audit.calibration import READING_ATTACKS
from rapt.drawing import Figure, Line, draw_picture

DOCS = Path(__file__).parent.parent / "docs"
LINES = DOCS / "results/mechanisms_equal_attack.jsonl"
PAGE = DOCS / "results/mechanisms.md"
NOISY = ("laplace", "unit-laplace", "mahalanobis", "rank-fix", "vickrey")
# Kind of the lines, heads of the table, and the field and form of each column.
OTHER_AXES = (
    ("axes", ("rare words read", "recognized among 1,000"), {"rare_read": "{:.1%}", "recognized": "{:.1%}"}),
    ("privbench", ("rank among 872", "cosine"), {"nearest": "{:.1f}", "cosine": "{:.2f}"}),
)


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


def make_tables(rows: list[dict]) -> list[str]:
    """The lines of Markdown: for each level what is left and what is read, and one table of the other axes."""
    results, said = collect(rows), []
    for level in dict.fromkeys(result.level for result in results):
        of_level = [result for result in results if result.level == level]
        first = next(result for result in of_level if result.arm == "laplace")
        said += [
            "",
            f"At {100 * level:.0f} %:",
            "",
            "| arm | η | right on `dev`, % | points above `laplace` | seeds | copying, % | Bayes, % | context, % "
            "| bits read, % | bits learned |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for result in sorted(of_level, key=lambda result: -result.accuracy[0]):
            (accuracy, half), (lead, width) = result.accuracy, result.lead(first)
            shares = [result.read["read"].get(name) for name in READING_ATTACKS]
            cells = ["" if one is None else f"{100 * one[0]:.1f} ± {100 * one[1]:.1f}" for one in shares]
            bits, learned = result.read["bits_read"], result.read["bits_learned"]
            said.append(
                f"| {result.arm} | {result.eta:.4g} | {accuracy:.1f} ± {half:.1f} | {lead:+.1f} ± {width:.1f} "
                f"| {len(result.right)} | {' | '.join(cells)} | {100 * bits[0]:.1f} | {learned:.2f} |"
            )
    for kind, head, columns in OTHER_AXES:
        measured = [row for row in rows if row["kind"] == kind]
        if not measured:
            continue
        said += ["", f"| arm | strongest attack | {' | '.join(head)} |", "|---|---|" + "---|" * len(head)]
        for result in results:
            own = [row for row in measured if (row["level"], row["arm"]) == (result.level, result.arm)]
            if own:
                means = [form.format(np.mean([row[name] for row in own])) for name, form in columns.items()]
                said.append(f"| {result.arm} | {result.level:.0%} | {' | '.join(means)} |")
    return said


def find_missing(rows: list[dict]) -> list[str]:
    """The lines of the tables that the page lacks."""
    page = set(PAGE.read_text(encoding="utf-8").splitlines())
    return [line for line in make_tables(rows) if line not in page]


def draw(results: list[Result]) -> str:
    """Accuracy over the bits that an attacker learns: a box of 95 % an arm, in two panels."""
    reach = [one.read["bits_learned"] for one in results]
    first = next((one for one in results if one.arm == "laplace"), results[0])
    # Both panels have the axis of the first, so that each has a line over all of it.
    across_all = tuple((bits, first.accuracy[0]) for bits in (0.9 * min(reach), 1.12 * max(reach)))
    figures = []
    for title, noisy in (("Noise on the table's rows", True), ("All else", False)):
        lines = []
        reference = Line(name=f"{first.arm} at {100 * first.level:.0f} %", style="fourth dashed", points=across_all)
        for name in dict.fromkeys(one.arm for one in results):
            own = sorted((one for one in results if one.arm == name), key=lambda one: one.read["bits_learned"])
            if (name in NOISY) == noisy and own:
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
    levels = " or ".join(f"{100 * level:.0f}" for level in dict.fromkeys(one.level for one in results))
    return draw_picture(
        figures,
        title=f"What a task keeps where the strongest attack reads {levels} % of tokens",
        subtitle="SST-2, MiniLM, a head on privatized sentences; boxes of 95 %, those of two levels joined",
        description="Accuracy of each mechanism against the bits that the attacker learns of a token.",
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=Path, default=LINES)
    parser.add_argument("--check", action="store_true", help="compare with the page")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rows = read_lines(options.lines)
    if options.picture:
        options.picture.write_text(draw(collect(rows)), encoding="utf-8")
        return
    said = find_missing(rows) if options.check else make_tables(rows)
    print("\n".join(said))
    sys.exit(1 if options.check and said else 0)


if __name__ == "__main__":
    main()
