"""`rapt denoise`, `rapt reader`: a backbone that expects noise, and what lets one read codes, from public text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapt.cli import output
from rapt.cli.options import AsJson, ChosenPrecision, MechanismOptions, read_options
from rapt.cli.output import format_table, say, show, show_json

PublicText = Annotated[list[Path], typer.Argument(metavar="PUBLIC...", help="Files of public text; never a user's.")]
TextColumn = Annotated[str, typer.Option(help="Column that holds the text.")]
Epochs = Annotated[float, typer.Option(help="Passes over the text; may be a fraction.")]
BatchSize = Annotated[int, typer.Option(help="Number of texts in each step.")]
LearningRate = Annotated[float, typer.Option(help="Learning rate at its peak.")]
Computing = Annotated[ChosenPrecision, typer.Option(help="Number format of the backbone; auto takes the faster one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: its own.")]


def denoise(
    public: PublicText,
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    eta: Annotated[list[float], typer.Option(metavar="NUMBER", help="η that users will privatize with; repeat.")],
    model: Annotated[str, typer.Option(help="Backbone to begin with: a known model or a model folder.")] = "minilm",
    mechanism: Annotated[str, typer.Option(help="Mechanism that users will privatize with.")] = "laplace",
    settings: MechanismOptions = None,
    text_column: TextColumn = "text",
    epochs: Epochs = 3.0,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 3e-4,
    soft_embeddings: Annotated[
        bool, typer.Option("--soft-embeddings", help="Also show the model, for each word, the mean of what it may be.")
    ] = False,
    precision: Computing = ChosenPrecision.AUTO,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of order and noise.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Teach a backbone to understand privatized text, from public text that is privatized here.

    Run by whoever serves the model; it spends no user's budget. The vocabulary stays the same, so users privatize as
    before: serve the new folder with `rapt serve --model FOLDER`.

    \b
    Example:
      rapt denoise public.csv --eta 60 --eta 75 --eta 90 --out minilm-denoised
    """
    from rapt.denoise import WarmUpPlan, denoise_model

    made = denoise_model(
        WarmUpPlan(
            model=model,
            mechanism=mechanism,
            options=read_options(mechanism, settings),
            etas=tuple(eta),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            soft_embeddings=soft_embeddings,
        ),
        public,
        out=out,
        text_column=text_column,
        precision=precision.value,
        threads=threads,
        narrator=output,
    )
    if as_json:
        values = [{"eta": item.eta, "before": item.before, "after": item.after} for item in made.explained]
        show_json({"backbone": str(out), "texts": made.texts, "tokens": made.tokens, "explained": values})
        return
    rows = [[f"{item.eta:g}", f"{item.before:.2f}", f"{item.after:.2f}"] for item in made.explained]
    show(f"{made.texts:,} public texts, {made.tokens:,} tokens; share of the clear text's state that is explained:\n")
    show(format_table(["η", "before", "after"], rows))


def reader(
    public: PublicText,
    out: Annotated[Path, typer.Option(help="New folder for the reader.")],
    model: Annotated[str, typer.Option(help="Backbone that shall read codes: a known model or a model folder.")] = (
        "minilm"
    ),
    codes: Annotated[str, typer.Option(help="Code bundle: a known one or a folder.")] = "minilm-codes",
    encoder: Annotated[
        str | None, typer.Option(help="Encoder of the code, a name or folder. Default: its name.")
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(metavar="NUMBER", help="ε that users will privatize at; repeat. Default: 1, 2, 4 and 8."),
    ] = None,
    text_column: TextColumn = "text",
    vectors: Annotated[int, typer.Option(help="Input vectors for each codeword.")] = 4,
    epochs: Epochs = 5.0,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 1e-3,
    precision: Computing = ChosenPrecision.AUTO,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of weights, order and noise.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Teach a backbone to read codes of whole texts, from public text that is released as users' texts are.

    Run by whoever serves the model; it spends no user's budget. The folder is served beside its backbone, `rapt serve
    --model MODEL --model FOLDER`, and is what `--codes` of `rapt privatize` takes.

    \b
    Example:
      rapt reader public.csv --model smollm2 --codes minilm-codes --out smollm2-reads
    """
    from rapt.denoise import ReaderPlan, train_reader

    plan = ReaderPlan(
        model=model,
        codes=codes,
        epsilons=tuple(epsilon or (1.0, 2.0, 4.0, 8.0)),
        vectors=vectors,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    made = train_reader(
        plan,
        public,
        out=out,
        encoder=encoder,
        text_column=text_column,
        precision=precision.value,
        threads=threads,
        narrator=output,
    )
    if as_json:
        values = [{"epsilon": one.epsilon, "loss": one.loss, "blind_loss": one.blind_loss} for one in made.measures]
        show_json({"folder": str(out), "hash": made.hash, "texts": made.public_texts, "measured": values})
        return
    rows = [[f"{one.epsilon:g}", f"{one.loss:.3f}", f"{one.blind_loss:.3f}"] for one in made.measures]
    show(f"{made.public_texts:,} public texts; loss on others, by their own code and by that of another text:\n")
    show(format_table(["ε", "own", "another"], rows))
    say(f"{made.model} behind {made.code.model}: {made.hash}")
