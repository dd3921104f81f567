"""The tables of a comparison as cells of text: accuracies, differences, attacks, and what each setting gives away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rapt.compare.plan import ARMS
from rapt.compare.summary import Accuracy, Difference, Mean, StrongestAttack, Summary
from rapt.local.distances import TableDistances
from rapt.local.text_page import ceil_nats
from rapt.severity import Severity, find_worst, weigh_attack

_UNDER_POLICY: Final = ", policy"
_LATEX = {
    "η": r"$\eta$",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
    "%": r"\%",
    "–": "--",
    "−": "$-$",
    "—": "---",
    "_": r"\_",
}


def list_accuracies(summary: Summary) -> list[list[str]]:
    """A header, then one line for each arm at each setting; of crowds and codes only where there are some."""
    lines = [["η", "unchanged, %", "arm", "accuracy, %", "95 % interval", "seeds", "privatizations"]]
    kept = {
        (attack.eta, attack.policy): f"{100 * attack.unchanged:.1f}"
        for attack in summary.attacks
        if attack.eta is not None
    }
    for item in summary.accuracies:
        under = item.arm in ARMS and ARMS[item.arm].policy
        lines.append([_format_eta(item.eta), kept.get((item.eta or 0.0, under), "—"), *_format_accuracy(item)])
    if (named := summary.most_frequent_label) is not None:
        lines.append(["—", "—", "most frequent label", *_format_percent(named), "—", "—"])
    if not _has_crowds(summary):
        return lines
    others = [
        ["texts", "ε"],
        *([name_crowd(item.crowd), _format_eta(item.epsilon)] for item in summary.accuracies),
        ["—", "—"],
    ]
    return [[*first, *rest] for first, rest in zip(others, lines, strict=False)]


def list_differences(summary: Summary) -> list[list[str]]:
    """A header, then one line for each difference at each setting."""
    lines = [["η", "difference", "points", "95 % interval", "each seed"]]
    lines += [[_format_eta(item.eta), *_format_difference(item)] for item in summary.differences]
    if not _has_crowds(summary):
        return lines
    others = [["texts", "ε"], *([name_crowd(item.crowd), _format_eta(item.epsilon)] for item in summary.differences)]
    return [[*first, *rest] for first, rest in zip(others, lines, strict=True)]


def list_attacks(summary: Summary) -> list[list[str]]:
    """A header, then the strongest attack at each η."""
    lines = [["η", "strongest attack", "tokens recovered, %", "95 % interval", "tokens attacked"]]
    for item in summary.attacks:
        if item.eta is not None:
            interval = f"{100 * item.low:.1f}–{100 * item.high:.1f}"
            setting = _format_eta(item.eta) + (_UNDER_POLICY if item.policy else "")
            lines.append([setting, item.name, f"{100 * item.recovered:.1f}", interval, f"{item.tokens:,}"])
    return lines


def weigh_exposure(item: StrongestAttack) -> Severity:
    """Severity of what a setting gives away: its words, and which text among others it is where that was tried."""
    weighed = [weigh_attack(item.recovered, blind=item.blind or 0.0)]
    if item.linked is not None and item.candidates:
        weighed.append(weigh_attack(item.linked, blind=1 / item.candidates))
    return find_worst(weighed)


def list_exposures(summary: Summary, *, distances: TableDistances | None) -> list[list[str]]:
    """A header, then what each setting gives away: words, the text among others, bits of it, and the formal ε."""
    lines = [
        [
            "setting",
            "words read, %",
            "without the file",
            "by the label alone",
            "recognized, %",
            "95 % interval",
            "among",
            "bits",
            "ε",
        ]
    ]
    for item in summary.attacks:
        if item.linked is None or item.linked_low is None or item.linked_high is None or item.bits is None:
            continue
        formal = f"{item.epsilon:g}, whole text" if item.epsilon is not None else "—"
        if item.eta is not None and distances is not None:
            formal = f"{ceil_nats(item.eta * distances.largest_seen)}, one word"
        lines.append(
            [
                f"η = {item.eta:g}{_UNDER_POLICY if item.policy else ''}"
                if item.eta is not None
                else f"ε = {item.epsilon:g}",
                f"{100 * item.recovered:.1f}",
                *("—" if share is None else f"{100 * share:.1f}" for share in (item.blind, item.label_alone)),
                f"{100 * item.linked:.1f}",
                f"{100 * item.linked_low:.1f}–{100 * item.linked_high:.1f}",
                f"{item.candidates:,}",
                f"{item.bits:.2f}",
                formal,
            ]
        )
    return lines


def _has_crowds(summary: Summary) -> bool:
    return any(item.crowd or item.epsilon is not None or ARMS[item.arm].unit == "home" for item in summary.accuracies)


def name_crowd(crowd: int) -> str:
    """How many training texts there are, in words."""
    return f"{crowd:,}" if crowd else "all"


def write_markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line of the cells is its header."""
    rows = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def write_latex(cells: Sequence[Sequence[str]]) -> str:
    """A LaTeX `tabular` in the style of `booktabs`; the first line of the cells is its header."""
    rows = [" & ".join(_escape(cell) for cell in row) + r" \\" for row in cells]
    columns = "l" * len(cells[0])
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule"]
    return "\n".join([*head, *rows[1:], r"\bottomrule", r"\end{tabular}", ""])


def _format_accuracy(item: Accuracy) -> list[str]:
    return [item.arm, *_format_percent(item.accuracy), str(len(item.seeds)), str(item.privatizations)]


def _format_percent(mean: Mean) -> list[str]:
    return [f"{100 * mean.value:.1f}", f"{100 * mean.low:.1f}–{100 * mean.high:.1f}"]


def _format_difference(item: Difference) -> list[str]:
    mean = item.points
    each = ", ".join(write_signed(value) for value in mean.each_seed)
    return [f"{item.arm} − {item.other}", write_signed(mean.value), write_signed_interval(mean), each]


def write_signed(points: float) -> str:
    """A difference with its sign, in typography's minus."""
    return f"{points:+.1f}".replace("-", "−")


def write_signed_interval(mean: Mean) -> str:
    """Both ends with their signs."""
    return f"{write_signed(mean.low)} to {write_signed(mean.high)}"


def _format_eta(eta: float | None) -> str:
    return "—" if eta is None else f"{eta:g}"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
