"""The tables of a comparison, for a paper: Markdown and LaTeX from the same cells."""

from __future__ import annotations

from collections.abc import Sequence

from rapt.compare.intervals import Mean
from rapt.compare.summary import Accuracy, Difference, Summary

_LATEX = {"η": r"$\eta$", "λ": r"$\lambda$", "%": r"\%", "–": "--", "−": "$-$", "—": "---", "_": r"\_"}


def accuracy_cells(summary: Summary) -> list[list[str]]:
    """A header, then one line for each arm at each η."""
    lines = [["η", "unchanged, %", "arm", "accuracy, %", "95 % interval", "seeds", "privatizations"]]
    kept = {attack.eta: f"{100 * attack.unchanged:.1f}" for attack in summary.attacks}
    for item in summary.accuracies:
        lines.append([_eta(item.eta), kept.get(item.eta or 0.0, "—"), *_accuracy(item)])
    if (named := summary.most_frequent_label) is not None:
        lines.append(["—", "—", "most frequent label", *_percent(named), "—", "—"])
    return lines


def difference_cells(summary: Summary) -> list[list[str]]:
    """A header, then one line for each difference at each η."""
    lines = [["η", "difference", "points", "95 % interval", "each seed"]]
    return lines + [[_eta(item.eta), *_difference(item)] for item in summary.differences]


def attack_cells(summary: Summary) -> list[list[str]]:
    """A header, then the strongest attack at each η."""
    lines = [["η", "strongest attack", "tokens recovered, %", "95 % interval", "tokens attacked"]]
    for item in summary.attacks:
        interval = f"{100 * item.low:.1f}–{100 * item.high:.1f}"
        lines.append([_eta(item.eta), item.name, f"{100 * item.recovered:.1f}", interval, f"{item.tokens:,}"])
    return lines


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line of the cells is its header."""
    rows = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def latex(cells: Sequence[Sequence[str]]) -> str:
    """A LaTeX `tabular` in the style of `booktabs`; the first line of the cells is its header."""
    rows = [" & ".join(_escape(cell) for cell in row) + r" \\" for row in cells]
    columns = "l" * len(cells[0])
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule"]
    return "\n".join([*head, *rows[1:], r"\bottomrule", r"\end{tabular}", ""])


def _accuracy(item: Accuracy) -> list[str]:
    return [item.arm, *_percent(item.accuracy), str(len(item.seeds)), str(item.privatizations)]


def _percent(mean: Mean) -> list[str]:
    return [f"{100 * mean.value:.1f}", f"{100 * mean.low:.1f}–{100 * mean.high:.1f}"]


def _difference(item: Difference) -> list[str]:
    mean = item.points
    each = ", ".join(signed(value) for value in mean.each_seed)
    return [f"{item.arm} − {item.other}", signed(mean.value), signed_interval(mean), each]


def signed(points: float) -> str:
    """A difference with its sign, in typography's minus."""
    return f"{points:+.1f}".replace("-", "−")


def signed_interval(mean: Mean) -> str:
    """Both ends with their signs."""
    return f"{signed(mean.low)} to {signed(mean.high)}"


def _eta(eta: float | None) -> str:
    return "—" if eta is None else f"{eta:g}"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
