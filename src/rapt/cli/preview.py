"""`rapt preview`: how often each word of a text would stay as it is, before anything is privatized or sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapt.cli.mechanisms import split_pair
from rapt.cli.options import (
    AllowUnproved,
    AsJson,
    Eta,
    MechanismName,
    MechanismOptions,
    PolicyFile,
    TrustVocabulary,
    VocabularyName,
    choose_mechanism,
    load_checked_vocabulary,
    read_policy,
)
from rapt.cli.output import meter, say, show, show_json
from rapt.errors import CorpusError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from rapt.local.deniability import UnchangedShare
    from rapt.local.mechanisms import Mechanism
    from rapt.local.retention import Retention, WordChance
    from rapt.local.vocabulary import Vocabulary

SCHEMA = "rapt.preview/1"
# Draws over all tokens of the texts together: 20 seconds on one core with MiniLM's table.
_DRAWS = 2**18
_FEWEST, _MOST = 32, 1024
# Lines of the table of words that stay; --json has all of them.
_LINES = 40
LIST_WARNING = "if these words come from your texts, an η that is chosen by them says something about those"


def preview(
    eta: Eta,
    texts: Annotated[
        Path | None, typer.Argument(metavar="[TEXTS]", help="Your texts: CSV, TSV, JSONL or Parquet, one a row.")
    ] = None,
    mechanism: MechanismName = "laplace",
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    vocabulary: VocabularyName = "minilm",
    trust_vocabulary: TrustVocabulary = False,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    policy: PolicyFile = None,
    word: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="Show how often this word stays; repeat.")
    ] = None,
    pair: Annotated[
        list[str] | None, typer.Option(metavar="WORD,WORD", help="Show how often each of these two stays; repeat.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="List the tokens that stay more often than this.")
    ] = 0.7,
    keep_below: Annotated[
        Path | None,
        typer.Option(
            metavar="LIST", help="File with a word a line: find the largest η that keeps each below --target."
        ),
    ] = None,
    target: Annotated[
        float, typer.Option(metavar="SHARE", help="Largest probability with which a word of --keep-below may stay.")
    ] = 0.5,
    shown: Annotated[int, typer.Option("--show", metavar="N", min=0, help="Number of texts shown token by token.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Say how often each word of your texts would stay as it is.

    Nothing is sent, nothing is privatized, and no ledger is touched. What is printed is your own text: it goes to
    standard output only.

    \b
    Examples:
      rapt preview reviews.csv --eta 75 --text-column review
      rapt preview reviews.csv --eta 75 --keep-below names.txt --target 0.3
      rapt preview --eta 75 --word suicide --pair london,paris
    """
    from rapt.local.deniability import measure_unchanged
    from rapt.local.own_texts import count_own_texts
    from rapt.local.randomness import secure_stream
    from rapt.local.retention import find_largest_eta, measure_retention, measure_words

    words = [*(word or ()), *(one for two in pair or () for one in split_pair(two))]
    if texts is None and not words and keep_below is None:
        raise UsageError("there must be something to look at; give TEXTS, --word, --pair or --keep-below")
    listed = None if keep_below is None else read_words(keep_below)
    loaded = load_checked_vocabulary(vocabulary, trusted=trust_vocabulary)

    def make(at: float) -> Mechanism:
        return choose_mechanism(mechanism, vocabulary=loaded, eta=at, settings=settings, allow_unproved=allow_unproved)

    made, rng = make(eta), secure_stream().generator
    own = None
    if texts is not None:
        own = count_own_texts(texts, loaded, text_column=text_column, shown=shown, policy=read_policy(policy))
    counts = Counter[int]() if own is None else own.counts
    draws = min(_MOST, max(_FEWEST, _DRAWS // max(len(counts), 1)))
    known = measure_retention(made, loaded, list(counts), rng=rng, draws=draws) if counts else None
    named = measure_words(made, loaded, words, rng=rng)
    found = None
    if listed is not None:
        with meter("searching", unit="values of η tried") as progress:
            found = find_largest_eta(
                make, loaded, listed, target=target, start=eta, rng=rng, on_progress=lambda tried: progress(tried)
            )
    basis = measure_unchanged(made, loaded, rng=rng)
    result = describe(loaded, counts, known=known, basis=basis, threshold=threshold) | {
        "eta": eta,
        "mechanism": made.setting.name,
        "model": loaded.model,
        "texts": [] if own is None or known is None else [list_chances(loaded, ids, known) for ids in own.first],
        "words": [asdict(chance) for chance in named],
        "largest_eta": None
        if found is None
        else {"eta": found[0], "target": target, "words": [asdict(chance) for chance in found[1]]},
    }
    if as_json:
        show_json({"schema": SCHEMA} | result)
        return
    show("\n".join(write_page(result, named=named, found=found)))
    if found is not None:
        say(f"rapt: {LIST_WARNING}")


def read_words(path: Path) -> list[str]:
    """Read a list with a word on each line; blank lines are left out. Raises `CorpusError`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise CorpusError(
            f"the list of words must be a readable file in UTF-8, got {type(error).__name__}; choose another"
        ) from None
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise CorpusError("the list of words must have at least one word on a line, got none; check the file")
    return words


def describe(
    vocabulary: Vocabulary,
    counts: Counter[int],
    *,
    known: Retention | None,
    basis: UnchangedShare,
    threshold: float,
) -> dict[str, Any]:
    """Describe the texts and their tokens as plain values; the tokens that stay most come first."""
    found: dict[str, Any] = {"basis": asdict(basis), "threshold": threshold}
    if known is None:
        return found | {"tokens": 0, "share": None, "draws": None, "above": []}
    kept: np.ndarray[Any, Any] = known.kept
    times = [counts[token] for token in known.token_ids.tolist()]
    order = [place for place in (-kept).argsort(kind="stable").tolist() if kept[place] > threshold]
    written = vocabulary.tokens(known.token_ids[order].tolist())
    total = sum(times)
    return found | {
        "tokens": total,
        "share": float(kept @ times) / total if total else None,
        "draws": known.draws,
        "above": [
            {"token": token, "times": times[place], "kept": float(kept[place])}
            | dict(zip(("low", "high"), known.bound(float(kept[place])), strict=True))
            for token, place in zip(written, order, strict=True)
        ],
    }


def list_chances(vocabulary: Vocabulary, ids: Sequence[int], known: Retention) -> list[dict[str, Any]]:
    """Each token of one text with its chance to stay."""
    chances = known.find(ids).tolist()
    return [{"token": token, "kept": chance} for token, chance in zip(vocabulary.tokens(ids), chances, strict=True)]


def write_page(
    result: dict[str, Any], *, named: tuple[WordChance, ...], found: tuple[float, tuple[WordChance, ...]] | None
) -> list[str]:
    """The result for people."""
    from rapt.local.statement import format_words
    from rapt.local.text_page import facts, table, wrap

    basis = result["basis"]
    lines = facts(
        [
            ("setting", f"{result['mechanism']} at η = {result['eta']:g}, on {result['model']}"),
            ("unchanged", f"{100 * basis['share']:.1f} % of {basis['basis']} stay"),
        ]
    )
    if result["share"] is not None:
        how = f"{result['draws']} draws of each token" if result["draws"] else "exact"
        own = f"{100 * result['share']:.1f} % of the {result['tokens']:,} tokens of these texts stay ({how})"
        lines += facts([("your texts", own)])
        for position, text in enumerate(result["texts"], 1):
            words = "  ".join(f"{one['token']} {100 * one['kept']:.0f}" for one in text)
            lines += [
                "",
                f"text {position}: each token, and how often it stays, %",
                *wrap(words, first="  ", rest="  "),
            ]
        above = result["above"]
        lines += [
            "",
            f"{len(above):,} different tokens stay more often than {100 * result['threshold']:g} % of the time",
        ]
        if above:
            lines += table(
                ("", "times", "stays", "95 % interval"),
                [
                    (
                        one["token"],
                        f"{one['times']:,}",
                        f"{100 * one['kept']:.1f} %",
                        f"{100 * one['low']:.1f}–{100 * one['high']:.1f} %",
                    )
                    for one in above[:_LINES]
                ],
            )
        if len(above) > _LINES:
            lines.append(f"  … and {len(above) - _LINES:,} more; --json lists them all")
    if named:
        lines += ["", "the words you named; one of several tokens stays if all of them do", *format_words(named)]
    if found is not None:
        eta, chances = found
        worst = sorted(chances, key=lambda chance: -chance.kept)[:_LINES]
        goal = f"{100 * result['largest_eta']['target']:g} %"
        lines += ["", f"η = {eta:g} is the largest at which each word of the list stays less often than {goal}"]
        lines += format_words(worst)
    return lines
