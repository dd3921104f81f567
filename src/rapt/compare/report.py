"""The report of a comparison: conclusions, one HTML page, one JSON, tables in Markdown and LaTeX, and curves in CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from rapt import drawing
from rapt.compare.plan import (
    ARMS,
    CLEAN,
    DENOISED,
    DENOISED_PROBING,
    PROMPT,
    RAPT,
    SEEDS_FOR_AN_INTERVAL,
    ComparisonPlan,
    digest_weights,
)
from rapt.compare.summary import Accuracy, Difference, Mean, Summary
from rapt.compare.texts import Split
from rapt.drawing import Figure, Line, write_values
from rapt.errors import UsageError
from rapt.local.distances import TableDistances, measure_distances
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.backbone import read_noise_expected
from rapt.version import __version__
from rapt.whole_files import write_whole
from rapt.wire.manifest import MechanismSetting

STYLES: Final = {name: f"arm-{place}" for place, name in enumerate(ARMS)}
_STEP: Final = 5.0  # points of accuracy; the axis ends at multiples of it
_LATEX = {"η": r"$\eta$", "λ": r"$\lambda$", "%": r"\%", "–": "--", "−": "$-$", "—": "---", "_": r"\_"}


def list_accuracies(summary: Summary) -> list[list[str]]:
    """A header, then one line for each arm at each η."""
    lines = [["η", "unchanged, %", "arm", "accuracy, %", "95 % interval", "seeds", "privatizations"]]
    kept = {attack.eta: f"{100 * attack.unchanged:.1f}" for attack in summary.attacks}
    for item in summary.accuracies:
        lines.append([_eta(item.eta), kept.get(item.eta or 0.0, "—"), *_accuracy(item)])
    if (named := summary.most_frequent_label) is not None:
        lines.append(["—", "—", "most frequent label", *_percent(named), "—", "—"])
    return lines


def list_differences(summary: Summary) -> list[list[str]]:
    """A header, then one line for each difference at each η."""
    lines = [["η", "difference", "points", "95 % interval", "each seed"]]
    return lines + [[_eta(item.eta), *_difference(item)] for item in summary.differences]


def list_attacks(summary: Summary) -> list[list[str]]:
    """A header, then the strongest attack at each η."""
    lines = [["η", "strongest attack", "tokens recovered, %", "95 % interval", "tokens attacked"]]
    for item in summary.attacks:
        interval = f"{100 * item.low:.1f}–{100 * item.high:.1f}"
        lines.append([_eta(item.eta), item.name, f"{100 * item.recovered:.1f}", interval, f"{item.tokens:,}"])
    return lines


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


def _accuracy(item: Accuracy) -> list[str]:
    return [item.arm, *_percent(item.accuracy), str(len(item.seeds)), str(item.privatizations)]


def _percent(mean: Mean) -> list[str]:
    return [f"{100 * mean.value:.1f}", f"{100 * mean.low:.1f}–{100 * mean.high:.1f}"]


def _difference(item: Difference) -> list[str]:
    mean = item.points
    each = ", ".join(write_signed(value) for value in mean.each_seed)
    return [f"{item.arm} − {item.other}", write_signed(mean.value), write_signed_interval(mean), each]


def write_signed(points: float) -> str:
    """A difference with its sign, in typography's minus."""
    return f"{points:+.1f}".replace("-", "−")


def write_signed_interval(mean: Mean) -> str:
    """Both ends with their signs."""
    return f"{write_signed(mean.low)} to {write_signed(mean.high)}"


