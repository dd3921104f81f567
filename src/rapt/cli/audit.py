"""`rapt audit`: attack your own privatized file, before somebody else does."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rapt.cli.demo import percent
from rapt.cli.options import AsJson
from rapt.cli.output import Meter, meter, say, show, show_json
from rapt.cli.output import table as columns

if TYPE_CHECKING:
    from rapt.audit.attributes import AttributeResult
    from rapt.audit.audit import AuditReport
    from rapt.audit.view import AdversaryView, Truth
    from rapt.local.vocabulary import Vocabulary
    from rapt.wire.manifest import Manifest

# Tokens of a quick look: half a minute on one core with MiniLM's table.
QUICK_TOKENS: Final = 1500
# A file with fewer records is attacked whole, by attackers who have no text of its kind.
LEAST_TO_LEND: Final = 20
# Time of the bound, in the unit of `Attack.weight`.
_BOUND_WEIGHT: Final = 40.0


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
        str | None, typer.Option(metavar="A,B,...", help="Which attacks; default: all but causal.")
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
            help="Count names, places, dates and the like by kind. Needs spaCy: pip install rapt[entities]",
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
    The report names the strongest attack and says what was not tried.

    \b
    Example:
      rapt audit reviews.rapt.jsonl --original reviews.csv --out audit
    """
    from rapt.audit.attacks import ATTACKS, DEFAULT_ATTACKS
    from rapt.audit.audit import audit as run_audit
    from rapt.audit.formal import formal_side
    from rapt.audit.kept_results import keep_results
    from rapt.audit.known_plaintext import known_plaintext
    from rapt.audit.priors import read_public_text
    from rapt.audit.report import report_to_json, write_report
    from rapt.audit.report.values import Report
    from rapt.audit.view import adversary_view, lend_texts, read_truth, sample_records
    from rapt.local.vocabulary import load_vocabulary
    from rapt.version import __version__
    from rapt.wire.privatized_file import read_privatized_file

    fast = tuple(name for name, attack in ATTACKS.items() if attack.fast)
    names = fast if quick else DEFAULT_ATTACKS
    if attacks is not None:
        names = tuple(name.strip() for name in attacks.split(","))
    private = read_privatized_file(file)
    table = load_vocabulary(vocabulary or private.manifest.model)
    public = (
        None if public_text is None else read_public_text(public_text, table.bundle, text_column=public_text_column)
    )
    view = adversary_view(private, table.bundle, public=public)
    truth = read_truth(view, original, text_column=text_column, label_column=label_column, truncate_to=truncate)
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
        truth = count_entities(view, truth, original, text_column=text_column, truncate_to=truncate)
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


def read_column(original: Path, column: str, *, text_column: str) -> list[str]:
    """A column of the corpus, in its order; an empty value counts as a value."""
    from rapt.local.corpus import read_corpus

    records = read_corpus(original, text_column=text_column, label_column=column)
    return [str(record.label) for record in records]


def count_entities(
    view: AdversaryView, truth: Truth, original: Path, *, text_column: str, truncate_to: int | None
) -> Truth:
    """The truth with its named entities, or as it is where they cannot be looked for, which is said."""
    from rapt.audit.judge.entities import reason_without_entities, with_entities
    from rapt.local.corpus import read_corpus

    if (reason := reason_without_entities()) is not None:
        say(reason)
        return truth
    texts = [record.text for record in read_corpus(original, text_column=text_column, label_column=None)]
    with meter("finding entities", total=100, unit="%") as progress:
        return with_entities(
            view, truth, texts, truncate_to=truncate_to, on_progress=lambda share: progress(int(100 * share))
        )


def infer_columns(
    view: AdversaryView, truth: Truth, columns_to_infer: list[tuple[str, list[str]]], *, seed: int
) -> tuple[AttributeResult, ...]:
    """Every column that was named, inferred from the whole file."""
    from rapt.audit.attributes import infer_attribute

    found = []
    for column, values in columns_to_infer:
        with meter(f"inferring {column}", total=100, unit="%") as progress:
            shown = stages(progress, [column])
            result = infer_attribute(view, truth, values, column=column, seed=seed, on_progress=partial(shown, column))
        found.append(result)
    return tuple(found)


def attribute_table(result: AttributeResult) -> str:
    """How well one column is inferred, for a terminal."""
    several = "" if result.attackers[0].of_several is None else f"{result.attackers[0].of_several.value:.1%}"
    rows = [[f"{attacker.name} attacker", *percent(attacker.first)] for attacker in result.attackers]
    rows.append(["unprotected texts", *percent(result.unprotected.first)])
    rows.append(["without the file", f"{result.chance:.1%}", ""])
    head = f"{result.column}: {result.values} values, {result.texts:,} texts" + (
        f"; among five guesses {several}" if several else ""
    )
    return "\n".join([head, "", columns(["who", "right", "95 % interval"], rows)])


def stages(progress: Meter, names: Sequence[str]) -> Callable[[str, float], None]:
    """A receiver of stages that come one after another, shown as one piece of work with the time that is left."""
    from rapt.audit.attacks import ATTACKS

    weights = {name: ATTACKS[name].weight if name in ATTACKS else _BOUND_WEIGHT for name in names}
    begun = time.monotonic()
    before = {name: sum(list(weights.values())[:place]) for place, name in enumerate(weights)}

    def show_stage(stage: str, share: float) -> None:
        done = (before[stage] + share * weights[stage]) / sum(weights.values())
        seconds = time.monotonic() - begun
        left = f", about {_minutes(seconds * (1 - done) / done)} left" if done > 0.02 and seconds > 1 else ""
        progress(int(100 * done), note=stage.replace("_", " ") + left)

    return show_stage


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


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
        two_texts=manifest.pairs,
        targets=manifest.targets,
        randomness=manifest.randomness,
    ).to_text()


def command_line(
    file: Path,
    original: Path,
    *,
    columns: tuple[str, str],
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
        "",
        f"strongest: {found.strongest.title}; the attackers held {found.learned_from or 'no text of this kind'}",
        *(f"entities it recovered: {line}" for line in [entity_line(found)] if line),
        *(f"not run: {skipped.attack}: {skipped.reason}" for skipped in found.skipped),
        *(f"warning: {warning}" for warning in found.warnings),
    ]
    return "\n".join(lines)


def entity_line(found: AuditReport) -> str:
    """The share of whole entities of each kind that the strongest attack recovered; empty where nobody looked."""
    return ", ".join(
        f"{group.name} {group.first.value:.0%} of {group.first.n:,} ({group.unchanged:.0%} as sent)"
        for group in found.strongest.detail.entities
    )
