"""The audit of a file of whole texts, as `rapt audit` prints it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from rapt.cli import output
from rapt.cli.options import list_given, read_policy
from rapt.cli.output import format_share, name_options, show, show_json
from rapt.cli.output import format_table as columns
from rapt.errors import UsageError
from rapt.local.text_page import ceil_nats, ceil_percent

if TYPE_CHECKING:
    from rapt.audit.artefact.membership import Estimate
    from rapt.audit.code_audit import CodeAudit
    from rapt.audit.codes.readers import Reading
    from rapt.audit.intervals import Share


# What an audit of whole texts reads; every other option is one of tokens.
_OF_CODES: Final = frozenset(
    (
        *("file", "original", "text_column", "text_column_2", "attribute", "author", "public_text"),
        *("public_text_column", "codes", "encoder", "policy", "language_model", "receipt", "ledger", "quick", "seed"),
        *("out", "as_json"),
    )
)


def refuse_options_of_tokens(context: typer.Context) -> None:
    """Refuse options that an audit of whole texts does not read (`UsageError`)."""
    others = set(list_given(context)) - _OF_CODES
    given = [max(option.opts, key=len) for option in context.command.params if option.name in others]
    if given:
        raise UsageError(
            f"{', '.join(given)} must come with a file of tokens, got one of whole texts; "
            f"leave {'it' if len(given) == 1 else 'them'} out"
        )


def audit_code_file(
    file: Path,
    original: Path,
    *,
    codes: Path | None,
    encoder: str | None,
    text_column: str,
    second_column: str | None,
    attributes: list[str],
    author: str | None,
    public_text: Path | None,
    public_text_column: str,
    policy: Path | None,
    language_model: str | None,
    receipt: Path | None,
    ledger: Path | None,
    quick: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Audit a file of whole texts."""
    from rapt.audit.code_audit import audit_codes, code_audit_to_json
    from rapt.audit.codes.desk import read_originals
    from rapt.audit.report import JSON, check_report_folder, write_files
    from rapt.local.codes.code_privatizer import read_code
    from rapt.local.codes.encoder import read_encoder
    from rapt.local.records import read_in_order_of_source
    from rapt.public_models import PUBLIC_CODES

    if out is not None:
        check_report_folder(out)
    released = read_in_order_of_source(file, receipt=receipt, ledger=ledger)
    known = next((name for name, pinned in PUBLIC_CODES.items() if pinned == released.manifest.vocabulary_hash), None)
    if codes is None and known is None:
        raise UsageError("a file of whole texts must be audited with its code bundle; name its folder with --codes")
    bundle = read_code(codes or known or "")
    if bundle.pairs != (second_column is not None):
        wanted = "two texts a record, with --text-column-2" if bundle.pairs else "one text, without --text-column-2"
        raise UsageError(f"the original must be read as the file was made from it: {wanted}")
    found = audit_codes(
        released,
        read_originals(
            original,
            text_column=text_column,
            second_column=second_column,
            attributes=attributes,
            author=author,
            public=public_text,
            public_text_column=public_text_column,
            policy=read_policy(policy),
        ),
        bundle=bundle,
        encoder=read_encoder(bundle.model if encoder is None else encoder),
        language_model=language_model,
        quick=quick,
        seed=seed,
        narrator=output,
    )
    report = code_audit_to_json(found)
    if out is not None:
        (written,) = write_files(out, {JSON: json.dumps(report, indent=2) + "\n"})
        output.say(f"report: {written}")
    if as_json:
        show_json(report)
    else:
        show(format_code_audit(found))


def format_code_audit(found: CodeAudit) -> str:
    """Make the table of what is learned from codes, for a terminal."""
    named = [
        [f"the text, among {item.candidates:,}", *_share(item.first), f"{item.chance:.2%}", _round_up(item.bound)]
        for item in found.naming
    ]
    named += [
        [f"the same from {item.releases} releases", *_share(item.first), f"{item.chance:.2%}", _round_up(item.bound)]
        for item in found.repeated
        if item.releases > 1
    ]
    read = [
        [f"{item.what}, {item.reader}", *_share(item.first), f"{item.blind:.1%}", _round_up(item.bound)]
        for item in found.readings
    ]
    read += [
        [
            f"two sets of {item.codes} codes of one author",
            *_share(item.first),
            f"{item.chance:.1%}",
            _round_up(item.bound),
        ]
        for item in found.authors
    ]
    read += [
        [
            f"a text of {item.copies} codes in a tuned head",
            *_share(item.first),
            f"{item.chance:.1%}",
            _round_up(item.bound),
        ]
        for item in found.canaries
    ]
    fit, member = found.fit, found.membership
    beside = ["right", "95 % interval", "n", "without the file", "at most"]
    return "\n".join(
        [
            f"{found.records:,} texts, each a code at epsilon = {found.epsilon:g}; a code says {found.bits:.2f} bits "
            "about which text it is of",
            "",
            columns(["named by the best attack", *beside], named),
            "",
            columns([f"read after learning from {found.learned_from}", *beside], read),
            "",
            *_describe_label(found.strongest_reader),
            *(f"two sets of {item.codes} codes of one author: area {_show_area(item.area)}" for item in found.authors),
            *(
                [
                    f"which of two texts a head was tuned on: area {_show_area(member.area)}, {member.chance:g} "
                    f"without the head, at most {math.ceil(1000 * member.bound) / 1000:.3f} ({member.models} heads, "
                    f"{member.texts:,} texts)"
                ]
                if member is not None
                else []
            ),
            f"codewords that are preferred ones: {fit.hits:.2%}, stated {fit.stated:.2%}; spent at least "
            f"epsilon = {math.floor(100 * fit.spent) / 100:.2f}, and at most {ceil_nats(fit.largest)} could have been "
            "shown by so many texts",
            *(name_options(f"not run: {item.attack}: {item.reason}") for item in found.skipped),
            *(f"warning: {warning}" for warning in found.warnings),
            *([] if found.warnings else ["nothing speaks against the stated epsilon"]),
        ]
    )


def _describe_label(reading: Reading) -> list[str]:
    """Describe what the label beside a code tells of its words, and what the code adds to that."""
    if reading.label_alone is None or reading.beyond is None:
        return []
    value, low, high = (f"{100 * share:+.1f}" for share in reading.beyond)
    return [
        f"{reading.what} by the label alone, which travels beside the code: {reading.label_alone:.1%}; the "
        f"{reading.reader} reader adds {value} points ({low} to {high}) to the better guess without a code"
    ]


def _round_up(bound: float) -> str:
    """A bound in the table's percent: rounded up, so that it is one as it stands."""
    return ceil_percent(bound).replace(" ", "")


def _show_area(area: Share | Estimate) -> str:
    return f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})"


def _share(share: Share) -> list[str]:
    return [*format_share(share), f"{share.n:,}"]