def _eta(eta: float | None) -> str:
    return "—" if eta is None else f"{eta:g}"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def draw_conclusions(summary: Summary) -> Iterator[str]:
    """The conclusions, the most important first."""
    for item in summary.differences:
        if (item.arm, item.other) == (RAPT, PROMPT):
            yield f"At η = {item.eta:g}, reconstruction {_says(item)}."
    for item in summary.differences:
        if item.arm in (DENOISED, DENOISED_PROBING) and item.other in (PROMPT, RAPT):
            head = " and a head alone" if item.arm == DENOISED_PROBING else ""
            yield f"At η = {item.eta:g}, a backbone that expects noise{head}, against {item.other}: {_says(item)}."
    for item in summary.differences:
        if item.arm == RAPT and item.other not in (PROMPT, CLEAN):
            yield f"At η = {item.eta:g}, RAPT against its control “{item.other}”: {_says(item)}."
    for item in summary.differences:
        if (item.arm, item.other) == (PROMPT, CLEAN):
            yield f"At η = {item.eta:g}, privacy cost {-item.points.value:.1f} points without reconstruction."
    if blind := [item for item in summary.accuracies if item.over_most_frequent and item.over_most_frequent.low <= 0]:
        arms = "; ".join(item.arm if item.eta is None else f"{item.arm} at η = {item.eta:g}" for item in blind)
        yield f"No better than always naming the most frequent label, as far as can be told: {arms}."
    fewest = min((len(item.seeds) for item in summary.accuracies), default=0)
    if fewest < SEEDS_FOR_AN_INTERVAL:
        yield (
            f"Some arm has {_seeds(fewest)}: below {SEEDS_FOR_AN_INTERVAL}, an interval "
            "understates how much another seed would change."
        )


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _says(item: Difference) -> str:
    points = item.points
    amount = f"{write_signed(points.value)} points ({write_signed_interval(points)}, {_seeds(len(item.seeds))})"
    if points.low > 0:
        return f"helped: {amount}"
    if points.high < 0:
        return f"hurt: {amount}"
    return f"made no difference that can be told from chance: {amount}"


