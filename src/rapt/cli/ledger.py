"""`rapt ledger`: what was released of which text so far, what it cost, and whether the record of it is whole."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rapt.cli.options import AsJson
from rapt.cli.output import format_table, say, show, show_json
from rapt.errors import LedgerError, UsageError
from rapt.narration import write_count

if TYPE_CHECKING:
    from rapt.local.ledger import Ledger
    from rapt.local.ledger_file import Cap, Caps
    from rapt.local.ledger_key import KeyPlace
    from rapt.local.ledger_report import LedgerSummary, Spending

LedgerFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[LEDGER]", help="File that `rapt privatize` wrote; default: .rapt/ledger.sqlite here or above."
    ),
]
LedgerKey = Annotated[
    str | None,
    typer.Option(
        "--ledger-key",
        metavar="FILE|keyring[:NAME]",
        envvar="RAPT_LEDGER_KEY",
        show_envvar=True,
        help="Key of the ledger, if it does not lie beside it as NAME.key: another file, or an entry of the operating "
        "system's keyring, by default that of the ledger's path. The keyring needs the extra [keyring].",
    ),
]


class Of(StrEnum):
    """Budgets that have a cap each."""

    METRIC = "metric"
    TEXT = "text"
    LABEL = "label"


ledger = typer.Typer(help="Show, check and cap what was released so far.")


@ledger.callback()
def group() -> None:
    """Show, check and cap what was released so far."""


@ledger.command("show")
def show_ledger(path: LedgerFile = None, as_json: AsJson = False) -> None:
    """Show what was spent, in all and by setting.

    η adds up over the releases of one text: two releases at η are together as telling as one at 2η. ε of whole texts
    and ε of labels add up by themselves: each is another promise.

    \b
    Example:
      rapt ledger show
    """
    from rapt.local.ledger_report import summarize_ledger

    path = _find(path)
    found = summarize_ledger(path)
    if as_json:
        show_json({"file": str(path)} | asdict(found))
    else:
        show("\n".join(describe_summary(found)))


@ledger.command()
def verify(
    path: LedgerFile = None,
    ledger_key: LedgerKey = None,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="DIGEST", help="Head that was noted earlier and must still be in the chain. Repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no row was changed, removed, added or moved, and that the sums are right.

    Without the key nobody can write a row that fits, nor take rows off the end. A ledger that was set back as a whole
    to an earlier copy is found by a later head: every run prints one and keeps it in a receipt beside the ledger, all
    of which are asked for; note one elsewhere, and give it with --head.

    \b
    Example:
      rapt ledger verify
    """
    from rapt.local.ledger_place import read_noted_heads
    from rapt.local.ledger_report import verify_ledger

    given = [_read_head(noted) for noted in head or ()]
    key = read_key_place(ledger_key)
    path = _find(path, key=key)
    heads = [*read_noted_heads(path), *given]
    chain = verify_ledger(path, key=key, heads=heads)
    if as_json:
        show_json({"file": str(path)} | asdict(chain))
        return
    show(chain.head)
    rows = "1 row" if chain.rows == 1 else f"{chain.rows:,} rows"
    noted = "1 noted head is" if chain.noted == 1 else f"{chain.noted:,} noted heads are"
    say(f"{rows}, all in place; {noted} among them")


@ledger.command()
def cap(
    path: LedgerFile = None,
    of: Annotated[
        Of,
        typer.Option(
            help="Budget: metric for η of the tokens of texts, text for ε of whole texts, label for ε of labels."
        ),
    ] = Of.METRIC,
    per_text: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER", help="Largest sum of η, or ε, on one text; inf for no cap.  [default: unchanged]"
        ),
    ] = None,
    in_all: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER", help="Largest sum of η·tokens, or ε, in all; inf for no cap.  [default: unchanged]"
        ),
    ] = None,
    ledger_key: LedgerKey = None,
    as_json: AsJson = False,
) -> None:
    """Set what may be spent at most; the change is recorded.

    A release that would exceed a cap is refused before anything leaves. The budgets are never added up.

    \b
    Examples:
      rapt ledger cap --per-text 150
      rapt ledger cap --of label --per-text 2
    """
    from rapt.local.ledger import open_ledger

    if per_text is None and in_all is None:
        raise UsageError("a cap must be named: give --per-text, --in-all, or both")
    key = read_key_place(ledger_key)
    path = _find(path, key=key)
    if not path.is_file():
        raise UsageError(f"a ledger must exist to be capped, got none at {str(path)!r}; `rapt privatize` makes one")
    with open_ledger(path, key=key) as account:
        caps = account.caps()
        before = caps.of(of.value)
        after = replace(
            before, on_text=_choose_cap(before.on_text, per_text), in_all=_choose_cap(before.in_all, in_all)
        )
        caps = replace(caps, **{of.value: after})
        account.set_caps(caps)
    if as_json:
        show_json({"file": str(path)} | asdict(caps))
    else:
        show(_describe_caps(caps))


