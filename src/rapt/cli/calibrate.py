"""`rapt calibrate`: the η for what you want, because a value of η means nothing by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapt.cli.mechanisms import split_pair
from rapt.cli.options import (
    AllowUnproved,
    AsJson,
    MechanismName,
    MechanismOptions,
    TrustVocabulary,
    VocabularyName,
    choose_mechanism,
    load_checked_vocabulary,
)
from rapt.cli.output import format_table, meter, say, show, show_json, write_output
from rapt.errors import RaptError, UsageError
from rapt.whole_files import check_target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapt.local.calibration import Calibration
    from rapt.local.mechanisms import Mechanism
    from rapt.local.vocabulary import Vocabulary
    from rapt.local.weighting import Weighting

SCHEMA = "rapt.calibration/1"
GUESS_SCHEMA = "rapt.text-calibration/1"
PRIVATE_WARNING = (
    "this η was chosen from private text, so its value says something about that text, which nothing here protects; "
    "prefer public text"
)


class At(StrEnum):
    """Distances of the table that a target ε can be stated at."""

    NEAR_NEIGHBOUR = "near-neighbour"
    MEDIAN_NEIGHBOUR = "median-neighbour"
    FAR_NEIGHBOUR = "far-neighbour"
    MEDIAN = "median"
    LARGEST = "largest"


def calibrate(
    unchanged: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Target: this share of tokens stays itself, such as 0.5.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Target: ε in nats, at --at or for --pair.")
    ] = None,
    bayes_success: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Target: the context-free Bayes attack finds this share; minutes."),
    ] = None,
    attack_success: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Target: the strongest attack that trains no network finds this share in --public-text; minutes.",
        ),
    ] = None,
    guess: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Target for whole texts: a guess among --among texts is right at most so often."
        ),
    ] = None,
    among: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of equally likely texts; only with --guess.  [default: 1000]"),
    ] = None,
    at: Annotated[
        At | None,
        typer.Option(
            help="Distance of a target ε: to the nearest other token (5 %, median, 95 %), of two tokens (median), "
            "or the largest.  [default: median-neighbour]",
            show_default=False,
        ),
    ] = None,
    pair: Annotated[
        str | None, typer.Option(metavar="WORD,WORD", help="Two words instead of --at for a target ε.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Aim at ε at this δ, such as 1e-5, not at the pure ε.")
    ] = None,
    mechanism: MechanismName = "laplace",
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    vocabulary: VocabularyName = "minilm",
    trust_vocabulary: TrustVocabulary = False,
    words: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Shares over the first N whole words.  [default: over running public text]"
        ),
    ] = None,
    all_tokens: Annotated[bool, typer.Option("--all-tokens", help="Shares over all tokens of the vocabulary.")] = False,
    public_text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Shares over the words of public texts: CSV, TSV or JSONL.")
    ] = None,
    private_text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Shares over the words of private texts: η then says something about them."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of these texts that holds the text.")] = "text",
    draws: Annotated[
        int | None,
        typer.Option(metavar="N", min=100, help="Tokens simulated for each η.  [default: 4096, with an attack 2048]"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curve as an .svg file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the plot if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Choose η, or ε of whole texts, for a target, and show what lies around it.

    Everything is counted over running public text by default, as `rapt statement` does, so that η says nothing about
    your texts. Give exactly one target. Never compare two mechanisms at equal η.

    \b
    Examples:
      rapt calibrate --unchanged 0.5 --plot curve.svg
      rapt calibrate --epsilon 20 --at median-neighbour
      rapt calibrate --epsilon 8 --delta 1e-5 --pair london,paris
      rapt calibrate --bayes-success 0.3
      rapt calibrate --attack-success 0.57 --public-text reviews.csv --mechanism exponential
      rapt calibrate --guess 0.05 --among 1000
    """
    if sum(target is not None for target in (unchanged, epsilon, bayes_success, attack_success, guess)) != 1:
        raise UsageError(
            "one target must be named: give --unchanged, --epsilon, --bayes-success, --attack-success or --guess"
        )
    if attack_success is not None and public_text is None:
        raise UsageError("--attack-success must have texts to attack and to hold; add --public-text")
    if among is not None and guess is None:
        raise UsageError("--among must come with a target for whole texts; add --guess")
    if guess is not None:
        if plot is not None:
            raise UsageError("--plot draws a curve over η; leave it out with --guess")
        calibrate_for_guess(guess, among=1000 if among is None else among, as_json=as_json)
        return
    if epsilon is None and (at is not None or pair is not None or delta is not None):
        raise UsageError("--at, --pair and --delta must come with a target ε; add --epsilon")
    if at is not None and pair is not None:
        raise UsageError("--at and --pair exclude each other; give one of them")
    check_plot(plot, overwrite=overwrite)
    loaded = load_checked_vocabulary(vocabulary, trusted=trust_vocabulary)
    weighting = weigh(
        loaded, words=words, all_tokens=all_tokens, public=public_text, private=private_text, text_column=text_column
    )

    attacked = None
    if attack_success is not None and public_text is not None:
        attacked = (attack_success, read_texts(public_text, loaded, text_column=text_column))

    def make(eta: float) -> Mechanism:
        return choose_mechanism(mechanism, vocabulary=loaded, eta=eta, settings=settings, allow_unproved=allow_unproved)

    with meter("calibrating", unit="values of η tried") as progress:
        if epsilon is not None:
            found = calibrate_for_epsilon(
                make,
                loaded,
                epsilon,
                mechanism=mechanism,
                at=at,
                pair=pair,
                delta=delta,
                weighting=weighting,
                draws=draws,
            )
        else:
            found = calibrate_for_share(
                make,
                loaded,
                unchanged=unchanged,
                bayes_success=bayes_success,
                attacked=attacked,
                weighting=weighting,
                draws=draws,
                on_progress=lambda tried: progress(tried),
            )
    drawn, failure = None, None
    if plot is not None:
        from rapt.local.calibration import draw_calibration

        try:
            write_output(plot, draw_calibration(found), overwrite=overwrite)
            drawn = str(plot)
        except RaptError as error:  # minutes of work are shown first
            failure = error
    if as_json:
        show_json(dump_calibration(found) | ({} if plot is None else {"plot": drawn}))
    else:
        show("\n".join(describe_calibration(found)))
        if drawn is not None:
            say(f"drawn: {drawn}")
        if found.depends_on_private_data:
            say(f"rapt: warning: {PRIVATE_WARNING}")
    if failure is not None:
        raise failure


