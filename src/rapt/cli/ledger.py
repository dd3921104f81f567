"""`rapt ledger`: what was released of which text so far, what it cost, and whether the record of it is whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli.options import AsJson
from rapt.cli.output import format_table, say, show, show_json
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.local.ledger import Ledger
    from rapt.local.ledger_file import Caps
    from rapt.local.ledger_report import LedgerSummary, Spending

LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="File that `rapt privatize --ledger` writes.")]

ledger = typer.Typer(help="Show, check and cap what was released so far.")


@ledger.callback()
def group() -> None:
    """Show, check and cap what was released so far."""


@ledger.command("show")
def show_ledger(path: LedgerFile, as_json: AsJson = False) -> None:
    """Show what was spent, in all and by setting.

    η adds up over the releases of one text: two releases at η are together as telling as one at 2η.

    \b
    Example:
      rapt ledger show releases.ledger
    """
    from rapt.local.ledger_report import summarize_ledger

    found = summarize_ledger(path)
    if as_json:
        show_json({"file": str(path)} | asdict(found))
    else:
        show("\n".join(describe_summary(found)))


@ledger.command()
def verify(
    path: LedgerFile,
    head: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Head that was noted earlier and must still be in the chain."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no row was changed, removed, added or moved.

    The head that is printed stands for the whole history. Note it elsewhere: with --head a later check also finds a
    ledger that was set back.

    \b
    Example:
      rapt ledger verify releases.ledger
    """
    from rapt.local.ledger_report import verify_ledger

    chain = verify_ledger(path, head=None if head is None else head.strip().lower())
    if as_json:
        show_json({"file": str(path)} | asdict(chain))
        return
    show(chain.head)
    say(f"{chain.rows:,} rows, all in place")


@ledger.command()
def cap(
    path: LedgerFile,
    per_text: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Largest η on one text; inf for no cap.  [default: unchanged]"),
    ] = None,
    in_all: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Largest η·tokens in all; inf for no cap.  [default: unchanged]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set what may be spent at most; the change is recorded.

    A release that would exceed a cap is refused before anything leaves.

    \b
    Example:
      rapt ledger cap releases.ledger --per-text 150
    """
    from rapt.local.ledger import open_ledger
    from rapt.local.ledger_file import Caps

    if per_text is None and in_all is None:
        raise UsageError("a cap must be named: give --per-text, --in-all, or both")
    if not path.is_file():
        raise UsageError(
            f"a ledger must exist to be capped, got none at {str(path)!r}; create one with rapt privatize --ledger"
        )
    with open_ledger(path) as account:
        before = account.caps()
        caps = Caps(per_text=_choose_cap(before.per_text, per_text), in_all=_choose_cap(before.in_all, in_all))
        account.set_caps(caps)
    if as_json:
        show_json({"file": str(path)} | asdict(caps))
    else:
        show(_describe_caps(caps))


@contextmanager
def use_ledger(path: Path | None, *, cap: float | None, redraw: bool) -> Iterator[Ledger | None]:
    """Open the ledger of `--ledger`, with the cap of `--cap` in force; None without one.

    Raises:
        UsageError: The other options were given without a ledger, or with another cap than the ledger has.
        LedgerError: The reasons of `open_ledger`.
    """
    from rapt.local.ledger import open_ledger
    from rapt.local.ledger_file import Caps

    if path is None:
        if cap is not None or redraw:
            raise UsageError("--cap and --redraw must come with a ledger; name it with --ledger")
        yield None
        return
    if cap is not None and not 0 < cap < math.inf:
        raise UsageError(f"--cap must be a finite number above 0, got {cap!r}; leave it out for none")
    with open_ledger(path) as account:
        caps = account.caps()
        if cap is not None and caps.per_text is None:
            account.set_caps(Caps(per_text=cap, in_all=caps.in_all))
        elif cap is not None and cap != caps.per_text:
            raise UsageError(
                f"--cap must be the cap of the ledger, {caps.per_text:g}, got {cap:g}; "
                f"change it with: rapt ledger cap {path} --per-text {cap:g}"
            )
        yield account


def describe_summary(found: LedgerSummary) -> list[str]:
    """Describe a summary in lines for people."""
    lines = [
        f"releases   {found.releases:,} of {found.texts:,} texts, {found.tokens:,} tokens",
        f"spent      {found.budget:,.6g} η·tokens in all; at most {found.most_on_one_text:,.6g} η on one text",
        f"caps       {_describe_caps(found.caps)}",
        f"rows       {found.rows:,}" + (f", from {found.first} to {found.last}" if found.rows else ""),
        f"head       {found.head or 'none yet'}",
    ]
    if found.most_label_epsilon:
        lines.insert(2, f"labels     ε {found.most_label_epsilon:g} at most on the label of one text")
    if found.settings:
        header = ["setting", "releases", "tokens", "η·tokens"]
        rows = [
            [_describe_setting(spending), f"{spending.releases:,}", f"{spending.tokens:,}", f"{spending.budget:,.6g}"]
            for spending in found.settings
        ]
        lines += ["", format_table(header, rows)]
    return lines


def _describe_setting(spending: Spending) -> str:
    setting = spending.setting
    warning = "" if setting.get("insecure_seed") is None else ", INSECURE seed"
    if spending.kind == "label":
        return f"label: {setting['mechanism']}, ε = {setting['epsilon']:g}, {setting['classes']} classes{warning}"
    parameters = ", ".join(f"{name} = {value}" for name, value in setting["mechanism"]["parameters"].items())
    cut = "" if setting["truncate_to"] is None else f", first {setting['truncate_to']} tokens"
    vocabulary = setting["vocabulary_hash"].removeprefix("sha256:")[:12]
    return f"{setting['mechanism']['name']}, {parameters}{cut}, vocabulary {vocabulary}{warning}"


def _choose_cap(before: float | None, given: float | None) -> float | None:
    if given is None:
        return before
    return None if given == math.inf else given


def _describe_caps(caps: Caps) -> str:
    one = "none on one text" if caps.per_text is None else f"{caps.per_text:g} η on one text"
    every = "none in all" if caps.in_all is None else f"{caps.in_all:g} η·tokens in all"
    return f"{one}, {every}"
