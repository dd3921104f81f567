"""One table of several runs of `rapt compare` on the same texts with the same privatizations.

    python benchmarks/joined_results.py RESULTS.jsonl [RESULTS.jsonl ...] [--turns 5] [--json FILE] [--plot FILE.svg]

A run is named by its settings, the denoised backbone among them, and takes no results of another. Files depend on
texts, η and seed alone, so arms of two runs that agree in these met identical files, and can be told apart pair by
pair. Of an arm that stands in several files with one η and seed, the last file counts. That texts are the same is for
you to know: the files hold no text and no digest of one by itself; they are refused where their numbers differ. Say
`--turns 5` of runs that were cross-validated.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from results import publish

from rapt.compare.plan import CLEAN, DENOISED, ORACLE, PROMPT, RAPT
from rapt.compare.results import ModelRow, read_row
from rapt.compare.summary import summarize
from rapt.compare.tables import list_accuracies, list_differences, write_markdown
from rapt.drawing import Figure, Line, draw_picture


def joined(paths):
    """The rows of all files, the last of each arm, η and seed."""
    rows = {}
    for path in paths:
        for line in path.read_bytes().splitlines():
            row = read_row(line)
            if isinstance(row, ModelRow):
                rows[row.arm, row.eta, row.seed] = row
    texts = {len(row.right) for row in rows.values()}
    if len(texts) != 1:
        sys.exit(f"runs must be on the same texts, got numbers of texts {sorted(texts)}; join others")
    return list(rows.values())


def main():
    """Read the command line, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    summary = summarize(joined(options.results), turns=options.turns)
    print(write_markdown(list_accuracies(summary)))
    print(write_markdown(list_differences(summary)))
    if options.json is not None:
        found = {"accuracies": summary.accuracies, "differences": summary.differences}
        publish({name: [asdict(item) for item in items] for name, items in found.items()}, file=options.json)
    if options.plot is not None:
        options.plot.write_text(picture(summary), encoding="utf-8")


def picture(summary):
    """Accuracy over η of the arms that matter most, as an SVG file."""
    lines = []
    for arm, style in zip((PROMPT, RAPT, DENOISED, ORACLE), ("fourth", "first", "third", "second dashed"), strict=True):
        found = [item for item in summary.accuracies if item.arm == arm and item.eta is not None]
        points = tuple((item.eta, 100 * item.accuracy.value) for item in found)
        ends = tuple((100 * item.accuracy.low, 100 * item.accuracy.high) for item in found) if arm == DENOISED else ()
        lines.append(Line(name=arm, points=points, ends=ends, style=style))
    clear = summary.accuracy(CLEAN, None)
    figure = Figure(
        title="Accuracy over η",
        across="η, 1/distance: less noise to the right (logarithmic)",
        up="accuracy, %",
        lines=tuple(line for line in lines if line.points),
        level=None if clear is None else 100 * clear.accuracy.value,
        step=5.0,
    )
    subtitle = "band: 95 % interval of denoised; dashed across: text in clear"
    last = "; ".join(f"{line.name} {line.points[0][1]:.1f} to {line.points[-1][1]:.1f} %" for line in figure.lines)
    return draw_picture([figure], title=figure.title, subtitle=subtitle, description=f"From the lowest η: {last}.")


if __name__ == "__main__":
    main()