def calibrate_for_guess(guess: float, *, among: int, as_json: bool) -> None:
    """Print the ε of a whole text for a guess among so many. Raises as `find_epsilon`."""
    from rapt.local.codes.text_statement import bound_guess, find_epsilon

    found = find_epsilon(guess, among=among)
    if as_json:
        reached = bound_guess(found, among=among)
        show_json({"schema": GUESS_SCHEMA, "epsilon": found, "guess": guess, "among": among, "reached": reached})
        return
    show(f"ε = {found:g} for a whole text\n")
    show(f"target     a guess among {among:,} equally likely texts is right in at most {100 * guess:g} % of cases\n")
    rows = [[f"{n}", f"{n * found:g}", f"{bound_guess(n * found, among=among):.2%}"] for n in (1, 2, 5, 10)]
    show(format_table(["texts of one person", "ε in all", f"named among {among:,}, at most"], rows))


def calibrate_for_epsilon(
    make: Callable[[float], Mechanism],
    loaded: Vocabulary,
    epsilon: float,
    *,
    mechanism: str,
    at: At | None,
    pair: str | None,
    delta: float | None,
    weighting: Weighting,
    draws: int | None,
) -> Calibration:
    """Calibrate for a target ε. Raises as `calibrate_epsilon`."""
    from rapt.local.calibration import DRAWS, NAMED_DISTANCES, calibrate_epsilon
    from rapt.local.distances import measure_distances
    from rapt.local.guarantee import measure_word_distances
    from rapt.local.mechanisms import find_space
    from rapt.local.randomness import secure_stream

    space = find_space(mechanism, loaded)
    if pair is not None:
        words = split_pair(pair)
        name, apart = " / ".join(words), measure_word_distances(space, words, position=0)
    else:
        name = (at or At.MEDIAN_NEIGHBOUR).value
        apart = [getattr(measure_distances(space), NAMED_DISTANCES[name])]
    return calibrate_epsilon(
        make,
        loaded,
        epsilon=epsilon,
        at=name,
        apart=apart,
        delta=delta,
        weighting=weighting,
        rng=secure_stream().generator,
        draws=draws or DRAWS,
    )


def calibrate_for_share(
    make: Callable[[float], Mechanism],
    loaded: Vocabulary,
    *,
    unchanged: float | None,
    bayes_success: float | None,
    attacked: tuple[float, Sequence[NDArray[np.int64]]] | None,
    weighting: Weighting,
    draws: int | None,
    on_progress: Callable[[int], None],
) -> Calibration:
    """Calibrate for the share that is given; `attacked` has that of the strongest attack, and the texts.

    Raises as `calibrate_unchanged`, `calibrate_success` and `calibrate_attack_success`.
    """
    from rapt.local.calibration import DRAWS, calibrate_unchanged
    from rapt.local.randomness import secure_stream

    rng = secure_stream().generator
    if unchanged is not None:
        return calibrate_unchanged(
            make,
            loaded,
            share=unchanged,
            weighting=weighting,
            rng=rng,
            draws=draws or DRAWS,
            on_progress=on_progress,
        )
    from rapt.audit.calibration import TRIALS, calibrate_attack_success, calibrate_success

    if attacked is not None:
        return calibrate_attack_success(
            make,
            loaded,
            success=attacked[0],
            texts=attacked[1],
            weighting=weighting,
            rng=rng,
            trials=draws or TRIALS,
            on_progress=on_progress,
        )
    assert bayes_success is not None
    return calibrate_success(
        make,
        loaded,
        success=bayes_success,
        weighting=weighting,
        rng=rng,
        trials=draws or TRIALS,
        on_progress=on_progress,
    )


