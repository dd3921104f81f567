"""`rapt mechanisms`: what can replace a token, how far its guarantee is proved, and what can be set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli.options import AllowUnproved, AsJson, MechanismOptions, VocabularyName
from rapt.cli.output import say, show, show_json, table
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.local.mechanisms import Mechanism, MechanismKind
    from rapt.local.vocabulary import Vocabulary
    from rapt.wire.manifest import MechanismSetting, Parameter


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


def choose_mechanism(
    name: str, *, vocabulary: Vocabulary, eta: float, settings: Sequence[str] | None, allow_unproved: bool
) -> Mechanism:
    """The mechanism with the options written as NAME=VALUE. Raises `UsageError` and `MechanismError`."""
    from rapt.local.mechanisms import make_mechanism

    options = given_options(name, settings)
    if options.get("calibrated") is True:
        say("rapt: calibrated: computing the largest slope, minutes for 30,000 tokens, unless it was done before")
    return make_mechanism(name, vocabulary=vocabulary, eta=eta, options=options, allow_unproved=allow_unproved)


def given_options(name: str, settings: Sequence[str] | None) -> dict[str, Parameter]:
    """The options of a mechanism that are written as NAME=VALUE. Raises `UsageError`."""
    from rapt.local.mechanisms import MECHANISMS

    known = MECHANISMS[name].options if name in MECHANISMS else {}
    options: dict[str, Parameter] = {}
    for setting in settings or ():
        option, equals, value = (part.strip() for part in setting.partition("="))
        if not (option and equals and value) or option in options:
            raise UsageError("--set must be NAME=VALUE, each name once, such as --set tuning=0.5")
        text = option in known and isinstance(known[option].default, str)
        options[option] = value if text else _read(value)
    return options


def mechanism_of_file(
    setting: MechanismSetting, *, vocabulary: Vocabulary, settings: Sequence[str] | None
) -> Mechanism:
    """The mechanism of a privatized file; NAME=VALUE gives the public files that the setting knows by hash only.

    Raises:
        UsageError: Something other than a file is given.
        MechanismError: As `mechanism_of_setting`.
    """
    from rapt.local.mechanisms import mechanism_of_setting

    files = {}
    for text in settings or ():
        option, equals, value = (part.strip() for part in text.partition("="))
        stated = setting.parameters.get(option)
        if not equals or not isinstance(stated, str) or not stated.startswith("sha256:"):
            raise UsageError(
                "with a FILE, --set must name a public file of its setting, such as --set prior=counts.json"
            )
        files[option] = value
    # The file was made with it, and says so: asking again would protect nobody.
    return mechanism_of_setting(setting, vocabulary=vocabulary, files=files, allow_unproved=True)


def _summary(kind: MechanismKind) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _read(value: str) -> Parameter:
    """A number, true, false, or a word."""
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _written(default: Parameter) -> str:
    return default if isinstance(default, str) else json.dumps(default)
