"""`rapt mechanisms` and `rapt statement`: what a mechanism promises, what it spends, and what it does not protect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapt.cli.options import (
    AllowUnproved,
    AsJson,
    MechanismOptions,
    PolicyFile,
    TrustVocabulary,
    VocabularyName,
    choose_mechanism,
    load_checked_vocabulary,
    read_policy,
    remake_file_mechanism,
)
from rapt.cli.output import format_table, show, show_json
from rapt.errors import MechanismError, UsageError
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS

if TYPE_CHECKING:
    from rapt.audit.program_audit import ProgramAudit
    from rapt.local.mechanisms import Mechanism
    from rapt.local.vocabulary import Vocabulary
    from rapt.wire.mechanism_setting import Parameter


def mechanisms(
    audit: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Measure the η that this mechanism really spends, instead of listing all."),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Stated η of the mechanism, with --audit.")
    ] = None,
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    vocabulary: VocabularyName = "minilm",
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD,WORD", help="Words to tell apart, with --audit; repeat. Default: near words."),
    ] = None,
    runs: Annotated[
        int, typer.Option(metavar="N", min=100, help="Draws of each word of a pair, with --audit.")
    ] = 10_000,
    as_json: AsJson = False,
) -> None:
    """List the mechanisms with the status of their guarantee and their options.

    With --audit, draw many outputs, bound from below the η that they show, and compare them with the outputs of a
    second implementation of the mechanism. An error says that the program does not do what it states.

    \b
    Examples:
      rapt mechanisms
      rapt mechanisms --audit exponential --eta 14 --pair good,bad
    """
    from rapt.local.codes import subset
    from rapt.local.mechanisms import MECHANISMS

    if audit is not None:
        from rapt.local.vocabulary import load_vocabulary

        if eta is None:
            raise UsageError("--audit must come with the η that the mechanism states; give --eta")
        known_table = load_vocabulary(vocabulary)
        made = choose_mechanism(
            audit, vocabulary=known_table, eta=eta, settings=settings, allow_unproved=allow_unproved
        )
        audit_mechanism(made, known_table, pairs=pair or (), runs=runs, as_json=as_json)
        return
    if eta is not None or settings or pair or allow_unproved:
        raise UsageError("--eta, --set, --pair and --allow-unproved must come with one mechanism; add --audit NAME")

    whole = KNOWN_MECHANISMS[subset.NAME]
    listed: list[dict[str, Any]] = [
        {
            "name": subset.NAME,
            "unit": whole.unit,
            "status": whole.status,
            "summary": _summarize(subset.SubsetMechanism.__doc__),
            "caveat": whole.caveat,
            "options": [],
        }
    ] + [
        {
            "name": name,
            "unit": kind.known.unit,
            "status": kind.known.status,
            "summary": _summarize(kind.guarantee),
            "caveat": kind.known.caveat,
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
        format_table(
            ["mechanism", "protects", "guarantee", "what it does"],
            [[row[key] for key in ("name", "unit", "status", "summary")] for row in listed],
        )
    )
    show("")
    show(
        format_table(
            ["mechanism", "--set", "what it sets"],
            [
                [name, f"{option}={_write_default(known.default)}", known.help]
                for name, kind in MECHANISMS.items()
                for option, known in kind.options.items()
            ],
        )
    )
    for name, kind in MECHANISMS.items():
        if kind.known.caveat:
            show(f"\n{name} needs --allow-unproved: {kind.known.caveat}")


def _summarize(docstring: str | None) -> str:
    return (docstring or "").strip().splitlines()[0]


def _write_default(default: Parameter) -> str:
    return default if isinstance(default, str) else json.dumps(default)


# Draws of each token of a pair, if no number is given: they take a few seconds a pair.
RUNS = 10_000
_ALPHA = 1e-6


def audit_mechanism(
    mechanism: Mechanism, vocabulary: Vocabulary, *, pairs: Sequence[str], runs: int, as_json: bool
) -> None:
    """Print what the outputs of a mechanism show, with bounds between pairs of words; near words where none are named.

    Raises:
        UsageError: A pair is not two words of one token each.
        AuditError: The guarantee says nothing about a pair.
        MechanismError: The program does not do what it states; the findings are printed before.
    """
    from rapt.audit.program_audit import audit_program
    from rapt.audit.spent_eta import choose_near_pairs, draw_independently
    from rapt.local.randomness import secure_stream

    chosen = [encode_pair(vocabulary, pair) for pair in pairs] or choose_near_pairs(mechanism, vocabulary)
    found = audit_program(
        draw_independently(mechanism),
        mechanism=mechanism,
        vocabulary=vocabulary,
        pairs=chosen,
        runs=runs,
        rng=secure_stream().generator,
        alpha=_ALPHA,
    )
    name = mechanism.setting.name
    if as_json:
        show_json(dump_program_audit(found, mechanism=name))
    else:
        show_findings(found, vocabulary, name=name)
    if found.defects:
        raise MechanismError(
            f"the program of mechanism={name!r} must do what it states, but {', and '.join(found.defects)}; "
            "release nothing with it, and report this"
        )


def show_findings(found: ProgramAudit, vocabulary: Vocabulary, *, name: str) -> None:
    """Print the bounds and the comparison for people."""
    rows = [
        [
            " / ".join(vocabulary.tokens([*spent.pair.left, *spent.pair.right])),
            f"{spent.pair.distance:.3f}",
            f"{max(spent.lower, 0.0):.3g}",
            f"{spent.largest:.3g}",
            f"{spent.variation:.3f}",
            f"{spent.pair.variation:.3f}",
        ]
        for spent in found.spent.found
    ]
    show(
        format_table(
            ["pair", "distance", "η spent, at least", "runs can show", "variation, at least", "δ(0) allows"], rows
        )
    )
    show("")
    if found.fit is None:
        show(f"the outputs were not compared with the stated channel: {name} has no second implementation")
    else:
        fit = found.fit
        show(
            f"outputs of {fit.tokens} words, {fit.runs:,} draws of each: {fit.unchanged:.1%} unchanged, "
            f"{fit.expected:.1%} stated; p = {fit.p:.2g} over {fit.tests} tests"
        )
    if not found.defects:
        show(
            f"nothing speaks against eta = {found.eta:g}; a sound program is accused once in {1 / found.alpha:,.0f} "
            "audits, and a bound below eta proves nothing"
        )


def encode_pair(vocabulary: Vocabulary, pair: str) -> tuple[int, int]:
    """Return the ids of the two words in `word,word` (`UsageError`)."""
    left, right = vocabulary.encode(split_pair(pair))
    if len(left) != 1 or len(right) != 1 or left == right:
        raise UsageError(
            f"--pair must be two different words of one token each here, got {len(left)} and {len(right)} tokens; "
            "choose other words"
        )
    return left[0], right[0]


def dump_program_audit(found: ProgramAudit, *, mechanism: str) -> dict[str, Any]:
    """The findings as plain JSON values; a bound that shows nothing is null."""
    spent = found.spent
    pairs = [asdict(pair) | {"lower": pair.lower if pair.lower > 0 else None} for pair in spent.found]
    return {
        "mechanism": mechanism,
        "eta": found.eta,
        "eta_spent_at_least": spent.lower if spent.lower > 0 else None,
        "largest_bound_possible": spent.largest,
        "sound": not found.defects,
        "defects": found.defects,
        "alpha": found.alpha,
        "fit": None if found.fit is None else asdict(found.fit),
        "pairs": pairs,
    }


def statement(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Privatized file whose setting is described.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Slope in 1/embedding distance, if there is no FILE yet.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="ε of a whole text, if there is no FILE of codes yet.")
    ] = None,
    mechanism: Annotated[str, typer.Option(help="Mechanism that replaces tokens; only with --eta.")] = "laplace",
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    vocabulary: Annotated[
        str | None, typer.Option(help="Known model, model folder or fetched bundle; default: FILE's model, or minilm.")
    ] = None,
    trust_vocabulary: TrustVocabulary = False,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD,WORD", help="Show how well these two words are kept apart, and how often each stays; repeat."
        ),
    ] = None,
    word: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="Show how often this word stays as it is; repeat.")
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(metavar="TEXTS", help="Texts of FILE in clear: show what repeats in them, and how much stays."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of --original that holds the text.")] = "text",
    policy: PolicyFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what a setting protects, and what it does not.

    The setting is that of a privatized FILE, or the one given by --epsilon (whole texts) or --eta (tokens) before there
    is a file. Of a FILE its own lengths are stated, and with --original, read on this machine alone, its own words. How
    often your words stay at an η, `rapt preview` says.

    \b
    Examples:
      rapt statement reviews.rapt.jsonl
      rapt statement --epsilon 4
      rapt statement --eta 75 --pair london,paris --pair london,cancer
    """
    from rapt.local.codes.text_statement import state_text_privacy
    from rapt.local.deniability import measure_deniability, measure_every_token, measure_unchanged
    from rapt.local.guarantee import state_privacy
    from rapt.local.own_texts import count_own_texts, measure_file
    from rapt.local.randomness import secure_stream
    from rapt.local.retention import measure_kinds, measure_words
    from rapt.local.weighting import weigh_counts
    from rapt.wire.manifest import NO_PLAIN_TOKENS, UNARRANGED
    from rapt.wire.privatized_file import read_manifest
    from rapt.wire.vocabulary_bundle import check_hash

    pairs = tuple(split_pair(text) for text in pair or ())
    if sum(given is not None for given in (file, eta, epsilon)) != 1:
        raise UsageError("one setting must be named: give a privatized FILE, --epsilon or --eta, and no two of them")
    manifest = None if file is None else read_manifest(file)
    if manifest is not None and manifest.unit == "text":
        epsilon = manifest.mechanism.epsilon
    if epsilon is not None:
        if pair or word or settings or vocabulary is not None or original is not None:
            raise UsageError(
                "--pair, --word, --set, --vocabulary and --original are of tokens; leave them out for whole texts"
            )
        said = state_text_privacy(epsilon, manifest=manifest)
        show_json(said.to_json()) if as_json else show(said.to_text())
        return
    if original is not None and manifest is None:
        raise UsageError("--original must be the texts of a privatized FILE; give it, or run rapt preview")
    if manifest is not None:
        loaded = load_checked_vocabulary(vocabulary or manifest.model, trusted=trust_vocabulary)
        check_hash(loaded.bundle, expected=manifest.vocabulary_hash)
        made = remake_file_mechanism(manifest.mechanism, vocabulary=loaded, settings=settings)
        setting, plain_tokens, randomness = manifest.mechanism, manifest.plain_tokens, manifest.randomness
        labels_sent, label_privacy = manifest.labels is not None, manifest.label_privacy
        two_texts, targets, arrangement = manifest.pairs, manifest.targets, manifest.arrangement
    else:
        assert eta is not None
        loaded = load_checked_vocabulary(vocabulary or "minilm", trusted=trust_vocabulary)
        made = choose_mechanism(mechanism, vocabulary=loaded, eta=eta, settings=settings, allow_unproved=allow_unproved)
        setting, plain_tokens, randomness = made.setting, NO_PLAIN_TOKENS, None
        labels_sent, label_privacy = True, None
        two_texts, targets, arrangement = False, None, UNARRANGED
    rng = secure_stream().generator
    own = None
    if original is not None:
        own = count_own_texts(original, loaded, text_column=text_column, policy=read_policy(policy))
    own_weights = None if own is None else weigh_counts(own.counts, source=f"the tokens of your {own.texts:,} texts")
    found = state_privacy(
        loaded,
        setting,
        plain_tokens=plain_tokens,
        labels_sent=labels_sent,
        label_privacy=label_privacy,
        two_texts=two_texts,
        targets=targets,
        arrangement=arrangement,
        policy=() if manifest is None else manifest.policy,
        word_pairs=pairs,
        randomness=randomness,
        file=None if file is None else measure_file(file),
        own=own,
        own_unchanged=None if own_weights is None else measure_unchanged(made, loaded, rng=rng, weighting=own_weights),
        unchanged=measure_unchanged(made, loaded, rng=rng),
        every_token=measure_every_token(made, loaded, rng=rng),
        kinds=measure_kinds(made, loaded, rng=rng),
        words=measure_words(made, loaded, [*(one for two in pairs for one in two), *(word or ())], rng=rng),
        deniability=measure_deniability(made, loaded, rng=rng),
    )
    if as_json:
        show_json(found.to_json())
    else:
        show(found.to_text())


def split_pair(pair: str) -> tuple[str, str]:
    """Split the two words in `word,word` (`UsageError`)."""
    first, comma, second = (part.strip() for part in pair.partition(","))
    if not (first and comma and second) or "," in second:
        raise UsageError("--pair must be two words with a comma between them, such as --pair london,paris")
    return first, second
