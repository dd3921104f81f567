"""`rapt show`: what stands in a privatized file, beside the text that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapt.cli import output
from rapt.cli.options import AsJson, PolicyFile, TrustVocabulary, load_checked_vocabulary, read_policy
from rapt.severity import Severity, paint

if TYPE_CHECKING:
    from rapt.local.shown_texts import ShownFile, ShownText
    from rapt.wire.privatized_file import PrivatizedRecord

SCHEMA = "rapt.show/1"
# What stayed is exposed: red, as danger is everywhere.


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Privatized file that is shown.")],
    original: Annotated[
        Path | None, typer.Option(metavar="TEXTS", help="Source of the file, to show each text beside what left.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of TEXTS that holds the text.")] = "text",
    policy: PolicyFile = None,
    vocabulary: Annotated[
        str | None, typer.Option(metavar="NAME", help="Vocabulary of the file; default: the one that the file names.")
    ] = None,
    trust_vocabulary: TrustVocabulary = False,
    ledger: Annotated[
        Path | None, typer.Option(metavar="LEDGER", help="Ledger beside which the receipt of a shuffled file lies.")
    ] = None,
    receipt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Receipt of a shuffled file; default: it is looked for.")
    ] = None,
    first: Annotated[int, typer.Option(metavar="N", min=0, help="Number of texts to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show the words of a privatized file, and with --original the text behind them.

    What is shown is made here and kept nowhere. With --original the words that stayed as they are stand in red, or in
    [brackets] where there are no colours: they are what anybody reads right without any attack. A file of whole texts
    has no words; its codes are shown by their numbers.

    \b
    Examples:
      rapt show reviews.rapt.jsonl
      rapt show reviews.rapt.jsonl --original reviews.csv --first 20
    """
    from contextlib import closing

    from rapt.local.corpus import read_corpus
    from rapt.local.records import read_in_order_of_source
    from rapt.local.shown_texts import check_count, show_texts
    from rapt.wire.privatized_file import read_privatized_file

    originals = None
    if original is None:
        released = read_privatized_file(file)
    else:
        released = read_in_order_of_source(file, receipt=receipt, ledger=ledger)
        rules = read_policy(policy)
        source = read_corpus(original, text_column=text_column, label_column=None, skip_empty=True, policy=rules)
        with closing(source) as records:
            originals = [record.text for record in records]
    manifest = released.manifest
    if manifest.unit == "text":
        codewords = int(manifest.mechanism.parameters["codewords"])
        check_count(released, originals)
        texts = None if originals is None else originals[:first]
        _show_codes(released.records[:first], texts, codewords=codewords, as_json=as_json)
        return
    table = load_checked_vocabulary(vocabulary or manifest.model, trusted=trust_vocabulary)
    found = show_texts(released, table, originals=originals, first=first)
    if as_json:
        output.show_json({"schema": SCHEMA} | describe(found))
        return
    output.show("\n".join(write_page(found, coloured=output.is_coloured())))


def describe(found: ShownFile) -> dict[str, Any]:
    """Describe what is shown as plain values."""
    texts = [
        {"after": text.after, "before": text.before, "stayed": None if text.before is None else text.stayed}
        for text in found.texts
    ]
    return {
        "texts": texts,
        "tokens": found.tokens,
        "unknown": found.unknown,
        "stayed": found.stayed,
        "unknown_before": found.unknown_before,
    }


def write_page(found: ShownFile, *, coloured: bool) -> list[str]:
    """Write the texts, and in the last lines what holds for the whole file."""
    lines: list[str] = []
    for number, text in enumerate(found.texts, 1):
        lines.append(f"text {number}")
        if text.before is not None:
            lines.append(f"  in clear  {' '.join(map(_print, text.before))}")
        lines += [f"  left as   {_mark(text, coloured=coloured)}", ""]
    counted = f"{found.tokens:,} tokens"
    if found.stayed is not None:
        counted += f", {found.stayed:,} of them ({found.stayed / found.tokens:.1%}) as they were"
    lines.append(counted)
    if found.unknown or found.unknown_before:
        left = f"{found.unknown:,} of them ({found.unknown / found.tokens:.1%}) left as the unknown token"
        before = found.unknown_before
        lines.append(left if before is None else f"{left}; of the source the vocabulary does not know {before:,}")
    return lines


def _mark(text: ShownText, *, coloured: bool) -> str:
    marked = zip(map(_print, text.after), text.stayed, strict=True)
    return " ".join(
        token if not stayed else paint(token, Severity.BAD) if coloured else f"[{token}]" for token, stayed in marked
    )


def _print(token: str) -> str:
    """Write a token so that it moves no cursor and changes no colour."""
    return "".join(letter if letter.isprintable() else "?" for letter in token)


def _show_codes(
    records: Sequence[PrivatizedRecord], texts: Sequence[str] | None, *, codewords: int, as_json: bool
) -> None:
    if as_json:
        codes = [list(record.token_ids) for record in records]
        output.show_json({"schema": SCHEMA, "codes": codes, "codewords": codewords, "texts": texts})
        return
    lines = [f"text {number}: codeword {', '.join(map(str, one.token_ids))}" for number, one in enumerate(records, 1)]
    if texts is not None:
        lines = [f"{line}\n  in clear  {_print(text)}" for line, text in zip(lines, texts, strict=True)]
    output.show("\n".join([*lines, "", f"each is one of {codewords:,} public codewords, and has no words"]))
