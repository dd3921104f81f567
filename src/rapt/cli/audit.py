"""`rapt audit`: attack your own privatized file, before somebody else does."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rapt.cli.audit_parts import count_entities, infer_columns, read_column, stages, statement_text
from rapt.cli.audit_tables import attribute_table, audit_table
from rapt.cli.options import AsJson
from rapt.cli.output import meter, say, show, show_json

if TYPE_CHECKING:
    from rapt.local.record_parts import PartColumns

# Tokens of a quick look: half a minute on one core with MiniLM's table.
QUICK_TOKENS: Final = 1500
# A file with fewer records is attacked whole, by attackers who have no text of its kind.
LEAST_TO_LEND: Final = 20


def audit(
    file: Annotated[Path, typer.Argument(metavar="PRIVATIZED", help="Privatized file to attack.")],
    original: Annotated[
        Path, typer.Option(metavar="FILE", help="The texts it was made from; only the score reads them.")
    ],
    text_column: Annotated[str, typer.Option(help="Column of FILE that holds the text.")] = "text",
    text_column_2: Annotated[
        str | None,
        typer.Option("--text-column-2", metavar="NAME", help="Column of FILE that holds the second text of a pair."),
    ] = None,
    target_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of FILE that holds the text to be generated, if it was privatized."),
    ] = None,
    label_column: Annotated[
        str, typer.Option(help="Column that holds the label, to check that both files belong together.")
    ] = "label",
    public_text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public texts like the private ones, for the attacker to count words in."),
    ] = None,
    public_text_column: Annotated[str, typer.Option(help="Column of the public texts that holds the text.")] = "text",
    lend: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=0.9,
            help="Without --public-text: share of FILE that the attacker holds in clear, and which is not attacked. "
            "0 for an attacker without any text.",
        ),
    ] = 0.5,
    attacks: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Which attacks; default: all but tong and causal.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="A column of FILE to infer from each text, such as its author. Repeatable."
        ),
    ] = None,
    entities: Annotated[
        bool,
        typer.Option(
            "--entities",
            help="Count names, places, dates and the like by kind. Needs the extra [entities], spaCy",
        ),
    ] = False,
    vocabulary: Annotated[
        str | None, typer.Option(help="Known model, model folder or fetched bundle; default: PRIVATIZED's model.")
    ] = None,
    truncate: Annotated[int | None, typer.Option(metavar="N", min=1, help="As given to `rapt privatize`.")] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Attack a random part of about N tokens, in whole texts.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"A random part of about {QUICK_TOKENS:,} tokens, and the fast attacks.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of everything that the audit draws.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html and report.json, which hold no text. A run that was interrupted goes on there."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much of the texts a curious service can recover.

    Each attack sees what the service sees and nothing else; its guesses are then scored against the original. Attackers
    learn from public text of the same kind if you have some, else from a random half of FILE that is lent to them.
    Every text that was privatized is attacked: both of a pair, and the target. The report names the strongest attack
    and says what was not tried.

    \b
    Examples:
      rapt audit reviews.rapt.jsonl --original reviews.csv --out audit
      rapt audit pairs.rapt.jsonl --original pairs.csv --text-column sentence1 --text-column-2 sentence2
    """
    from rapt.audit.attacks import ATTACKS, DEFAULT_ATTACKS
    from rapt.audit.audit import audit as run_audit
    from rapt.audit.formal import formal_side
    from rapt.audit.kept_results import keep_results
    from rapt.audit.known_plaintext import known_plaintext
    from rapt.audit.matching import check_parts, read_truth
    from rapt.audit.portions import lend_texts, sample_records
    from rapt.audit.priors import read_public_text
    from rapt.audit.report import report_to_json, write_report
    from rapt.audit.report.values import Report
    from rapt.audit.view import adversary_view
    from rapt.local.record_parts import PartColumns
    from rapt.local.vocabulary import load_vocabulary
    from rapt.version import __version__
    from rapt.wire.privatized_file import read_privatized_file

    fast = tuple(name for name, attack in ATTACKS.items() if attack.fast)
    names = fast if quick else DEFAULT_ATTACKS
    if attacks is not None:
        names = tuple(name.strip() for name in attacks.split(","))
    private = read_privatized_file(file)
    other_texts = PartColumns(second=text_column_2, target=target_column)
    check_parts(private.manifest, other_texts.by_part)
    table = load_vocabulary(vocabulary or private.manifest.model)
    public = (
        None if public_text is None else read_public_text(public_text, table.bundle, text_column=public_text_column)
    )
    view = adversary_view(private, table.bundle, public=public)
    truth = read_truth(
        view,
        original,
        text_column=text_column,
        label_column=label_column,
        other_texts=other_texts,
        truncate_to=truncate,
    )
    columns_to_infer = [
        (column, read_column(original, column, text_column=text_column)) for column in dict.fromkeys(attribute or ())
    ]
    inferred = infer_columns(view, truth, columns_to_infer, seed=seed)
    if public is None and lend > 0 and len(view.records) >= LEAST_TO_LEND:
        view, truth = lend_texts(view, truth, share=lend, seed=seed)
    limit = QUICK_TOKENS if quick and limit is None else limit
    if limit is not None:
        view, truth = sample_records(view, truth, tokens=limit, seed=seed)
    if entities:
        truth = count_entities(
            view, truth, original, text_column=text_column, other_texts=other_texts, truncate_to=truncate
        )
    kept = None if out is None else keep_results(out / "unfinished", view, truth, seed=seed)
    with meter("attacking", total=100, unit="%") as progress:
        found = run_audit(
            view, truth, attacks=names, seed=seed, kept=kept, on_progress=stages(progress, [*names, "bound"])
        )
    report = Report(
        title=f"Audit of {file.name}",
        created=datetime.now(UTC).date().isoformat(),
        created_by=f"rapt {__version__}",
        audit=found,
        statement=statement_text(table, private.manifest),
        formal=formal_side(table, private.manifest.mechanism, seed=seed),
        known_plaintext=known_plaintext(adversary_view(private, table.bundle)),
        commands=(
            command_line(
                file,
                original,
                columns=(text_column, label_column),
                other_texts=other_texts,
                attacks=names,
                vocabulary=vocabulary,
                truncate=truncate,
                entities=entities,
                seed=seed,
                limit=limit,
                public_text=None if public_text is None else (public_text, public_text_column),
                lend=lend,
                attribute=attribute or (),
            ),
        ),
        attributes=inferred,
    )
    if out is not None:
        page, _ = write_report(report, out)
        say(f"report: {page}")
    if kept is not None:
        kept.remove()
    if as_json:
        show_json(report_to_json(report))
    else:
        show(audit_table(found))
        for result in inferred:
            show("\n" + attribute_table(result))