def read_key_place(given: str | None) -> KeyPlace | None:
    """Read the place that --ledger-key names; None for beside the ledger (`UsageError`)."""
    from rapt.local.ledger_key import parse_key_place

    return None if given is None else parse_key_place(given)


def _find(path: Path | None, *, key: KeyPlace | None = None) -> Path:
    from rapt.local.ledger_place import find_ledger, refuse_place

    found = find_ledger(Path.cwd() / "here") if path is None else path
    refuse_place(found, key=key)
    return found


def _read_head(given: str) -> str:
    head = given.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", head):
        raise UsageError(
            f"--head must be 64 hexadecimal digits, got {len(head)} characters that are no head; copy a whole one from "
            "a receipt, or from what a run said"
        )
    return head


@dataclass
class ChosenLedger:
    """The ledger of a run, opened when there is something to count.

    Attributes:
        path: Path of the ledger, or of the one to make.
        key: Place of its key; None for beside it.
        cap, label_cap: What the run asks for, None for what is in force.
        of: Budget that the run spends on its texts, and that `cap` is of.
        done: Note of a run that has ended without an error.
    """

    path: Path
    key: KeyPlace | None
    cap: float | None
    label_cap: float | None
    of: Of = Of.METRIC
    done: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def open(self) -> Iterator[Ledger]:
        """Open the ledger with the caps of the run in force.

        Raises:
            UsageError: The ledger has other caps.
            LedgerError: The reasons of `open_ledger`.
        """
        from rapt.local.ledger import open_ledger
        from rapt.local.ledger_place import FOLDER, make_folder

        new = not self.path.exists()
        if new and self.path.parent.name == FOLDER:
            make_folder(self.path)
        with open_ledger(self.path, key=self.key) as account:
            caps = account.caps()
            wanted = replace(
                caps,
                label=_agree(caps.label, self.label_cap, option="--label-cap", of=Of.LABEL),
                **{self.of.value: _agree(caps.of(self.of.value), self.cap, option="--cap", of=self.of)},
            )
            if wanted != caps:
                account.set_caps(wanted)
            yield account
            rows, head = account.head()
            tally = account.tally
            self.done = {
                "head": head,
                "rows": rows,
                "new": new,
                "spent": tally.spent,
                "released": dict(tally.released),
                "answered": dict(tally.answered),
                "again": dict(tally.again),
                "related": {"records": len(tally.related), "first": sorted(tally.related)[:5]},
            }


