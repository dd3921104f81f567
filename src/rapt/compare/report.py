"""The report of a comparison: conclusions, one HTML page, one JSON, tables in Markdown and LaTeX, and curves in CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from jinja2 import ChoiceLoader, PackageLoader, Template

from rapt import drawing
from rapt.audit.report import open_templates
from rapt.compare.plan import (
    ARMS,
    CLEAN,
    CODES_AT_HOME,
    CODES_PRIVATELY,
    DENOISED,
    DENOISED_PROBING,
    FUSED,
    HEAD_AT_HOME,
    PROMPT,
    RAPT,
    SEEDS_FOR_AN_INTERVAL,
    ComparisonPlan,
    digest_weights,
)
from rapt.compare.summary import Accuracy, Difference, HomeWin, Summary
from rapt.compare.tables import (
    list_accuracies,
    list_attacks,
    list_differences,
    list_exposures,
    name_crowd,
    weigh_exposure,
    write_latex,
    write_markdown,
    write_signed,
    write_signed_interval,
)
from rapt.compare.texts import Split
from rapt.drawing import Figure, Line, write_values
from rapt.errors import UsageError
from rapt.local.distances import TableDistances, measure_distances
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.noise_expected import read_noise_expected
from rapt.severity import Severity
from rapt.version import __version__
from rapt.whole_files import write_whole
from rapt.wire.mechanism_setting import MechanismSetting

STYLES: Final = {name: f"arm-{place}" for place, name in enumerate(ARMS)}
_STEP: Final = 5.0  # points of accuracy; the axis ends at multiples of it


def draw_conclusions(summary: Summary) -> Iterator[str]:
    """The conclusions, the most important first: where staying at home is as good, nothing else matters."""
    yield from _praise_home(summary)
    for item in summary.differences:
        if (item.arm, item.other) in ((CODES_AT_HOME, HEAD_AT_HOME), (CODES_PRIVATELY, HEAD_AT_HOME)):
            yield (
                f"At ε = {item.epsilon:g}, {item.arm}, of {name_crowd(item.crowd)} contributors of one text, against "
                f"{item.other} with as many texts: {_word(item)}."
            )
    for item in summary.differences:
        if (item.arm, item.other) == (RAPT, PROMPT):
            yield f"At η = {item.eta:g}, reconstruction {_word(item)}."
    for item in summary.differences:
        if item.arm in (DENOISED, DENOISED_PROBING) and item.other in (PROMPT, RAPT):
            head = " and a head alone" if item.arm == DENOISED_PROBING else ""
            yield f"At η = {item.eta:g}, a backbone that expects noise{head}, against {item.other}: {_word(item)}."
    for item in summary.differences:
        if item.arm == RAPT and item.other not in (PROMPT, CLEAN):
            yield f"At η = {item.eta:g}, RAPT against its control “{item.other}”: {_word(item)}."
    for item in summary.differences:
        if (item.arm, item.other) == (PROMPT, CLEAN):
            yield f"At η = {item.eta:g}, privacy cost {-item.points.value:.1f} points without reconstruction."
    if blind := [item for item in summary.accuracies if item.over_most_frequent and item.over_most_frequent.low <= 0]:
        arms = "; ".join(map(_name_setting, blind))
        yield f"No better than always naming the most frequent label, as far as can be told: {arms}."
    fewest = min((len(item.seeds) for item in summary.accuracies), default=0)
    if fewest < SEEDS_FOR_AN_INTERVAL:
        yield (
            f"Some arm has {_count_seeds(fewest)}: below {SEEDS_FOR_AN_INTERVAL}, an interval "
            "understates how much another seed would change."
        )


def _praise_home(summary: Summary) -> Iterator[str]:
    """Where home wins, and where it may be as good, each with the fewest texts; then where it is worse."""
    won = [item for item in summary.home_wins if item.points.low > 0]
    near = [item for item in summary.home_wins if item.points.low <= 0 <= item.points.high]
    lost = [item for item in summary.home_wins if item.points.high < 0]
    for item in won[:1]:
        said = _compare_home(item, "is better than")
        yield f"Home wins: with {name_crowd(item.texts)} labelled texts of one's own, {said}."
    for item in near[:1]:
        side = "above" if item.points.value > 0 else "below"
        verb = f"is {side}, by less than can be told from chance," if item.points.value else "is as good as"
        said = _compare_home(item, verb)
        yield f"Home may be as good: with {name_crowd(item.texts)} labelled texts of one's own, {said}."
    for item in lost[-1:]:
        yield f"With {name_crowd(item.texts)} texts of one's own, {_compare_home(item, 'is worse than')}."


def _compare_home(item: HomeWin, verb: str) -> str:
    setting = f"η = {item.other_eta:g}" if item.other_eta is not None else f"ε = {item.other_epsilon:g}"
    return (
        f"{item.home} ({100 * item.accuracy:.1f} %), which sends nothing, {verb} the best way that sends something "
        f"protected ({100 * item.other_accuracy:.1f} %: {item.other} at {setting}, {name_crowd(item.other_crowd)} "
        f"texts); difference {write_signed(item.points.value)} points ({write_signed_interval(item.points)})"
    )


def _count_seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _name_setting(item: Accuracy) -> str:
    said = item.arm + ("" if item.eta is None else f" at η = {item.eta:g}")
    said += "" if item.epsilon is None else f" at ε = {item.epsilon:g}"
    return said + (f", {name_crowd(item.crowd)} texts" if item.crowd else "")


def _word(item: Difference) -> str:
    points = item.points
    amount = f"{write_signed(points.value)} points ({write_signed_interval(points)}, {_count_seeds(len(item.seeds))})"
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
    """A table of the page; `severities` are those of the rows below the header, or none."""

    title: str
    note: str
    cells: Sequence[Sequence[str]]
    severities: Sequence[Severity] = ()


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
        created: Date of the report.
        command: Command that makes the numbers again.

    Raises:
        UsageError: The folder cannot be written.
    """
    distances = measure_distances(load_vocabulary(plan.model)) if summary.etas else None
    tables = _make_tables(summary, distances)
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
        facts=_list_facts(plan),
        command=command,
    )
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "created": created,
        "created_by": page.created_by,
        "command": command,
        "setting": page.setting,
        "plan": asdict(plan)
        | {"model": model, "options": dict(plan.options), "denoised": denoised}
        | ({} if plan.codes is None else {"codes": Path(plan.codes).name}),
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
            (PAGE, _load_template().render(page=page, drawing=drawing)),
        ):
            write_whole(folder / name, content)
    except OSError as error:
        raise UsageError(
            f"a comparison must be writable, got {error.strerror or type(error).__name__}; "
            "free space or choose another folder"
        ) from None
    return folder / PAGE


