"""`rapt tune`: send a privatized file, have a soft prompt tuned on it, and follow the job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapt.cli.options import ApiKey, AsJson, ServiceUrl
from rapt.cli.output import Meter, meter, say, show, show_json
from rapt.errors import TuningError, UsageError

if TYPE_CHECKING:
    from rapt.local.client import ServiceClient
    from rapt.local.service_objects import JobEvent


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
            tuned = follow(client, job.id, what="tuning")
        except KeyboardInterrupt:
            client.cancel_job(job.id)
            say(f"job {job.id} cancelled")
            raise
        job = client.job(job.id)
    if as_json:
        show_json(
            {"model": tuned, "job": job.id, "file": uploaded.id, "method": dict(job.method), "seed": job.seed}
            | {"trained_tokens": job.trained_tokens}
        )
    else:
        show(tuned)


def follow(client: ServiceClient, job_id: str, *, what: str) -> str:
    """Wait for a job with a meter; the name of the tuned model.

    Raises:
        TuningError: The job failed or was cancelled.
    """
    with meter(what, unit="steps") as progress:
        job = client.wait(job_id, on_event=lambda event: report(event, progress))
    if job.fine_tuned_model is None:
        reason = job.error_message or "somebody cancelled it"
        raise TuningError(f"the job must succeed, got status={job.status!r}: {reason}")
    return job.fine_tuned_model


def report(event: JobEvent, progress: Meter) -> None:
    """Show a job's event: figures on the meter, a warning as a line of its own."""
    if event.data is not None and "step" in event.data:
        progress(event.data["step"], total=event.data.get("total_steps"), note=loss_note(event.data))
    elif event.level != "info":
        say(event.message)


def loss_note(data: Mapping[str, Any]) -> str:
    """The losses in an event, for people."""
    parts = [
        f"{name} {data[key]:.3f}"
        for key, name in (("train_loss", "loss"), ("reconstruction_loss", "reconstruction"), ("accuracy", "accuracy"))
        if data.get(key) is not None
    ]
    return " ".join(parts)


def describe(method: Mapping[str, Any]) -> str:
    """A job's method on one line."""
    kind = str(method.get("type"))
    values = dict(method.get(kind, {}).get("hyperparameters", {}))
    reconstruction = values.pop("reconstruction", None)
    parts = [f"{name}={value}" for name, value in values.items()]
    parts.append("no reconstruction" if reconstruction is None else f"reconstruction λ={reconstruction['weight']}")
    return f"{kind}, {', '.join(parts)}"
