"""The report: one HTML file that needs nothing else, and one JSON with the same values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from math import log10
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from rapt import drawing
from rapt.audit.formal import FormalSide
from rapt.audit.intervals import Share
from rapt.audit.kept_results import to_json
from rapt.audit.report.values import Report
from rapt.audit.report.verdict import list_not_attacked, state_verdict
from rapt.drawing import Figure, Line
from rapt.errors import AuditError, UsageError
from rapt.severity import GIVEN_AWAY, PALETTE, weigh_attack
from rapt.whole_files import check_target, write_whole
from rapt.wire.vocabulary_bundle import shorten_hash

SCHEMA: Final = "rapt.audit-report/1"
HTML: Final = "report.html"
JSON: Final = "report.json"


def render_report(report: Report) -> str:
    """The page, complete in itself: style and drawings inline, no script, nothing loaded from anywhere."""
    return (
        open_templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            audit=report.audit,
            verdict=state_verdict(report.audit, attributes=report.attributes),
            not_attacked=list_not_attacked(report.audit, attributes=bool(report.attributes)),
            loss_figure=None if report.formal is None else loss_figure(report.formal),
            drawing=drawing,
        )
    )


def report_to_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values."""
    return {"schema": SCHEMA, **to_json(report)}


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.json`; each appears whole or not at all. Returns their paths.

    Raises:
        AuditError: The folder cannot be written.
    """
    return write_pair(folder, page=render_report(report), values=report_to_json(report))


def write_pair(folder: Path, *, page: str, values: dict[str, Any]) -> tuple[Path, Path]:
    """Write a page and its values as `report.html` and `report.json`; see `write_report`."""
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    written = write_files(folder, {HTML: page, JSON: text})
    return written[0], written[1]


def check_report_folder(folder: Path) -> None:
    """Refuse a name under which no report can be written; best called before any work.

    Raises:
        UsageError: The folder, or one that it is in, is something else, or a file of the report cannot be replaced.
    """
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    if there is not None and not there.is_dir():
        raise UsageError(f"a report must be written to a folder, got something else at {str(there)!r}; name another")
    for name in (HTML, JSON):
        check_target(folder / name, overwrite=True)


def write_files(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write the files of a report, contents by name, into a folder that is made if need be. Returns their paths.

    Raises:
        AuditError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [write_whole(folder / name, content) for name, content in contents.items()]
    except OSError as error:
        raise AuditError(
            f"a report must be writable, got {error.strerror or type(error).__name__}; "
            "free space or choose another folder"
        ) from None


@cache
def open_templates() -> Environment:
    """Return the templates of every page, with escaping and figures as this project writes them."""
    made = Environment(
        loader=PackageLoader("rapt.audit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": _format_percent,
        "signed": _format_signed,
        "interval": _format_interval,
        "count": _count,
    }
    made.filters |= {"short_hash": shorten_hash, "delta": write_power_of_ten}
    made.globals |= {"palette": PALETTE, "given_away": GIVEN_AWAY, "weigh_attack": weigh_attack}
    return made


def loss_figure(formal: FormalSide) -> Figure | None:
    """The curves that change with δ, or None: a pure bound is a number and not a curve."""
    lines = tuple(
        Line(name=curve.name, points=tuple((round(log10(delta), 6), epsilon) for delta, epsilon in curve.points))
        for curve in formal.curves
    )
    if not lines or formal.pure_only:
        return None
    return Figure(title="Loss curves", across="δ, the chance that is left out", up="ε in nats", lines=lines)


def write_power_of_ten(delta: float) -> str:
    """A power of ten as people write it: 10⁻⁵."""
    return "10" + f"{round(log10(delta)):d}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _format_signed(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def _format_interval(share: Share) -> str:
    return f"{100 * share.low:.1f}–{100 * share.high:.1f}\N{NO-BREAK SPACE}%"


def _count(number: int) -> str:
    return f"{number:,}"
