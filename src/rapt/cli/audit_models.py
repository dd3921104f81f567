"""`rapt audit-model` and `rapt audit-adapter`: what do tuned models give away about the texts behind them?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli import output
from rapt.cli.options import (
    AllowUnproved,
    AsJson,
    AuditSeed,
    ChosenEngine,
    Engine,
    Eta,
    MechanismOptions,
    RayAddress,
    open_engine,
    read_options,
    warn_of_calibration,
)
from rapt.cli.output import format_table, show, show_finding, show_json
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.audit.artefact.membership import NamedScore
    from rapt.audit.artefact.run import ArtefactFindings
    from rapt.audit.report.artefact import ArtefactReport

_Queries = Annotated[
    int, typer.Option(metavar="N", min=1, help="Fresh privatizations of a text to ask about, averaged.")
]
_Threads = Annotated[int, typer.Option(metavar="N", min=1, help="Threads of the processor to use.")]
_Out = Annotated[Path | None, typer.Option(help="Folder for report.html and report.json, which hold no text.")]


def audit_adapter(
    adapter: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The adapter's files, as a service hands them out, unpacked.")
    ],
    members: Annotated[
        Path, typer.Option(metavar="FILE", help="Labelled texts in clear that it was tuned on; they stay here.")
    ],
    others: Annotated[
        Path, typer.Option(metavar="FILE", help="Labelled texts of the same kind that it was not tuned on.")
    ],
    sent: Annotated[
        Path | None,
        typer.Option(metavar="PRIVATIZED", help="The file that was sent; needed where it has plain tokens."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text, in both files.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column that holds the label, in both files.")] = "label",
    model: Annotated[
        str | None, typer.Option(help="Backbone: a known model or a model folder; default: the adapter's.")
    ] = None,
    records: Annotated[
        int, typer.Option(metavar="N", min=2, help="Take at most so many texts of each file, drawn at random.")
    ] = 400,
    shadows: Annotated[
        int, typer.Option(metavar="N", min=3, help="Models to tune for comparison, each on a part of both files.")
    ] = 8,
    queries: _Queries = 4,
    seed: AuditSeed = 0,
    threads: _Threads = 1,
    out: _Out = None,
    as_json: AsJson = False,
) -> None:
    """Attack an adapter that you have: does it show which texts it was tuned on?

    Membership inference (LiRA, RMIA, a hierarchical ratio) against models that are tuned here as the adapter's card
    says, through the same mechanism; nothing is sent. The same attacks on those models check that the two files are of
    one kind.

    \b
    Example:
      rapt audit-adapter adapter --members reviews.csv --others held-back.csv --out audit-adapter
    """
    from rapt.audit import AdapterAuditPlan
    from rapt.audit import audit_adapter as run_audit

    report = run_audit(
        AdapterAuditPlan(
            adapter=adapter,
            members=members,
            others=others,
            sent=sent,
            text_column=text_column,
            label_column=label_column,
            model=model,
            records=records,
            shadows=shadows,
            queries=queries,
            seed=seed,
            threads=threads,
            out=out,
        ),
        narrator=output,
    )
    _show_report(report, as_json=as_json)


def audit_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labelled texts in clear; they stay here.")],
    eta: Eta,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column that holds the label.")] = "label",
    model: Annotated[str, typer.Option(help="Backbone: a known model or a model folder.")] = "minilm",
    mechanism: Annotated[str, typer.Option(help="Mechanism, one of `rapt mechanisms`.")] = "laplace",
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    method: Annotated[str, typer.Option(help="Tuning method, one of those of `rapt tune`.")] = "prompt_tuning",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 3,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Number of records in each step.")] = 32,
    learning_rate: Annotated[float | None, typer.Option(metavar="NUMBER", help="Default: the method's own.")] = None,
    records: Annotated[
        int, typer.Option(metavar="N", min=2, help="Play with at most so many texts, drawn at random.")
    ] = 400,
    models: Annotated[
        int, typer.Option(metavar="N", min=3, help="Models of each kind, each on half of the texts.")
    ] = 8,
    queries: _Queries = 4,
    canaries: Annotated[int, typer.Option(metavar="N", min=1, help="Planted sentences of each kind.")] = 8,
    repetitions: Annotated[
        str, typer.Option(metavar="R,R,...", help="Copies of each planted sentence; 0 is a control.")
    ] = "0,1,10,100",
    releases: Annotated[
        str, typer.Option(metavar="R,R,...", help="Releases of a text that the attacker combines.")
    ] = "1,3,10,30",
    attacks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Parts of the audit: membership, words, canaries, releases. Default: all."
        ),
    ] = None,
    seed: AuditSeed = 0,
    threads: _Threads = 1,
    out: _Out = None,
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Cores of a Ray that is started here, with --engine ray.")
    ] = 1,
    engine: ChosenEngine = Engine.LOCAL,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Measure what models tuned on your texts give away: who was in the training, and what repetition costs.

    Tunes models here, on random halves of FILE, in clear and through the mechanism; nothing is sent. Each is then
    attacked by somebody who holds it and all the others: membership (LiRA, RMIA, a hierarchical ratio), planted
    sentences, words that can be read off it. Several releases of a text are laid on top of each other as well, which
    needs no model.

    \b
    Example:
      rapt audit-model reviews.csv --eta 75 --out audit-model
      rapt audit-model reviews.csv --eta 75 --out audit-model --engine ray --processes 2
    """
    from rapt.audit import ModelAuditPlan
    from rapt.audit import audit_model as run_audit
    from rapt.audit.artefact.run import PARTS, ArtefactPlan

    if engine is Engine.LOCAL and processes > 1:
        raise UsageError("--processes must come with --engine ray; add that, or give --threads")
    options = read_options(mechanism, settings)
    warn_of_calibration(options)
    with open_engine(engine, address=ray_address, cores=processes) as cluster:
        report = run_audit(
            ModelAuditPlan(
                file=file,
                eta=eta,
                text_column=text_column,
                label_column=label_column,
                model=model,
                mechanism=mechanism,
                options=options,
                allow_unproved=allow_unproved,
                method=method,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                records=records,
                attacks=ArtefactPlan(
                    parts=PARTS if attacks is None else tuple(name.strip() for name in attacks.split(",")),
                    models=models,
                    queries=queries,
                    canaries=canaries,
                    repetitions=read_numbers(repetitions, option="--repetitions", least=0),
                    releases=read_numbers(releases, option="--releases", least=1),
                    seed=seed,
                ),
                threads=threads,
                out=out,
            ),
            narrator=output,
            cluster=cluster,
        )
    _show_report(report, as_json=as_json)


