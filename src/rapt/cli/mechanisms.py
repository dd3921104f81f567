"""`rapt mechanisms`: what can replace a token, how far its guarantee is proved, and what can be set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli.chosen_mechanism import choose_mechanism
from rapt.cli.options import AllowUnproved, AsJson, MechanismOptions, VocabularyName
from rapt.cli.output import show, show_json, table
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.local.mechanisms import MechanismKind
    from rapt.wire.manifest import Parameter


def mechanisms(
    audit: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead of the list, measure the η that this one really spends."),
    ] = None,
    eta: Annotated[float | None, typer.Option(metavar="NUMBER", help="With --audit: the η that it states.")] = None,
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    vocabulary: VocabularyName = "minilm",
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD,WORD", help="With --audit: words to tell apart; repeat. Default: near ones."),
    ] = None,
    runs: Annotated[
        int, typer.Option(metavar="N", min=100, help="With --audit: draws of each word of a pair.")
    ] = 10_000,
    as_json: AsJson = False,
) -> None:
    """List the mechanisms with the status of their guarantee and their options.

    With --audit, draw many outputs for pairs of words and bound from below the η that they show, by exact intervals
    of Clopper and Pearson: above the stated η the code is broken, whatever its proof says.

    \b
    Examples:
      rapt mechanisms
      rapt mechanisms --audit exponential --eta 14 --pair good,bad
    """
    from rapt.local.mechanisms import MECHANISMS

    if audit is not None:
        from rapt.cli.spent import audit_mechanism
        from rapt.local.vocabulary import load_vocabulary

        if eta is None:
            raise UsageError("an audit needs the η that the mechanism states; give --eta")
        known_table = load_vocabulary(vocabulary)
        made = choose_mechanism(
            audit, vocabulary=known_table, eta=eta, settings=settings, allow_unproved=allow_unproved
        )
        audit_mechanism(made, known_table, pairs=pair or (), runs=runs, as_json=as_json)
        return
    if eta is not None or settings or pair or allow_unproved:
        raise UsageError("--eta, --set, --pair and --allow-unproved are about one mechanism; add --audit NAME")

    listed = [
        {
            "name": name,
            "status": kind.status,
            "summary": _summary(kind),
            "caveat": kind.caveat,
            "options": [
                {"name": option, "default": known.default, "help": known.help} for option, known in kind.options.items()
            ],
        }
        for name, kind in MECHANISMS.items()
    ]
    if as_json:
        show_json({"mechanisms": listed})
        return
    show(
        table(
            ["mechanism", "guarantee", "what it does"],
            [[name, kind.status, _summary(kind)] for name, kind in MECHANISMS.items()],
        )
    )
    show("")
    show(
        table(
            ["mechanism", "--set", "what it sets"],
            [
                [name, f"{option}={_written(known.default)}", known.help]
                for name, kind in MECHANISMS.items()
                for option, known in kind.options.items()
            ],
        )
    )
    for name, kind in MECHANISMS.items():
        if kind.caveat:
            show(f"\n{name} needs --allow-unproved: {kind.caveat}")


def _summary(kind: MechanismKind) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _written(default: Parameter) -> str:
    return default if isinstance(default, str) else json.dumps(default)
