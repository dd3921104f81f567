"""`rapt demo`: the main job on real text, from a file of tweets to a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli import output
from rapt.cli.options import AsJson
from rapt.cli.output import format_share, format_table, show, show_json

if TYPE_CHECKING:
    from rapt.demo.plan import DemoResult


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier demo in it is replaced.")] = Path("rapt-demo"),
    eta: Annotated[float | None, typer.Option(metavar="NUMBER", help="Another slope than the demo's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the main job on real tweets, in minutes.

    Privatizes them, starts a service as another process, tunes it on the privatized file with and without
    reconstruction, predicts privatized queries, attacks the file, and writes OUT/report.html and OUT/report.json.
    OUT/trusted holds the plain text and OUT/service everything that the service kept.

    \b
    Example:
      rapt demo --out rapt-demo
    """
    from rapt.audit.report import HTML
    from rapt.demo.plan import DemoPlan
    from rapt.demo.run import run_demo
    from rapt.wire.mechanism_setting import check_eta

    plan = DemoPlan() if eta is None else replace(DemoPlan(), eta=check_eta(eta))
    result = run_demo(plan, out=out, narrator=output)
    if as_json:
        show_json({"report": str(out / HTML)} | result.to_json())
    else:
        show(format_results(result))
        show(f"report: {out / HTML}")


def format_results(result: DemoResult) -> str:
    """The runs and the attacks, for a terminal."""
    plan = result.plan
    rows = [[row.name, *format_share(row.accuracy)] for row in result.rows]
    attacks = [
        [found.title, *format_share(found.score.all_tokens.first), f"{found.score.all_tokens.chance:.1%}"]
        for found in result.audit.results
    ]
    leak = result.leak
    naming = [
        [f"{item.candidates:,}", *format_share(item.first), f"{item.chance:.2%}", f"{item.bound:.1%}"]
        for item in result.codes.naming
    ]
    return "\n".join(
        [
            "",
            format_table(
                [
                    f"{plan.training:,} tweets: tokens at eta = {plan.eta:g}, codes at epsilon = {plan.epsilon:g}",
                    "accuracy",
                    "95 % interval",
                ],
                rows,
            ),
            "",
            format_table(
                ["attack on the privatized tokens", "recovered", "95 % interval", "without the text"], attacks
            ),
            "",
            format_table(
                ["a tweet named by its code, among", "right", "95 % interval", "without the file", "at most"], naming
            ),
            "",
            f"searched the service's {leak.files} files ({leak.bytes / 1e6:.0f} MB) for {leak.runs:,} runs of five "
            f"words of the plain text: found in {len(leak.leaked)} of them",
            f"{result.seconds:.0f} s in all",
        ]
    )
