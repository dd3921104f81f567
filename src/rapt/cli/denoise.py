"""`rapt denoise`: a backbone that expects noise, from public text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapt.cli import output
from rapt.cli.options import AsJson, ChosenPrecision, MechanismOptions, read_options
from rapt.cli.output import format_table, show, show_json


def denoise(
    public: Annotated[list[Path], typer.Argument(metavar="PUBLIC...", help="Files of public text; never a user's.")],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    eta: Annotated[list[float], typer.Option(metavar="NUMBER", help="η that users will privatize with; repeat.")],
    model: Annotated[str, typer.Option(help="Backbone to begin with: a known model or a model folder.")] = "minilm",
    mechanism: Annotated[str, typer.Option(help="Mechanism that users will privatize with.")] = "laplace",
    settings: MechanismOptions = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    epochs: Annotated[float, typer.Option(help="Passes over the text; may be a fraction.")] = 3.0,
    batch_size: Annotated[int, typer.Option(help="Texts a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Learning rate at its peak.")] = 3e-4,
    soft_embeddings: Annotated[
        bool, typer.Option("--soft-embeddings", help="Also show the model, for each word, the mean of what it may be.")
    ] = False,
    precision: Annotated[
        ChosenPrecision, typer.Option(help="Number format to compute in; auto takes the faster one.")
    ] = (ChosenPrecision.AUTO),
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: its own.")] = None,
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
