"""`rapt tune`: send a privatized file, have a soft prompt tuned on it, and follow the job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rapt.cli.options import ApiKey, AsJson, ServiceUrl
from rapt.cli.output import meter, say, show, show_json
from rapt.errors import UsageError


def tune(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Privatized file with labels.")],
    service: ServiceUrl,
    method: Annotated[str, typer.Option(help="How the frozen model is adapted.")] = "prompt_tuning",
    prompt_length: Annotated[int | None, typer.Option(metavar="N", min=1, help="Vectors of the soft prompt.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Passes over the file.")] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="NUMBER", help="Of the soft prompt.")] = None,
    reconstruction_weight: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="λ in L = L_task + λ L_rec; needs plain tokens in FILE."),
    ] = None,
    no_reconstruction: Annotated[
        bool, typer.Option("--no-reconstruction", help="Leave the plain tokens out: prompt tuning without RAPT.")
    ] = False,
    suffix: Annotated[str | None, typer.Option(help="A part of the tuned model's name.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Repeat a run of the tuning.")] = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model of a service on a privatized file.

    Prints the name of the tuned model, for `rapt predict`. What is not set here is left to the service. Interrupting
    cancels the job.

    \b
    Example:
      rapt tune reviews.rapt.jsonl --service http://127.0.0.1:8420 --suffix reviews
    """
    from rapt.cli.statement import read_manifest
    from rapt.local.client import ServiceClient
    from rapt.local.job_progress import follow_job

    if no_reconstruction and reconstruction_weight is not None:
        raise UsageError("--reconstruction-weight and --no-reconstruction exclude each other; give one of them")
    hyperparameters: dict[str, Any] = {
        "num_virtual_tokens": prompt_length,
        "n_epochs": epochs,
        "learning_rate": learning_rate,
    }
    hyperparameters = {name: value for name, value in hyperparameters.items() if value is not None}
    if no_reconstruction:
        hyperparameters["reconstruction"] = None
    elif reconstruction_weight is not None:
        hyperparameters["reconstruction"] = {"weight": reconstruction_weight}
    manifest = read_manifest(file)
    with ServiceClient(service, api_key=api_key) as client:
        say(f"sending {file.name}: {manifest.records:,} privatized texts, no plain text")
        uploaded = client.upload(file)
        job = client.create_job(
            file_id=uploaded.id,
            model=manifest.model,
            method={"type": method, method: {"hyperparameters": hyperparameters}},
            suffix=suffix,
            seed=seed,
        )
        say(f"job {job.id}: {describe(job.method)}")
        try:
            with meter("tuning", unit="steps") as progress:
                job = follow_job(
                    client,
                    job.id,
                    on_step=lambda done, total, losses: progress(done, total=total, note=losses),
                    on_warning=say,
                )
        except KeyboardInterrupt:
            client.cancel_job(job.id)
            say(f"job {job.id} cancelled")
            raise
    tuned = str(job.fine_tuned_model)
    if as_json:
        show_json(
            {"model": tuned, "job": job.id, "file": uploaded.id, "method": dict(job.method), "seed": job.seed}
            | {"trained_tokens": job.trained_tokens}
        )
    else:
        show(tuned)


def describe(method: Mapping[str, Any]) -> str:
    """A job's method on one line."""
    kind = str(method.get("type"))
    values = dict(method.get(kind, {}).get("hyperparameters", {}))
    reconstruction = values.pop("reconstruction", None)
    parts = [f"{name}={value}" for name, value in values.items()]
    parts.append("no reconstruction" if reconstruction is None else f"reconstruction λ={reconstruction['weight']}")
    return f"{kind}, {', '.join(parts)}"