def plot_accuracies(summary: Summary, distances: TableDistances | None) -> tuple[Figure, ...]:
    """Accuracy over η, over ε, and over what the strongest attack recovers, where the axis has two settings at least.

    Args:
        summary: Summary of the results.
        distances: Distances in the vocabulary's table, to turn η into ε = η·d at the median distance to the nearest;
            None where no arm has an η.
    """
    clear = summary.accuracy(CLEAN, None)
    near = 0.0 if distances is None else distances.nearest_50
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
            {item.eta: 100 * item.recovered for item in summary.attacks if item.eta is not None and not item.policy},
        ),
    ]
    largest = max((item.crowd or math.inf for item in summary.accuracies), default=math.inf)
    drawn = [item for item in summary.accuracies if (item.crowd or math.inf) == largest]
    figures = [
        (title, across, _plot(drawn, partial(_find_eta, place))) for title, across, place in axes if len(place) > 1
    ]
    if len({item.epsilon for item in drawn if item.epsilon is not None}) > 1:
        figures.append(
            ("Accuracy over ε of a whole text", "ε of a whole text, nats", _plot(drawn, lambda item: item.epsilon))
        )
    for setting in dict.fromkeys((item.eta, item.epsilon) for item in summary.accuracies):
        those = [item for item in summary.accuracies if item.crowd and _matches_setting(item, setting)]
        if setting != (None, None) and len({item.crowd for item in those}) > 1:
            at = f"η = {setting[0]:g}" if setting[0] is not None else f"ε = {setting[1]:g}"
            across = "training texts, log₁₀: of one person at home, of as many contributors elsewhere"
            figures.append((f"Accuracy over the crowd at {at}", across, _plot(those, lambda x: math.log10(x.crowd))))
    return tuple(
        Figure(
            title=title,
            across=across,
            up="accuracy, %",
            lines=lines,
            level=None if clear is None else 100 * clear.accuracy.value,
            step=_STEP,
        )
        for title, across, lines in figures
    )


def _find_eta(place: Mapping[float, float], item: Accuracy) -> float | None:
    return None if item.eta is None else place.get(item.eta)


def _matches_setting(item: Accuracy, setting: tuple[float | None, float | None]) -> bool:
    """Whether an accuracy is at a setting, or at home, which is the same at all."""
    return (item.eta, item.epsilon) == setting or ARMS[item.arm].unit == "home"


def _plot(items: Sequence[Accuracy], place: Callable[[Accuracy], float | None]) -> tuple[Line, ...]:
    lines = []
    for arm in dict.fromkeys(item.arm for item in items):
        found = [(at, item) for item in items if item.arm == arm and (at := place(item)) is not None]
        if found:
            lines.append(
                Line(
                    name=arm,
                    points=tuple((at, 100 * item.accuracy.value) for at, item in found),
                    ends=tuple((100 * item.accuracy.low, 100 * item.accuracy.high) for _, item in found),
                    style=STYLES[arm],
                )
            )
    return tuple(lines)


def _make_tables(summary: Summary, distances: TableDistances | None) -> tuple[Table, ...]:
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
            severities=[weigh_exposure(item) for item in summary.attacks if item.eta is not None],
        ),
        Table(
            title="What is given away",
            note=(
                "Words: tokens recovered of tokens, five tokens that are named of each text of codes. Recognized: the "
                "right text among so many in clear, by the best attack. Bits: what a release says about which it is. "
                "ε is the formal bound: of a whole text for codes, of the farthest two words that were found for "
                "tokens; the two are other promises and never compared."
            ),
            cells=list_exposures(summary, distances=distances),
            severities=[
                weigh_exposure(item)
                for item in summary.attacks
                if None not in (item.linked, item.linked_low, item.linked_high, item.bits)
            ],
        ),
    )
    return tuple(table for table in found if len(table.cells) > 1)


def _list_facts(plan: ComparisonPlan) -> tuple[tuple[str, str], ...]:
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
        *([("code", Path(plan.codes).name)] if plan.codes is not None else []),
        *([("own texts of the arm fused", str(plan.own_texts))] if FUSED in plan.arms else []),
        ("seeds", ", ".join(map(str, plan.seeds))),
        *_describe_noise(plan),
    )


def _describe_noise(plan: ComparisonPlan) -> Iterator[tuple[str, str]]:
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
def _load_template() -> Template:
    # Style and colours are the audit's, so that a reader of both finds his way.
    loader = ChoiceLoader([PackageLoader("rapt.compare"), PackageLoader("rapt.audit.report")])
    return open_templates().overlay(loader=loader).get_template("comparison.html.j2")