def _show_report(report: ArtefactReport, *, as_json: bool) -> None:
    from rapt.audit.report.artefact import artefact_report_to_json, state_artefact_verdict

    if as_json:
        show_json(artefact_report_to_json(report))
    else:
        verdict = state_artefact_verdict(report.findings)
        show_finding(verdict.headline + "\n", verdict.severity)
        show(format_findings(report.findings))


def read_numbers(listed: str, *, option: str, least: int) -> tuple[int, ...]:
    """Whole numbers from `least` on, separated by commas, sorted (`UsageError`)."""
    try:
        found = tuple(sorted({int(part) for part in listed.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < least:
        raise UsageError(f"{option} must be whole numbers from {least}, separated by commas, such as 1,10,100")
    return found


def format_findings(found: ArtefactFindings) -> str:
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
        parts.append(format_table(head, rows))
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
            format_table(["membership", "attack", "AUC", "95 % interval", "at 0.1 %", "at 1 %", "at 10 %", "p"], rows)
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
        parts.append(format_table(["canaries", "bits, 1.44 by chance", "95 % interval", "middle rank", "p"], rows))
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
        parts.append(format_table(["words", "AUC", "95 % interval", "of the first 20", "by chance", "p"], rows))
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
        parts.append(format_table(["releases of each text", "words recovered", "95 % interval", "blind"], rows))
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
