"""What attacks on models found, handed over: as a page, as JSON, or as tables for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rapt.cli.output import say, show, show_json, table

if TYPE_CHECKING:
    from rapt.audit.artefact.game import NamedScore
    from rapt.audit.artefact.run import ArtefactFindings


def hand_over(
    found: ArtefactFindings, *, title: str, command: Sequence[object], out: Path | None, as_json: bool
) -> None:
    """Write the report if a folder is given, and show what was found.

    Args:
        found: By the audit.
        title: Of the page.
        command: Words of the command that makes the numbers again, without folders.
        out: For `report.html` and `report.json`.
        as_json: Whether one JSON document is shown in place of tables.

    Raises:
        AuditError: The folder cannot be written.
    """
    from rapt.audit.report.artefact_page import ArtefactReport, artefact_report_to_json, write_artefact_report
    from rapt.version import __version__

    report = ArtefactReport(
        title=title,
        created=datetime.now(UTC).date().isoformat(),
        created_by=f"rapt {__version__}",
        findings=found,
        commands=(shlex.join(str(word) for word in command),),
    )
    if out is not None:
        page, _ = write_artefact_report(report, out)
        say(f"report: {page}")
    if as_json:
        show_json(artefact_report_to_json(report))
    else:
        show(findings_tables(found))


def findings_tables(found: ArtefactFindings) -> str:
    """Everything that was found, for a terminal."""
    parts = []
    if found.given is not None:
        rows = [
            [
                f"asked in {attack.asked_with}" + ("" if attack.counts else " (does not count)"),
                attack.named.attack,
                *score_cells(attack.named),
                f"{attack.control.value:.3f}",
            ]
            for attack in found.given.attacks
        ]
        head = ["the adapter", "attack", "AUC", "95 % interval", "at 0.1 %", "at 1 %", "at 10 %", "p", "check"]
        parts.append(table(head, rows))
    if found.membership:
        rows = [
            [
                f"tuned on {result.tuned_on}, asked in {result.asked_with}",
                named.attack,
                *score_cells(named),
            ]
            for result in found.membership
            for named in result.attacks
        ]
        parts.append(
            table(["membership", "attack", "AUC", "95 % interval", "at 0.1 %", "at 1 %", "at 10 %", "p"], rows)
        )
    if found.canaries:
        rows = [
            [
                f"tuned on {result.tuned_on}, put in {times(result.repetitions)}",
                f"{result.exposure:.2f}",
                f"{result.low:.2f}–{result.high:.2f}",
                f"{sorted(result.ranks)[len(result.ranks) // 2]:,} of {result.candidates:,}",
                f"{result.p:.1g}",
            ]
            for result in found.canaries
        ]
        parts.append(table(["canaries", "bits, 1.44 by chance", "95 % interval", "middle rank", "p"], rows))
    if found.words:
        rows = [
            [
                f"tuned on {reading.tuned_on}, {reading.reader}",
                f"{reading.score.auc.value:.3f}",
                f"{reading.score.auc.low:.3f}–{reading.score.auc.high:.3f}",
                f"{reading.first.value:.1%}",
                f"{reading.chance:.1%}",
                f"{reading.score.p:.1g}",
            ]
            for reading in found.words
        ]
        parts.append(table(["words", "AUC", "95 % interval", "of the first 20", "by chance", "p"], rows))
    if found.releases:
        rows = [
            [
                f"{point.releases}",
                f"{point.recovered.value:.1%}",
                f"{100 * point.recovered.low:.1f}–{100 * point.recovered.high:.1f} %",
                f"{point.chance:.1%}",
            ]
            for point in found.releases
        ]
        parts.append(table(["releases of each text", "words recovered", "95 % interval", "blind"], rows))
    return "\n\n".join(parts)


def score_cells(named: NamedScore) -> list[str]:
    """AUC, its interval, the rates of true positives and p of one attack."""
    score = named.score
    return [
        f"{score.auc.value:.3f}",
        f"{score.auc.low:.3f}–{score.auc.high:.3f}",
        *("too few" if rate.rate is None else f"{rate.rate.value:.1%}" for rate in score.true_positives),
        f"{score.p:.1g}",
    ]


def times(count: int) -> str:
    """How often, in words."""
    return {0: "never", 1: "once"}.get(count, f"{count} times")
