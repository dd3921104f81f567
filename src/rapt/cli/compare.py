"""`rapt compare`: what a setting costs and what a method gains, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapt.cli import output
from rapt.cli.options import (
    AllowUnproved,
    AsJson,
    ChosenEngine,
    Drawn,
    Engine,
    MechanismOptions,
    PolicyFile,
    Precision,
    RayAddress,
    list_given,
    open_engine,
    read_options,
)
from rapt.cli.output import format_table, show, show_json
from rapt.errors import UsageError

# What a comparison that is read from a file does not say.
_BESIDE_A_FILE = frozenset({"file", "out", "processes", "engine", "ray_address", "as_json"})


def compare(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Labelled texts to train on (CSV, TSV, JSONL, Parquet), or a whole comparison in TOML."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results and report; give it again to go on.")],
    eta: Annotated[list[float] | None, typer.Option(metavar="NUMBER", help="Setting of η; repeat.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labelled texts to judge on; default: a fifth of FILE.")
    ] = None,
    cross_validate: Annotated[
        bool, typer.Option("--cross-validate", help="Seeds take turns to judge on each fifth of FILE.")
    ] = False,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    text_column_2: Annotated[
        str | None,
        typer.Option("--text-column-2", metavar="NAME", help="Column of the second text of a pair; privatized too."),
    ] = None,
    label_column: Annotated[str, typer.Option(help="Column that holds the label.")] = "label",
    min_words: Annotated[int, typer.Option(min=1, help="Leave shorter training texts out.")] = 1,
    records: Annotated[int | None, typer.Option(min=2, help="Train on at most so many texts.")] = None,
    evaluation_records: Annotated[int | None, typer.Option(min=1, help="Judge on at most so many texts.")] = None,
    truncate: Annotated[
        int | None, typer.Option(metavar="N", help="Cut each text after N tokens, for all arms. Default: refuse.")
    ] = None,
    model: Annotated[str, typer.Option(help="Backbone: a known model or a model folder.")] = "minilm",
    denoised: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Backbone made by `rapt denoise`; adds arms.")
    ] = None,
    policy: PolicyFile = None,
    public: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public text, for the arms whose plain tokens are sentences.")
    ] = None,
    codes: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Code of whole texts, a name or folder; adds arms on codes and at home."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="Encoder of the code, a name or folder; default: its name.")
    ] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(metavar="NUMBER", help="ε of a whole text, for arms on codes; repeat.")
    ] = None,
    crowd: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Contributors of one text each, and at home the texts of one; 0 for all; repeat. Default: all.",
        ),
    ] = None,
    own_texts: Annotated[int, typer.Option(metavar="N", help="Labelled texts of one's own, for the arm fused.")] = 100,
    mechanism: Annotated[str, typer.Option(help="Mechanism, one of `rapt mechanisms`.")] = "laplace",
    settings: MechanismOptions = None,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Arms to compare; default: all that can be.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Models for each arm and η.")] = 5,
    privatizations: Annotated[
        int, typer.Option(min=1, help="Privatizations of the texts to judge on, for each model.")
    ] = 3,
    plain_tokens: Annotated[int, typer.Option(min=0, help="Plain tokens before each text, m.")] = 20,
    plain_pool: Annotated[
        int, typer.Option(min=1, help="Size of the set that plain tokens are drawn from, |T|.")
    ] = 500,
    plain_tokens_drawn: Annotated[
        Drawn,
        typer.Option(help="Draw plain tokens once for the file, as in the paper, or anew for each record."),
    ] = Drawn.RECORD,
    weight: Annotated[float, typer.Option(min=0, help="λ of the arms that reconstruct.")] = 0.1,
    method: Annotated[str, typer.Option(help="Tuning method, one of those of `rapt tune`.")] = "prompt_tuning",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 3,
    prompt_length: Annotated[int, typer.Option(min=1, help="Vectors of the prompt, P.")] = 10,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the method's own.")] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="Number format of the backbones; bfloat16 is several times as fast on some processors."),
    ] = Precision.FLOAT32,
    attacks: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Also attack each η, for the curve over recovered tokens.")
    ] = None,
    attack_tokens: Annotated[int, typer.Option(min=1, help="About how many tokens are attacked.")] = 5_000,
    processes: Annotated[int, typer.Option(metavar="N", min=1, help="Models trained at once, a thread each.")] = 1,
    engine: ChosenEngine = Engine.LOCAL,
    ray_address: RayAddress = None,
    allow_unproved: AllowUnproved = False,
    as_json: AsJson = False,
) -> None:
    """Train the same model with one thing changed, over η and seeds, and say what made a difference.

    All of it happens here: nothing is sent. The noise comes from seeds, so results can be repeated and files of a
    comparison protect nobody. A run that was cut off goes on where it was.

    \b
    Examples:
      rapt compare reviews.csv --eta 60 --eta 75 --eta 90 --out comparison --processes 2
      rapt compare reviews.csv --codes minilm-codes --epsilon 2 --epsilon 4 --crowd 100 --crowd 1000 --out comparison
      rapt compare plan.toml --out comparison
      rapt compare plan.toml --out comparison --engine ray --ray-address 10.0.0.5:6379
      rapt compare pairs.csv --text-column sentence1 --text-column-2 sentence2 --eta 75 --out comparison
    """
    from rapt.compare import Comparison, ComparisonPlan, TextFiles, compare_files, read_comparison
    from rapt.compare.comparison import list_possible_arms
    from rapt.compare.report import draw_conclusions
    from rapt.compare.tables import list_accuracies, list_differences

    if file.suffix == ".toml":
        _refuse_other_options(context)
        comparison = read_comparison(file, out=out, processes=processes)
    else:
        arms_to_run = _split_names(arms) or list_possible_arms(
            denoised=denoised is not None,
            public=public is not None,
            method=method,
            etas=bool(eta),
            codes=codes is not None,
            epsilons=bool(epsilon),
            policy=policy is not None,
        )
        comparison = Comparison(
            plan=ComparisonPlan(
                model=model,
                mechanism=mechanism,
                options=read_options(mechanism, settings),
                etas=tuple(eta or ()),
                epsilons=tuple(epsilon or ()),
                codes=codes,
                encoder=encoder,
                crowds=tuple(crowd or (0,)),
                own_texts=own_texts,
                seeds=tuple(range(seeds)),
                arms=arms_to_run,
                denoised=None if denoised is None else str(denoised),
                policy=None if policy is None else str(policy),
                privatizations=privatizations,
                plain_tokens=plain_tokens,
                plain_pool=plain_pool,
                plain_drawn=plain_tokens_drawn.value,
                weight=weight,
                method=method,
                epochs=epochs,
                prompt_length=prompt_length,
                learning_rate=learning_rate,
                attacks=_split_names(attacks),
                attack_tokens=attack_tokens,
                allow_unproved=allow_unproved,
                precision=precision.value,
            ),
            texts=TextFiles(
                training=file,
                evaluation=evaluation,
                public=public,
                cross_validate=cross_validate,
                text_column=text_column,
                text_column_2=text_column_2,
                label_column=label_column,
                min_words=min_words,
                records=records,
                evaluation_records=evaluation_records,
                truncate=truncate,
            ),
            out=out,
            processes=processes,
        )
    with open_engine(engine, address=ray_address, cores=processes) as cluster:
        found = compare_files(comparison, narrator=output, cluster=cluster)
    if as_json:
        show_json({"report": str(found.page)})
        return
    for sentence in draw_conclusions(found.summary):
        if sentence.startswith("Home "):
            show(sentence + "\n")
    for cells in (list_accuracies(found.summary), list_differences(found.summary)):
        show(format_table(cells[0], cells[1:]) + "\n")


def _refuse_other_options(context: typer.Context) -> None:
    """Refuse options that the file of a comparison says (`UsageError`)."""
    given = [name for name in list_given(context) if name not in _BESIDE_A_FILE]
    if given:
        raise UsageError(
            f"a comparison in a file must say all but --out, --processes and the engine, got {len(given)} options "
            "beside it; put them into the file"
        )


def _split_names(listed: str | None) -> tuple[str, ...]:
    return () if listed is None else tuple(name.strip() for name in listed.split(","))
