"""`rapt audit`: attack your own privatized file, before somebody else does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rapt.cli import output
from rapt.cli.audit_codes import audit_code_file, refuse_options_of_tokens
from rapt.cli.options import AsJson, AuditSeed, PolicyFile
from rapt.cli.output import format_share, name_options, show, show_finding, show_json
from rapt.cli.output import format_table as columns
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.audit.attributes import AttributeResult
    from rapt.audit.audit import AuditReport
    from rapt.audit.intervals import Share

# As in `rapt.audit.file_audit`, which is not loaded to print help.
QUICK_TOKENS: Final = 1500


def audit(
    context: typer.Context,
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
    public_label_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the public texts that holds a label like that of PRIVATIZED."),
    ] = None,
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
        str | None, typer.Option(metavar="A,B,...", help="Attacks to run; default: all but tong and causal.")
    ] = None,
    keywords: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Telling words to look for, one a line; default: a list of health, money, faith, ..."
        ),
    ] = None,
    language_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Decoder that the attack causal asks, or that reads words from codes: a known model, a model folder, "
            "or a name in the Hugging Face cache; auto for the largest of these that memory and an hour allow; none. "
            "By default auto for tokens, where that has 300 million parameters or more, and none for codes.",
        ),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="A column of FILE to infer from each text, such as its author. Repeatable."
        ),
    ] = None,
    author: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column of FILE that says who wrote each text, to link codes of one author; codes."
        ),
    ] = None,
    entities: Annotated[
        bool,
        typer.Option(
            "--entities",
            help="Count names, places, dates and the like by kind. Needs the extra [entities], spaCy",
        ),
    ] = False,
    entities_labelled: Annotated[
        Path | None,
        typer.Option(
            metavar="JSONL",
            help="Labelled entities of FILE's texts: count these, and what --policy misses of them, by kind.",
        ),
    ] = None,
    policy: PolicyFile = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="Known model, model folder or fetched bundle; default: PRIVATIZED's model.")
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME",
            help="Code that a file of whole texts was made with, a name or folder; default: one that comes with rapt.",
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="Encoder of the bundle, a name or folder; default: its name.")
    ] = None,
    truncate: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens kept of each text, as given to `rapt privatize`.")
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Receipt of the run that wrote PRIVATIZED, if its records were shuffled; default: that beside a "
            "ledger in its folder or above.",
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Ledger that the run counted in, to find its receipt, if it lies somewhere else."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Attack a random part of about N tokens, in whole texts.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"A random part of about {QUICK_TOKENS:,} tokens, and the fast attacks. Of codes: no networks and no "
            "tuned heads.",
        ),
    ] = False,
    seed: AuditSeed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html and report.json, which hold no text. A run that was interrupted goes on there."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--export-prompts",
            metavar="FILE",
            help="Write prompts about the public texts, privatized alike, to ask a larger language model with.",
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
      rapt audit codes.rapt.jsonl --original reviews.csv --codes reviews-codes
      rapt audit pairs.rapt.jsonl --original pairs.csv --text-column sentence1 --text-column-2 sentence2
    """
    from rapt.audit import AuditPlan, audit_file
    from rapt.audit.report import report_to_json
    from rapt.audit.report.verdict import state_verdict
    from rapt.wire.privatized_file import read_manifest

    if read_manifest(file).unit == "text":
        refuse_options_of_tokens(context)
        audit_code_file(
            file,
            original,
            codes=codes,
            encoder=encoder,
            text_column=text_column,
            second_column=text_column_2,
            attributes=attribute or [],
            author=author,
            public_text=public_text,
            public_text_column=public_text_column,
            policy=policy,
            language_model=language_model,
            receipt=receipt,
            ledger=ledger,
            quick=quick,
            seed=seed,
            out=out,
            as_json=as_json,
        )
        return
    if codes is not None or encoder is not None or author is not None:
        raise UsageError(
            "--codes, --encoder and --author must come with a file of whole texts, got one of tokens; leave them out"
        )
    report = audit_file(
        AuditPlan(
            file=file,
            original=original,
            text_column=text_column,
            text_column_2=text_column_2,
            target_column=target_column,
            label_column=label_column,
            public_text=public_text,
            public_text_column=public_text_column,
            public_label_column=public_label_column,
            lend=lend,
            attacks=None if attacks is None else tuple(name.strip() for name in attacks.split(",")),
            keywords=keywords,
            language_model=language_model,
            attributes=tuple(attribute or ()),
            entities=entities,
            entities_labelled=entities_labelled,
            policy=policy,
            vocabulary=vocabulary,
            truncate=truncate,
            receipt=receipt,
            ledger=ledger,
            limit=limit,
            quick=quick,
            seed=seed,
            out=out,
            export_prompts=prompts,
        ),
        narrator=output,
    )
    if as_json:
        show_json(report_to_json(report))
        return
    verdict = state_verdict(report.audit, attributes=report.attributes)
    show_finding(verdict.headline + "\n", verdict.severity)
    show(audit_table(report.audit))
    for kind in report.missed:
        show(f"{kind.kind}: the policy misses {_format_with_interval(kind.missed)}, {kind.whole:.1%} as a whole")
    for result in report.attributes:
        show("\n" + format_attribute(result))