def choose_ledger(
    target: Path,
    *,
    ledger: Path | None,
    no_ledger: bool,
    key: KeyPlace | None,
    cap: float | None,
    label_cap: float | None,
    redraw: bool,
    seeded: bool,
    of: Of = Of.METRIC,
) -> ChosenLedger | None:
    """Choose the ledger that a run counts in: the one that is named, else that of the project; None where none counts.

    Raises:
        UsageError: The options contradict each other, or a cap is not a finite number above 0.
        LedgerError: The project's ledger is another user's, or the ledger is a folder, or its own key.
    """
    from rapt.local.ledger_place import find_ledger, refuse_place

    asked = ledger is not None or cap is not None or label_cap is not None or redraw
    if asked and (no_ledger or seeded):
        raise UsageError(
            "--ledger, --cap, --label-cap and --redraw must come without --no-ledger and --insecure-seed: noise from "
            "a seed protects nothing that could be counted; leave one of them out"
        )
    for option, value in (("--cap", cap), ("--label-cap", label_cap)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{option} must be a finite number above 0, got {value!r}; leave it out for none")
    if no_ledger or seeded:
        return None
    path = find_ledger(target) if ledger is None else ledger
    refuse_place(path, key=key)
    return ChosenLedger(path, key, cap, label_cap, of)


def say_what_was_counted(account: ChosenLedger | None, *, replaced: bool, insecure: bool) -> None:
    """Say what a run released, or that nothing is counted."""
    if account is None:
        if not insecure:
            say("nothing is counted: no ledger knows of this release, and the next one of these texts adds to it")
        if replaced:
            say("rapt: warning: OUT was replaced: if it had left, its texts are now released twice, and that adds up")
        return
    done = account.done
    if done["new"]:
        say("a ledger was begun: it counts what is released, and answers texts that come again; keep it and its key")
    new, old = (sum(done[name].values()) - done[name].get("label", 0) for name in ("released", "answered"))
    released = write_count(new, "text")
    say(f"ledger: {released} released, {old:,} answered by earlier releases of theirs; head {done['head']}")
    if old:
        say("  an answered text looks in OUT as it did before: whoever sees both sees that they are the same text")
    if labels := done["answered"].get("label"):
        say(f"  {labels:,} labels were answered by their first draw, whatever they are now; --redraw draws anew")
    if again := done["again"].get("metric", 0) + done["again"].get("text", 0):
        say(f"rapt: warning: {again:,} of the texts had been released before: this is one more release, and adds up")
    if count := done["related"]["records"]:
        first = ", ".join(f"{position + 1:,}" for position in done["related"]["first"])
        say(
            f"rapt: warning: {count:,} records share long runs of words with other texts that were released, the first "
            f"of them records {first}: what they share is told more than once"
        )
    say(f"to see what was spent so far, run: {_name_show(account.path)}")


def _name_show(ledger: Path) -> str:
    """Return the command that shows a ledger, by no name of a file: a log may keep what a run says."""
    try:
        found = _find(None)
    except LedgerError:  # another user's, above this folder
        found = None
    if found == ledger.resolve():
        return "rapt ledger show"
    return "rapt ledger show LEDGER (that of --ledger, or else .rapt/ledger.sqlite in the folder of OUT or above)"


def describe_summary(found: LedgerSummary) -> list[str]:
    """Describe a summary in lines for people."""
    metric, text, label = (found.spent[budget] for budget in ("metric", "text", "label"))
    lines = [
        f"releases   {found.releases:,} of {write_count(found.texts, 'text')}, {write_count(found.tokens, 'token')}",
        f"spent      {metric.in_all:,.6g} η·tokens in all; at most {metric.most_on_one_text:,.6g} η on one text",
        f"caps       {_describe_caps(found.caps)}",
        f"rows       {found.rows:,}" + (f", from {found.first} to {found.last}" if found.rows else ""),
        f"head       {found.head or 'none yet'}",
    ]
    if label.in_all:
        lines.insert(2, f"labels     ε {label.in_all:,.6g} in all; at most {label.most_on_one_text:,.6g} on one label")
    if text.in_all:
        lines.insert(2, f"as texts   ε {text.in_all:,.6g} in all; at most {text.most_on_one_text:,.6g} on one text")
    if found.settings:
        header = ["setting", "releases", "tokens", "η·tokens or ε"]
        rows = [
            [_describe_setting(spending), f"{spending.releases:,}", f"{spending.tokens:,}", f"{spending.in_all:,.6g}"]
            for spending in found.settings
        ]
        lines += ["", format_table(header, rows)]
    return lines


def _describe_setting(spending: Spending) -> str:
    setting = spending.setting
    if spending.kind == "label":
        return f"label: {setting['mechanism']}, ε = {setting['epsilon']:g}, {setting['classes']} classes"
    parameters = ", ".join(f"{name} = {value}" for name, value in setting["mechanism"]["parameters"].items())
    vocabulary = setting["vocabulary_hash"].removeprefix("sha256:")[:12]
    return f"{setting['mechanism']['name']}, {parameters}, vocabulary {vocabulary}"


def _agree(before: Cap, given: float | None, *, option: str, of: Of) -> Cap:
    """The cap in force, with the one of the run where there was none; `UsageError` where it is another."""
    if given is None or before.on_text == given:
        return before
    if before.on_text is not None:
        raise UsageError(
            f"{option} must be the cap of the ledger, {before.on_text:g}, got {given:g}; "
            f"change it with: rapt ledger cap --of {of.value} --per-text {given:g}"
        )
    return replace(before, on_text=given)


def _choose_cap(before: float | None, given: float | None) -> float | None:
    if given is None:
        return before
    return None if given == math.inf else given


def _describe_caps(caps: Caps) -> str:
    from rapt.local.ledger import UNITS
    from rapt.local.ledger_file import BUDGETS

    found = []
    for budget in BUDGETS:
        cap, in_all = caps.of(budget), "η·tokens" if budget == "metric" else UNITS[budget]
        if cap.on_text is not None:
            found.append(f"{cap.on_text:g} {UNITS[budget]} on one text")
        if cap.in_all is not None:
            found.append(f"{cap.in_all:g} {in_all} in all")
    return ", ".join(found) or "none"


_MOST_KEY_BYTES: Final = 80


def check_receipt(receipt: Path, *, used: tuple[Path | None, ...], overwrite: bool) -> None:
    """Refuse a receipt that would replace another file of the run, or cannot be written, before any work."""
    from rapt.whole_files import check_target
    from rapt.wire.privatized_writer import name_partial

    for path in used:
        for taken in () if path is None else (path, name_partial(path)):
            if receipt.resolve() == taken.resolve() or (
                receipt.exists() and taken.exists() and receipt.samefile(taken)
            ):
                raise UsageError("the receipt must be another file than IN, OUT and the key; choose another name")
    if not receipt.absolute().parent.is_dir():
        raise UsageError("the receipt must lie in a folder that exists; make it, or choose another")
    check_target(receipt, overwrite=overwrite)
    refuse_key(receipt)


def refuse_key(path: Path) -> None:
    """Refuse to write over what looks like the key of a ledger, wherever it lies: without it the ledger is lost."""
    try:
        content = path.read_bytes() if path.is_file() and path.stat().st_size <= _MOST_KEY_BYTES else b""
    except OSError:
        return
    if re.fullmatch(rb"[0-9a-f]{64}\s*", content):
        raise UsageError("the file to write must not be the key of a ledger, which it looks like; choose another name")
