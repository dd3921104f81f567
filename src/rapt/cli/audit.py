"""`rapt audit`: attack your own privatized file, before somebody else does."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli.demo import percent
from rapt.cli.options import AsJson
from rapt.cli.output import Meter, meter, say, show, show_json
from rapt.cli.output import table as columns

if TYPE_CHECKING:
    from rapt.audit.audit import AuditReport
    from rapt.local.vocabulary import Vocabulary
    from rapt.wire.manifest import Manifest


def audit(
    file: Annotated[Path, typer.Argument(metavar="PRIVATIZED", help="Privatized file to attack.")],
    original: Annotated[
        Path, typer.Option(metavar="FILE", help="The texts it was made from; only the score reads them.")
    ],
    text_column: Annotated[str, typer.Option(help="Column of FILE that holds the text.")] = "text",
    label_column: Annotated[
        str, typer.Option(help="Column that holds the label, to check that both files belong together.")
    ] = "label",
    public_text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public texts like the private ones, for the attacker to count words in."),
    ] = None,
    public_text_column: Annotated[str, typer.Option(help="Column of the public texts that holds the text.")] = "text",
    attacks: Annotated[str | None, typer.Option(metavar="A,B,...", help="Which attacks; default: all.")] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="Known model, model folder or fetched bundle; default: PRIVATIZED's model.")
    ] = None,
    truncate: Annotated[int | None, typer.Option(metavar="N", min=1, help="As given to `rapt privatize`.")] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Attack a random part of about N tokens, in whole texts.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of everything that the audit draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.json, which hold no text.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much of the texts a curious service can recover.

    Each attack sees what the service sees and nothing else; its guesses are then scored against the original. Attackers
    who use context recover more: the report says what was not tried.

    \b
    Example:
      rapt audit reviews.rapt.jsonl --original reviews.csv --out audit
    """
    from rapt.audit.attacks import ATTACKS
    from rapt.audit.audit import audit as run_audit
    from rapt.audit.priors import read_prior
    from rapt.audit.report import report_to_json, write_report
    from rapt.audit.report.values import Report
    from rapt.audit.view import adversary_view, read_truth, sample_records
    from rapt.local.vocabulary import load_vocabulary
    from rapt.version import __version__
    from rapt.wire.privatized_file import read_privatized_file

    names = tuple(ATTACKS) if attacks is None else tuple(name.strip() for name in attacks.split(","))
    private = read_privatized_file(file)
    table = load_vocabulary(vocabulary or private.manifest.model)
    prior = None if public_text is None else read_prior(public_text, table.bundle, text_column=public_text_column)
    view = adversary_view(private, table.bundle, prior=prior)
    truth = read_truth(view, original, text_column=text_column, label_column=label_column, truncate_to=truncate)
    if limit is not None:
        view, truth = sample_records(view, truth, tokens=limit, seed=seed)
    with meter("attacking", total=100, unit="%") as progress:
        found = run_audit(view, truth, attacks=names, seed=seed, on_progress=stages(progress, count=len(names) + 1))
    report = Report(
        title=f"Audit of {file.name}",
        created=datetime.now(UTC).date().isoformat(),
        created_by=f"rapt {__version__}",
        audit=found,
        statement=statement_text(table, private.manifest),
        commands=(command_line(file, original, seed=seed, limit=limit, public_text=public_text),),
    )
    if out is not None:
        page, _ = write_report(report, out)
        say(f"report: {page}")
    if as_json:
        show_json(report_to_json(report))
    else:
        show(audit_table(found))


def stages(progress: Meter, *, count: int) -> Callable[[str, float], None]:
    """A receiver of stages that come one after another, shown as one piece of work."""
    seen: list[str] = []

    def show_stage(stage: str, share: float) -> None:
        if stage not in seen:
            seen.append(stage)
        progress(int(100 * (len(seen) - 1 + share) / count), note=stage.replace("_", " "))

    return show_stage


def statement_text(vocabulary: Vocabulary, manifest: Manifest) -> str:
    """The privacy statement of a file, or nothing for a mechanism without one."""
    from rapt.local.guarantee import PROMISES, privacy_statement

    if manifest.mechanism.name not in PROMISES:
        return ""
    return privacy_statement(
        vocabulary,
        manifest.mechanism,
        plain_tokens=manifest.plain_tokens,
        labels_sent=manifest.labels is not None,
        label_privacy=manifest.label_privacy,
        randomness=manifest.randomness,
    ).to_text()


def command_line(file: Path, original: Path, *, seed: int, limit: int | None, public_text: Path | None) -> str:
    """What makes the numbers again; names of files, without the folders they are in."""
    words = ["rapt", "audit", file.name, "--original", original.name, "--seed", str(seed)]
    words += [] if limit is None else ["--limit", str(limit)]
    words += [] if public_text is None else ["--public-text", public_text.name]
    return shlex.join(words)


def audit_table(found: AuditReport) -> str:
    """Every attack and the bound on all of their kind, for a terminal."""
    rows = [
        [result.title, *percent(result.score.all_tokens.first), f"{result.score.all_tokens.chance:.1%}"]
        for result in found.results
    ]
    if found.bound is not None:
        rows.append(["any attack without context", *percent(found.bound.success), ""])
    lines = [
        f"{found.records:,} of {found.of_records:,} texts, {found.tokens:,} tokens, {found.mechanism} at "
        f"eta = {found.eta:g}; {found.unchanged.value:.1%} of the tokens are unchanged",
        "",
        columns(["attack", "recovered", "95 % interval", "without the file"], rows),
        *(f"not run: {skipped.attack}: {skipped.reason}" for skipped in found.skipped),
        *(f"warning: {warning}" for warning in found.warnings),
    ]
    return "\n".join(lines)