def command_line(
    file: Path,
    original: Path,
    *,
    columns: tuple[str, str],
    other_texts: PartColumns,
    attacks: Sequence[str],
    vocabulary: str | None,
    truncate: int | None,
    entities: bool,
    seed: int,
    limit: int | None,
    public_text: tuple[Path, str] | None,
    lend: float,
    attribute: Sequence[str],
) -> str:
    """What makes the numbers again; names of files, without the folders they are in."""
    words = ["rapt", "audit", file.name, "--original", original.name]
    words += ["--text-column", columns[0], "--label-column", columns[1], "--attacks", ",".join(attacks)]
    words += [] if other_texts.second is None else ["--text-column-2", other_texts.second]
    words += [] if other_texts.target is None else ["--target-column", other_texts.target]
    words += [] if vocabulary is None else ["--vocabulary", Path(vocabulary).name]
    words += [] if truncate is None else ["--truncate", str(truncate)]
    words += ["--entities"] if entities else []
    words += ["--seed", str(seed)]
    words += [] if limit is None else ["--limit", str(limit)]
    if public_text is None:
        words += ["--lend", f"{lend:g}"]
    else:
        words += ["--public-text", public_text[0].name, "--public-text-column", public_text[1]]
    for column in attribute:
        words += ["--attribute", column]
    return shlex.join(words)
