"""The report of a comparison: one HTML page, one JSON, and the tables in Markdown and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from rapt.compare.arms import ARMS
from rapt.compare.curves import STYLES, Plot, draw, plots
from rapt.compare.paper_table import accuracy_cells, attack_cells, difference_cells, latex, markdown
from rapt.compare.plan import ComparisonPlan, weights_digest
from rapt.compare.summary import Summary
from rapt.compare.texts import Split
from rapt.compare.verdict import verdict
from rapt.errors import UsageError
from rapt.local.distances import table_distances
from rapt.local.vocabulary import load_vocabulary
from rapt.service.model.noise_expected import read_noise_expected
from rapt.version import __version__
from rapt.whole_files import write_whole
from rapt.wire.manifest import MechanismSetting

SCHEMA: Final = "rapt.comparison-report/1"
PAGE, VALUES, MARKDOWN, LATEX = "comparison.html", "comparison.json", "comparison.md", "comparison.tex"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page."""

    title: str
    note: str
    cells: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Page:
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
    plots: tuple[Plot, ...]
    tables: tuple[Table, ...]
    arms: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    command: str


def write_comparison(
    plan: ComparisonPlan, split: Split, summary: Summary, folder: Path, *, title: str, created: str, command: str
) -> Path:
    """Write the four files; each appears whole or not at all. Returns the path of the page.

    Args:
        plan: What was compared.
        split: The texts; only their numbers are told.
        summary: Of the results.
        folder: There already; it holds the results.
        title: Of the page.
        created: Date.
        command: That makes the numbers again.

    Raises:
        UsageError: The folder cannot be written.
    """
    distances = table_distances(load_vocabulary(plan.model))
    tables = _tables(summary)
    denoised = None if plan.denoised is None else weights_digest(plan.denoised)
    model = Path(plan.model).name  # where it lies is nobody's business
    page = Page(
        title=title,
        created=created,
        created_by=f"rapt {__version__}",
        plan=plan,
        model=model,
        setting=plan.setting(split),
        training=f"{len(split.training):,} {'pairs' if split.training.pairs else 'texts'}",
        evaluation=f"{len(split.evaluation):,}" + (f" each seed, in {len(split.turns)} turns" if split.further else ""),
        verdict=tuple(verdict(summary)),
        plots=tuple(plots(summary, distances)),
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
            (MARKDOWN, "\n".join(f"## {table.title}\n\n{markdown(table.cells)}" for table in tables)),
            (LATEX, "\n".join(latex(table.cells) for table in tables)),
            (PAGE, _template().render(page=page, draw=draw, styles=STYLES)),
        ):
            write_whole(folder / name, content)
    except OSError as error:
        raise UsageError(
            f"a comparison must be writable, got {error.strerror or type(error).__name__}; "
            "free space or choose another folder"
        ) from None
    return folder / PAGE


def _tables(summary: Summary) -> tuple[Table, ...]:
    found = (
        Table(
            title="Accuracy",
            note=(
                "Mean over seeds and over the privatizations of the evaluation texts; 95 % intervals over both. "
                "“Most frequent label” reads no text: it always names the label that most training texts have."
            ),
            cells=accuracy_cells(summary),
        ),
        Table(
            title="Differences on identical files",
            note="In points of accuracy, paired by seed and text.",
            cells=difference_cells(summary),
        ),
        Table(
            title="What an attacker recovers",
            note="The strongest of the attacks that were asked for, on the training file of the first seed.",
            cells=attack_cells(summary),
        ),
    )
    return tuple(table for table in found if len(table.cells) > 1)


def _facts(plan: ComparisonPlan) -> tuple[tuple[str, str], ...]:
    config = plan.config(seed=0)
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
    """What the backbone that expects noise was made for, and where that is not what it was given."""
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