def read_texts(path: Path, loaded: Vocabulary, *, text_column: str) -> list[NDArray[np.int64]]:
    """Return the tokens of the texts of a file. Raises `CorpusError`."""
    from rapt.audit.view import read_public_text

    return list(read_public_text(path, loaded.bundle, text_column=text_column).contents)


def weigh(
    loaded: Vocabulary,
    *,
    words: int | None,
    all_tokens: bool,
    public: Path | None,
    private: Path | None,
    text_column: str,
) -> Weighting:
    """Return the weighting that was asked for; running public text if none was.

    Raises:
        UsageError: More than one was asked for.
        CorpusError: A file of texts cannot be read.
    """
    from rapt.local.weighting import weigh_all, weigh_common_words, weigh_corpus, weigh_running_text

    if sum([words is not None, all_tokens, public is not None, private is not None]) > 1:
        raise UsageError("--words, --all-tokens, --public-text and --private-text exclude each other; give one of them")
    if all_tokens:
        return weigh_all(loaded)
    if public is not None:
        return weigh_corpus(public, loaded, text_column=text_column, private=False)
    if private is not None:
        return weigh_corpus(private, loaded, text_column=text_column, private=True)
    return weigh_running_text(loaded) if words is None else weigh_common_words(loaded, count=words)


def check_plot(plot: Path | None, *, overwrite: bool) -> None:
    """Refuse a plot that is no .svg file, or that exists, before any work (`UsageError`)."""
    if plot is None:
        return
    if plot.suffix != ".svg":
        raise UsageError(f"--plot must end in .svg, got {plot.suffix!r}; rename it")
    check_target(plot, overwrite=overwrite)


def dump_calibration(found: Calibration) -> dict[str, Any]:
    """Return a calibration as plain JSON values."""
    return {"schema": SCHEMA, **asdict(found), "warning": PRIVATE_WARNING if found.depends_on_private_data else None}


def describe_calibration(found: Calibration) -> list[str]:
    """Describe a calibration in lines for people."""
    interval = ""
    if found.eta_low is not None or found.eta_high is not None:
        ends = ["…" if end is None else f"{end:.4g}" for end in (found.eta_low, found.eta_high)]
        interval = f"  (95 % interval {ends[0]} to {ends[1]}, {found.draws:,} draws)"
    lines = [
        f"η = {found.eta:g}{interval}",
        "",
        f"target     {_describe_target(found)}",
        f"reached    {_describe_reached(found)}",
        f"mechanism  {found.mechanism}, on {found.model}, {found.vocabulary_hash.removeprefix('sha256:')[:12]}",
        f"shares     over {found.weighting}",
        "",
    ]
    attacked = all(point.success is not None for point in found.curve)
    header = ["η", "unchanged", "95 %", *(["attack", "95 %"] if attacked else [])]
    header += ["ε neighbour", "at δ=1e-5", "ε two tokens", "at δ=1e-5"]
    rows = []
    for point in found.curve:
        row = [f"{point.eta:.4g}", f"{point.unchanged:.1%}", f"{point.low:.1%}–{point.high:.1%}"]
        if attacked:
            row += [f"{point.success:.1%}", f"{point.success_low:.1%}–{point.success_high:.1%}"]
        row += [
            "none" if value is None else f"{value:.1f}"
            for value in (
                point.epsilon_neighbour,
                point.delta_epsilon_neighbour,
                point.epsilon_median,
                point.delta_epsilon_median,
            )
        ]
        rows.append(row)
    lines.append(format_table(header, rows))
    if any(point.epsilon_neighbour is None for point in found.curve):
        lines.append(f"\nno ε is stated, because no finite one is proved for mechanism {found.mechanism}")
    return lines


def _describe_target(found: Calibration) -> str:
    if found.target == "epsilon":
        kind = "pure" if found.delta is None else f"at δ = {found.delta:g}"
        return f"ε = {found.wanted:g} nats, {kind}, at distance {found.distance:.4g} ({found.at})"
    if found.target == "unchanged":
        return f"{found.wanted:.1%} of tokens unchanged"
    from rapt.local.calibration import NAMED_ATTACKS

    return f"{found.wanted:.1%} of tokens found by {NAMED_ATTACKS[found.target]}"


def _describe_reached(found: Calibration) -> str:
    if found.target == "epsilon":
        return f"ε = {found.reached:.4f} nats"
    if found.reached_low == found.reached_high:
        return f"{found.reached:.1%}, exact"
    return f"{found.reached:.1%} ({found.reached_low:.1%} to {found.reached_high:.1%}), measured with other draws"