def audit_table(found: AuditReport) -> str:
    """Every attack and the bound on all of their kind, for a terminal."""
    rows = [
        [result.title, *format_share(result.score.all_tokens.first), f"{result.score.all_tokens.chance:.1%}", whole]
        for result in found.results
        for whole in ["" if result.detail.words is None else f"{result.detail.words.first.value:.1%}"]
    ]
    if found.bound is not None:
        rows.append(["any attack without context", *format_share(found.bound.success), "", ""])
    lines = [
        f"{found.records:,} of {found.of_records:,} {found.unit}, {found.tokens:,} tokens, {found.mechanism} at "
        f"eta = {found.eta:g}; {found.unchanged.value:.1%} of the tokens are unchanged",
        "",
        columns(["attack", "recovered", "95 % interval", "without the file", "whole words"], rows),
        "",
        f"strongest: {found.strongest.title}; the attackers held {found.learned_from or 'no text of this kind'}",
        *_answer_lines(found),
        *(f"{what} it recovered: {line}" for what, line in _group_lines(found) if line),
        *(["not attacked: targets, which are public and were sent as they are"] if found.public_targets else []),
        *(name_options(f"not run: {skipped.attack}: {skipped.reason}") for skipped in found.skipped),
        *(f"warning: {warning}" for warning in found.warnings),
    ]
    return "\n".join(lines)


def _answer_lines(found: AuditReport) -> list[str]:
    """What was found beside single words: texts that are recognized, words that come back, telling words."""
    lines = []
    if (linked := found.linkage) is not None:
        lines.append(
            f"recognized among {linked.candidates:,} texts: {_format_with_interval(linked.first)}; "
            f"by length alone {linked.chance:.1%}, without the file {linked.blind:.1%}"
        )
    if (repeated := found.repetition) is not None:
        fresh = ", ".join(f"{row.named.value:.0%} from {row.releases}" for row in repeated.fresh)
        lines.append(
            f"a word that is released again and again is named: {fresh} releases, {repeated.fresh[0].blind:.1%} "
            f"without the file ({repeated.fresh[0].named.n} words)"
        )
        lines += [
            f"words of this file in {row.records} records or more: {_format_with_interval(row.named)} named; "
            f"each release by itself {row.alone:.1%}, without the file {row.blind:.1%}"
            for row in repeated.own
        ]
    if (told := found.keywords) is not None:
        uses = told.everything.found
        share = "none is used" if uses is None else f"{_format_with_interval(uses)} of their uses found"
        lines.append(
            f"{told.listed} telling words: {share}, {told.false_alarms:.1f} false alarms in 60,000 tokens (at most "
            f"{told.most_false_alarms:.1f}); without the file {told.everything.blind:.1%}"
        )
    return lines


def _format_with_interval(share: Share) -> str:
    return f"{share.value:.1%} of {share.n:,} ({share.low:.1%} to {share.high:.1%})"


def format_attribute(result: AttributeResult) -> str:
    """How well one column is inferred, for a terminal."""
    several = "" if result.attackers[0].of_several is None else f"{result.attackers[0].of_several.value:.1%}"
    rows = [[f"{attacker.name} attacker", *format_share(attacker.first)] for attacker in result.attackers]
    rows.append(["unprotected texts", *format_share(result.unprotected.first)])
    rows.append(["without the file", f"{result.chance:.1%}", ""])
    head = f"{result.column}: {result.values} values, {result.texts:,} texts" + (
        f"; among five guesses {several}" if several else ""
    )
    return "\n".join([head, "", columns(["who", "right", "95 % interval"], rows)])


def _group_lines(found: AuditReport) -> list[tuple[str, str]]:
    """List what the strongest attack recovered of each text of a record and of entities; empty where there is none."""
    detail = found.strongest.detail
    return [
        (
            what,
            ", ".join(
                f"{group.name} {group.first.value:.0%} of {group.first.n:,} ({group.unchanged:.0%} as sent)"
                for group in groups
            ),
        )
        for what, groups in (("words of each text", detail.texts), ("entities", detail.entities))
    ]
