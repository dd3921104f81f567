"""The report on tuned models: a page of the same make as the audit's, and its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any, Final

from rapt.audit.artefact.run import ArtefactFindings
from rapt.audit.report import charts, environment, without_schema, write_pair
from rapt.audit.report.artefact_verdict import artefact_verdict, not_tried
from rapt.audit.report.values import Figure, Line
from rapt.audit.values_json import from_json, to_json

SCHEMA: Final = "rapt.artefact-report/2"
TITLES: Final = {
    "hierarchical": "Hierarchical likelihood ratio, shadow models with and without the text",
    "lira_online": "LiRA, shadow models with and without the text",
    "lira_offline": "LiRA, shadow models without the text",
    "rmia": "RMIA, against other texts and shadow models",
    "threshold": "Confidence alone",
    "nearest": "Nearest rows of the table",
    "nearest_shadows": "Nearest rows, against shadow models",
    "asked": "Each word asked about, against shadow models",
}


@dataclass(frozen=True, kw_only=True)
class ArtefactReport:
    """Everything on one page.

    Attributes:
        title: For people.
        created: Date, as it is to be printed.
        created_by: Program and version.
        findings: What was found.
        commands: Lines that make the numbers again.
    """

    title: str
    created: str
    created_by: str
    findings: ArtefactFindings
    commands: tuple[str, ...] = ()


def render_artefact_report(report: ArtefactReport) -> str:
    """The page, complete in itself."""
    return (
        environment()
        .get_template("artefact.html.j2")
        .render(
            report=report,
            found=report.findings,
            verdict=artefact_verdict(report.findings),
            not_tried=not_tried(report.findings),
            figure=releases_figure(report.findings),
            titles=TITLES,
            charts=charts,
        )
    )


def releases_figure(found: ArtefactFindings) -> Figure | None:
    """Recovered words over the number of releases, or None where there is no curve."""
    if len(found.releases) < 2:
        return None
    return Figure(
        title="What repeated releases add up to",
        across="releases of each text, by their logarithm to base 10",
        up="Share of words named rightly",
        lines=(
            Line(
                name=f"{found.mechanism}, η = {found.eta:g}",
                points=tuple((log10(point.releases), point.recovered.value) for point in found.releases),
            ),
            Line(name="blind guess", points=tuple((log10(point.releases), point.chance) for point in found.releases)),
        ),
    )


def artefact_report_to_json(report: ArtefactReport) -> dict[str, Any]:
    """The report as plain JSON values."""
    return {"schema": SCHEMA, **to_json(report)}


def artefact_report_from_json(value: dict[str, Any]) -> ArtefactReport:
    """The report that `artefact_report_to_json` wrote.

    Raises:
        AuditError: The schema is another, or a field does not fit.
    """
    return from_json(ArtefactReport, without_schema(value, schema=SCHEMA))


def write_artefact_report(report: ArtefactReport, folder: Path) -> tuple[Path, Path]:
    """Write both forms; each appears whole or not at all. Returns their paths.

    Raises:
        AuditError: The folder cannot be written.
    """
    return write_pair(folder, page=render_artefact_report(report), values=artefact_report_to_json(report))
