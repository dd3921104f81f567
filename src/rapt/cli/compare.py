"""`rapt compare`: what a setting costs and what a method gains, with intervals."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapt.cli.chosen_mechanism import given_options
from rapt.cli.options import AllowUnproved, AsJson, Drawn, MechanismOptions, Precision
from rapt.cli.output import meter, say, show, show_json, table

if TYPE_CHECKING:
    from rapt.compare.plan import ComparisonPlan
    from rapt.compare.texts import Split


def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labelled texts to train on; CSV, TSV, JSONL, Parquet.")],
    out: Annotated[Path, typer.Option(help="Folder for results and report; give it again to go on.")],
    eta: Annotated[list[float], typer.Option(metavar="NUMBER", help="Setting of η; repeat.")],
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
    model: Annotated[str, typer.Option(help="Backbone: a known model or a model folder.")] = "minilm",
    denoised: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="That `rapt denoise` made; adds arms.")
    ] = None,
    public: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public text, for the arms whose plain tokens are sentences.")
    ] = None,
    mechanism: Annotated[str, typer.Option(help="As `rapt mechanisms` lists them.")] = "laplace",
    settings: MechanismOptions = None,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="What is compared; default: all arms that can be.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Models for each arm and η.")] = 5,
    privatizations: Annotated[int, typer.Option(min=1, help="Of the texts to judge on, for each model.")] = 3,
    plain_tokens: Annotated[int, typer.Option(min=0, help="m, before each text.")] = 20,
    plain_pool: Annotated[int, typer.Option(min=1, help="|T|, how many they are drawn from.")] = 500,
    plain_tokens_drawn: Annotated[
        Drawn, typer.Option(help="Once for the file, as in the paper, or anew for each record.")
    ] = Drawn.RECORD,
    weight: Annotated[float, typer.Option(min=0, help="λ of the arms that reconstruct.")] = 0.1,
    method: Annotated[str, typer.Option(help="As `rapt tune` has them.")] = "prompt_tuning",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 3,
    prompt_length: Annotated[int, typer.Option(min=1, help="P.")] = 10,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the method's own.")] = None,
    precision: Annotated[
        Precision, typer.Option(help="Of the backbones; bfloat16 is several times as fast on some processors.")
    ] = Precision.FLOAT32,
    attacks: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Also attack each η, for the curve over recovered tokens.")
    ] = None,
    attack_tokens: Annotated[int, typer.Option(min=1, help="About how many tokens are attacked.")] = 5_000,
    processes: Annotated[int, typer.Option(metavar="N", min=1, help="Models trained at once, a thread each.")] = 1,
    allow_unproved: AllowUnproved = False,
    as_json: AsJson = False,
) -> None:
    """Train the same model with one thing changed, over η and seeds, and say what made a difference.

    All of it happens here: nothing is sent. The noise comes from seeds, so results can be repeated and files of a
    comparison protect nobody. A run that was cut off goes on where it was.

    \b
    Examples:
      rapt compare reviews.csv --eta 60 --eta 75 --eta 90 --out comparison --processes 2
      rapt compare pairs.csv --text-column sentence1 --text-column-2 sentence2 --eta 75 --out comparison
    """
    from rapt.compare.arms import ARMS, LONGER
    from rapt.compare.crew import run_comparison
    from rapt.compare.paper_table import accuracy_cells, difference_cells
    from rapt.compare.plan import ComparisonPlan
    from rapt.compare.report import write_comparison
    from rapt.compare.summary import summarize
    from rapt.compare.texts import read_split
    from rapt.errors import UsageError
    from rapt.service.model.tuning_config import LORA

    plan = ComparisonPlan(
        model=model,
        mechanism=mechanism,
        options=given_options(mechanism, settings),
        etas=tuple(eta),
        seeds=tuple(range(seeds)),
        arms=_names(arms)
        or tuple(
            name
            for name, arm in ARMS.items()
            if (denoised or not arm.denoised) and (public or not arm.sentences) and (method != LORA or name != LONGER)
        ),
        denoised=None if denoised is None else str(denoised),
        privatizations=privatizations,
        plain_tokens=plain_tokens,
        plain_pool=plain_pool,
        plain_drawn=plain_tokens_drawn.value,
        weight=weight,
        method=method,
        epochs=epochs,
        prompt_length=prompt_length,
        learning_rate=learning_rate,
        attacks=_names(attacks),
        attack_tokens=attack_tokens,
        allow_unproved=allow_unproved,
        precision=precision.value,
    )
    split = read_split(
        file,
        evaluation=evaluation,
        public=public,
        training_records=records,
        evaluation_records=evaluation_records,
        text_column=text_column,
        label_column=label_column,
        text_column_2=text_column_2,
        min_words=min_words,
        cross_validate=cross_validate,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out must be a folder, got {error.strerror}; choose another") from None
    with meter("comparing", unit="results") as progress:
        rows = run_comparison(
            plan,
            split,
            results=out / "results.jsonl",
            processes=processes,
            on_row=lambda done, total: progress(done, total=total),
        )
    summary = summarize(
        rows,
        most_frequent_label=[turn.most_frequent_label_is_right for turn in split.turns],
        turns=len(split.turns),
    )
    page = write_comparison(
        plan,
        split,
        summary,
        out,
        title=f"Comparison on {file.name}",
        created=datetime.now(UTC).date().isoformat(),
        command=_command(
            file,
            evaluation,
            public,
            plan,
            split,
            columns={"text-column": text_column, "text-column-2": text_column_2, "label-column": label_column},
            min_words=min_words,
        ),
    )
    say(f"report: {page}")
    if as_json:
        show_json({"report": str(page)})
        return
    for cells in (accuracy_cells(summary), difference_cells(summary)):
        show(table(cells[0], cells[1:]) + "\n")


def _command(
    file: Path,
    evaluation: Path | None,
    public: Path | None,
    plan: ComparisonPlan,
    split: Split,
    *,
    columns: dict[str, str | None],
    min_words: int,
) -> str:
    """What makes the numbers again; names of files, without the folders they are in."""
    words: list[object] = ["rapt", "compare", file.name, "--out", "comparison", "--model", Path(plan.model).name]
    words += [word for eta in plan.etas for word in ("--eta", f"{eta:g}")]
    words += [] if evaluation is None else ["--evaluation", evaluation.name]
    words += ["--cross-validate"] if split.further else []
    words += [] if public is None else ["--public", public.name]
    words += [] if plan.denoised is None else ["--denoised", Path(plan.denoised).name]
    words += [word for name, column in columns.items() if column is not None for word in (f"--{name}", column)]
    words += ["--mechanism", plan.mechanism]
    words += [word for name, value in plan.options.items() for word in ("--set", f"{name}={value}")]
    words += ["--min-words", min_words, "--records", max(len(turn.training) for turn in split.turns)]
    words += ["--evaluation-records", len(split.evaluation), "--arms", ",".join(plan.arms)]
    words += ["--seeds", len(plan.seeds), "--privatizations", plan.privatizations]
    words += ["--plain-tokens", plan.plain_tokens, "--plain-pool", plan.plain_pool, "--weight", f"{plan.weight:g}"]
    words += [] if plan.plain_drawn == "record" else ["--plain-tokens-drawn", plan.plain_drawn]
    words += ["--allow-unproved"] if plan.allow_unproved else []
    words += [] if plan.precision == "float32" else ["--precision", plan.precision]
    words += ["--method", plan.method, "--epochs", plan.epochs, "--prompt-length", plan.prompt_length]
    words += [] if plan.learning_rate is None else ["--learning-rate", f"{plan.learning_rate:g}"]
    words += ["--attacks", ",".join(plan.attacks), "--attack-tokens", plan.attack_tokens] if plan.attacks else []
    return shlex.join(str(word) for word in words)


def _names(listed: str | None) -> tuple[str, ...]:
    return () if listed is None else tuple(name.strip() for name in listed.split(","))
