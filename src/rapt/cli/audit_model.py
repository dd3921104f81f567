"""`rapt audit-model`: what would a model tuned on these texts give away about them?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rapt.cli.artefact_findings import hand_over
from rapt.cli.chosen_mechanism import choose_mechanism
from rapt.cli.options import AllowUnproved, AsJson, Eta, MechanismOptions
from rapt.cli.output import meter
from rapt.errors import UsageError


def audit_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labelled texts in clear; they stay here.")],
    eta: Eta,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column that holds the label.")] = "label",
    model: Annotated[str, typer.Option(help="Backbone: a known model or a model folder.")] = "minilm",
    mechanism: Annotated[str, typer.Option(help="As `rapt mechanisms` lists them.")] = "laplace",
    settings: MechanismOptions = None,
    allow_unproved: AllowUnproved = False,
    method: Annotated[str, typer.Option(help="As `rapt tune` has them.")] = "prompt_tuning",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 3,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Records a step.")] = 32,
    learning_rate: Annotated[float | None, typer.Option(metavar="NUMBER", help="Default: the method's own.")] = None,
    records: Annotated[
        int, typer.Option(metavar="N", min=2, help="Play with at most so many texts, drawn at random.")
    ] = 400,
    models: Annotated[
        int, typer.Option(metavar="N", min=3, help="Models of each kind, each on half of the texts.")
    ] = 8,
    queries: Annotated[
        int, typer.Option(metavar="N", min=1, help="Fresh privatizations of a text to ask about, averaged.")
    ] = 4,
    canaries: Annotated[int, typer.Option(metavar="N", min=1, help="Planted sentences of each kind.")] = 8,
    repetitions: Annotated[
        str, typer.Option(metavar="R,R,...", help="How often each planted sentence is put in; 0: never, a control.")
    ] = "0,1,10,100",
    releases: Annotated[
        str, typer.Option(metavar="R,R,...", help="How many releases of a text are laid on top of each other.")
    ] = "1,3,10,30",
    attacks: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Of membership, words, canaries and releases; default: all."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of everything that the audit draws.")] = 0,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of the processor.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.json, which hold no text.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what models tuned on your texts give away: who was in the training, and what repetition costs.

    Tunes models here, on random halves of FILE, in clear and through the mechanism; nothing is sent. Each is then
    attacked by somebody who holds it and all the others: membership (LiRA, RMIA, a hierarchical ratio), planted
    sentences, words that can be read off it. Several releases of a text are laid on top of each other as well, which
    needs no model.

    \b
    Example:
      rapt audit-model reviews.csv --eta 75 --out audit-model
    """
    import numpy as np
    import torch

    from rapt.audit.artefact.models import Workshop
    from rapt.audit.artefact.run import PARTS, ArtefactPlan, audit_artefact
    from rapt.audit.artefact.texts import read_texts
    from rapt.local.vocabulary import load_vocabulary
    from rapt.service.model.backbone import load_backbone
    from rapt.service.model.tuning_config import default_config

    plan = ArtefactPlan(
        parts=PARTS if attacks is None else tuple(name.strip() for name in attacks.split(",")),
        models=models,
        queries=queries,
        canaries=canaries,
        repetitions=numbers(repetitions, option="--repetitions", least=0),
        releases=numbers(releases, option="--releases", least=1),
        seed=seed,
    )
    config = replace(default_config(method), epochs=epochs, batch_size=batch_size)
    config = config if learning_rate is None else replace(config, learning_rate=learning_rate)
    vocabulary = load_vocabulary(model)
    chosen = choose_mechanism(
        mechanism, vocabulary=vocabulary, eta=eta, settings=settings, allow_unproved=allow_unproved
    )
    longest = vocabulary.bundle.max_tokens - vocabulary.bundle.special_tokens - config.prompt_positions
    texts = read_texts(file, vocabulary, text_column=text_column, label_column=label_column, longest=longest)
    texts = texts.at(np.sort(np.random.default_rng([seed, 23]).permutation(len(texts))[:records]))
    torch.set_num_threads(threads)
    workshop = Workshop(
        backbone=load_backbone(model, precision="float32"), vocabulary=vocabulary, mechanism=chosen, config=config
    )
    with meter("attacking", unit="steps") as progress:
        found = audit_artefact(
            workshop,
            texts,
            plan=plan,
            on_progress=lambda what, done, total: progress(done, total=total, note=what),
        )
    words: list[object] = ["rapt", "audit-model", file.name, "--eta", f"{eta:g}", "--model", Path(model).name]
    words += ["--text-column", text_column, "--label-column", label_column]
    words += ["--allow-unproved"] if allow_unproved else []
    words += ["--mechanism", mechanism, *(word for setting in settings or () for word in ("--set", setting))]
    words += ["--method", method, "--epochs", epochs, "--batch-size", batch_size, "--records", records]
    words += [] if learning_rate is None else ["--learning-rate", f"{learning_rate:g}"]
    words += ["--models", models, "--queries", queries, "--canaries", canaries, "--repetitions", repetitions]
    words += ["--releases", releases, "--attacks", ",".join(plan.parts), "--seed", seed]
    hand_over(found, title=f"Models tuned on {file.name}", command=words, out=out, as_json=as_json)


def numbers(listed: str, *, option: str, least: int) -> tuple[int, ...]:
    """Whole numbers from `least` on, separated by commas, sorted (`UsageError`)."""
    try:
        found = tuple(sorted({int(part) for part in listed.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < least:
        raise UsageError(f"{option} must be whole numbers from {least}, separated by commas, such as 1,10,100")
    return found