SCHEMA: Final = "rapt.comparison-report/1"
PAGE, VALUES, MARKDOWN, LATEX = "comparison.html", "comparison.json", "comparison.md", "comparison.tex"
CURVES: Final = "comparison.csv"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page."""

    title: str
    note: str
    cells: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class ComparisonPage:
    """Everything that the page shows."""

    title: str
    created: str
    created_by: str
    plan: ComparisonPlan
    model: str
    setting: str
    training: str
    evaluation: str
    verdict: tuple[str, ...]
    plots: tuple[Figure, ...]
    tables: tuple[Table, ...]
    arms: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    command: str


def write_comparison(
    plan: ComparisonPlan, split: Split, summary: Summary, folder: Path, *, title: str, created: str, command: str
) -> Path:
    """Write the five files; each appears whole or not at all. Returns the path of the page.

    Args:
        plan: Plan of the comparison.
        split: The texts; only their numbers are told.
        summary: Summary of the results.
        folder: Existing folder that holds the results.
        title: Title of the page.
        created: Date.
        command: Command that makes the numbers again.

    Raises:
        UsageError: The folder cannot be written.
    """
    distances = measure_distances(load_vocabulary(plan.model))
    tables = _tables(summary)
    denoised = None if plan.denoised is None else digest_weights(plan.denoised)
    model = Path(plan.model).name  # where it lies is nobody's business
    page = ComparisonPage(
        title=title,
        created=created,
        created_by=f"rapt {__version__}",
        plan=plan,
        model=model,
        setting=plan.digest_setting(split),
        training=f"{len(split.training):,} {'pairs' if split.training.pairs else 'texts'}",
        evaluation=f"{len(split.evaluation):,}" + (f" each seed, in {len(split.turns)} turns" if split.further else ""),
        verdict=tuple(draw_conclusions(summary)),
        plots=plot_accuracies(summary, distances),
        tables=tables,
        arms=tuple((name, ARMS[name].says) for name in plan.arms),
        facts=_facts(plan),
        command=command,
    )
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "created": created,
        "created_by": page.created_by,
        "command": command,
        "setting": page.setting,
        "plan": asdict(plan) | {"model": model, "options": dict(plan.options), "denoised": denoised},
        "pairs": split.training.pairs,
        "training_records": len(split.training),
        "evaluation_records": len(split.evaluation),
        "turns": len(split.turns),
        "verdict": page.verdict,
        **asdict(summary),
    }
    try:
        for name, content in (
            (VALUES, json.dumps(values, indent=1, allow_nan=False) + "\n"),
            (MARKDOWN, "\n".join(f"## {table.title}\n\n{write_markdown(table.cells)}" for table in tables)),
            (CURVES, write_values(page.plots)),
            (LATEX, "\n".join(write_latex(table.cells) for table in tables)),
            (PAGE, _template().render(page=page, drawing=drawing)),
        ):
            write_whole(folder / name, content)
    except OSError as error:
        raise UsageError(
            f"a comparison must be writable, got {error.strerror or type(error).__name__}; "
            "free space or choose another folder"
        ) from None
    return folder / PAGE


def plot_accuracies(summary: Summary, distances: TableDistances) -> tuple[Figure, ...]:
    """Accuracy over η, over ε, and over what the strongest attack recovers, where the axis has two settings at least.

    Args:
        summary: Summary of the results.
        distances: Distances in the vocabulary's table, to turn η into ε = η·d at the median distance to the nearest.
    """
    clear = summary.accuracy(CLEAN, None)
    near = distances.nearest_50
    axes: list[tuple[str, str, dict[float, float]]] = [
        ("Accuracy over η", "η, 1/distance: less noise to the right", {eta: eta for eta in summary.etas}),
        (
            "Accuracy over the pure bound",
            f"ε = η·d at d = {near:.3g}, the median distance of a token to its nearest",
            {eta: eta * near for eta in summary.etas},
        ),
        (
            "Accuracy over what the strongest attack recovers",
            "tokens recovered by the strongest attack, %",
            {attack.eta: 100 * attack.recovered for attack in summary.attacks},
        ),
    ]
    return tuple(
        Figure(
            title=title,
            across=across,
            up="accuracy, %",
            lines=_lines(summary, place),
            level=None if clear is None else 100 * clear.accuracy.value,
            step=_STEP,
        )
        for title, across, place in axes
        if len(place) > 1
    )


def _lines(summary: Summary, place: dict[float, float]) -> tuple[Line, ...]:
    lines = []
    for arm in dict.fromkeys(item.arm for item in summary.accuracies if item.eta is not None):
        found = [item for item in summary.accuracies if item.arm == arm and item.eta in place]
        lines.append(
            Line(
                name=arm,
                points=tuple((place[item.eta or 0.0], 100 * item.accuracy.value) for item in found),
                ends=tuple((100 * item.accuracy.low, 100 * item.accuracy.high) for item in found),
                style=STYLES[arm],
            )
        )
    return tuple(lines)


def _tables(summary: Summary) -> tuple[Table, ...]:
    found = (
        Table(
            title="Accuracy",
            note=(
                "Mean over seeds and over the privatizations of the evaluation texts; 95 % intervals over both. "
                "“Most frequent label” reads no text: it always names the label that most training texts have."
            ),
            cells=list_accuracies(summary),
        ),
        Table(
            title="Differences on identical files",
            note="In points of accuracy, paired by seed and text.",
            cells=list_differences(summary),
        ),
        Table(
            title="What an attacker recovers",
            note="The strongest of the attacks that were asked for, on the training file of the first seed.",
            cells=list_attacks(summary),
        ),
    )
    return tuple(table for table in found if len(table.cells) > 1)


def _facts(plan: ComparisonPlan) -> tuple[tuple[str, str], ...]:
    config = plan.make_config(seed=0)
    return (
        ("method", plan.method.replace("_", " ")),
        ("prompt length P", str(plan.prompt_length)),
        ("epochs", str(plan.epochs)),
        ("batch size", str(plan.batch_size)),
        ("learning rate", f"{config.learning_rate:g}"),
        ("plain tokens m", f"{plan.plain_tokens} out of {plan.plain_pool}"),
        ("λ", f"{plan.weight:g}"),
        ("privatizations of the evaluation texts", str(plan.privatizations)),
        ("seeds", ", ".join(map(str, plan.seeds))),
        *_noise_fact(plan),
    )


def _noise_fact(plan: ComparisonPlan) -> Iterator[tuple[str, str]]:
    """Say what the backbone that expects noise was made for, and where that is not what it was given."""
    noise = None if plan.denoised is None else read_noise_expected(Path(plan.denoised))
    if noise is None:
        return
    strange = [
        f"{eta:g}"
        for eta in plan.etas
        if not noise.covers(MechanismSetting(name=plan.mechanism, parameters={**plan.options, "eta": eta}))
    ]
    made_for = f"{noise.mechanism} at η = {', '.join(f'{eta:g}' for eta in noise.etas)}"
    yield "denoised backbone made for", made_for + (f"; not for η = {', '.join(strange)}" if strange else "")


@cache
def _template() -> Template:
    # The style is the audit's, so that a reader of both finds his way.
    loader = ChoiceLoader([PackageLoader("rapt.compare"), PackageLoader("rapt.audit.report")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("comparison.html.j2")
