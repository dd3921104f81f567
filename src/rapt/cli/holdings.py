"""`rapt jobs`, `rapt files` and `rapt models`: what a service keeps for a customer, listed, shown and deleted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapt.cli.options import AsJson
from rapt.cli.output import format_table, say, show, show_json
from rapt.cli.profiles import ServiceAccess, asks_a_service

if TYPE_CHECKING:
    from rapt.local.client.objects import CheckpointInfo, FileInfo, JobInfo, ModelInfo

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `rapt jobs list` prints it.")]
FileId = Annotated[str, typer.Argument(metavar="FILE", help="Id of the file, as `rapt files list` prints it.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model, as `rapt models list` prints it.")]

jobs = typer.Typer(help="List, show, pause, resume and cancel the tuning jobs of a service.")
files = typer.Typer(help="List, show and delete the privatized files that a service has.")
models = typer.Typer(help="List and show the models of a service, and delete tuned ones.")


@jobs.command("list")
@asks_a_service
def list_jobs(access: ServiceAccess, as_json: AsJson = False) -> None:
    """List your jobs, newest first.

    \b
    Example:
      rapt jobs list --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show_list("jobs", client.jobs(), _describe_job, ("job", "status", "base", "created", "model"), as_json=as_json)


@jobs.command("show")
@asks_a_service
def show_job(job_id: JobId, access: ServiceAccess, as_json: AsJson = False) -> None:
    """Show how a job stands; `rapt tune --follow` waits for it.

    \b
    Example:
      rapt jobs show ftjob-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show_one(_describe_job(client.job(job_id)), as_json=as_json)


@jobs.command("cancel")
@asks_a_service
def cancel_job(job_id: JobId, access: ServiceAccess, as_json: AsJson = False) -> None:
    """Stop a job: nothing of it is kept.

    \b
    Example:
      rapt jobs cancel ftjob-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _say_switched(client.cancel_job(job_id), "the job is cancelled", as_json=as_json)


@jobs.command("pause")
@asks_a_service
def pause_job(job_id: JobId, access: ServiceAccess, as_json: AsJson = False) -> None:
    """Let a job rest; one that runs stops within a step, and what it has learned is kept.

    \b
    Example:
      rapt jobs pause ftjob-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _say_switched(client.pause_job(job_id), "the job is paused; go on with: rapt jobs resume", as_json=as_json)


@jobs.command("resume")
@asks_a_service
def resume_job(job_id: JobId, access: ServiceAccess, as_json: AsJson = False) -> None:
    """Let a paused job go on where it stopped, to the same model as if it had not been paused.

    \b
    Example:
      rapt jobs resume ftjob-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _say_switched(client.resume_job(job_id), "the job is queued again", as_json=as_json)


@jobs.command("checkpoints")
@asks_a_service
def list_checkpoints(job_id: JobId, access: ServiceAccess, as_json: AsJson = False) -> None:
    """List the models at the ends of a job's epochs that the service keeps, newest first.

    \b
    Example:
      rapt jobs checkpoints ftjob-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show_list(
            "checkpoints",
            client.checkpoints(job_id),
            _describe_checkpoint,
            ("model", "step", "valid_loss", "created"),
            as_json=as_json,
        )


@files.command("list")
@asks_a_service
def list_files(access: ServiceAccess, as_json: AsJson = False) -> None:
    """List your files, newest first.

    \b
    Example:
      rapt files list --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show_list(
            "files", client.files(), _describe_file, ("file", "records", "tokens", "bytes", "created"), as_json=as_json
        )


@files.command("show")
@asks_a_service
def show_file(file_id: FileId, access: ServiceAccess, as_json: AsJson = False) -> None:
    """Show what a file is; `sha256sum` of the file on this machine gives the same digest.

    \b
    Example:
      rapt files show file-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show_one(_describe_file(client.file(file_id)), as_json=as_json)


@files.command("delete")
@asks_a_service
def delete_file(file_id: FileId, access: ServiceAccess, as_json: AsJson = False) -> None:
    """Delete a file that no job needs any more; what was released before stays released.

    \b
    Example:
      rapt files delete file-0123456789abcdef01234567 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        client.delete_file(file_id)
    _say_deleted("file", file_id, as_json=as_json)


@models.command("list")
@asks_a_service
def list_models(access: ServiceAccess, as_json: AsJson = False) -> None:
    """List the base models of a service, and your tuned ones.

    \b
    Example:
      rapt models list --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show_list("models", client.models(), _describe_model, ("model", "base", "unit", "max_tokens"), as_json=as_json)


@models.command("show")
@asks_a_service
def show_model(model: ModelName, access: ServiceAccess, as_json: AsJson = False) -> None:
    """Show what a model is, and of a tuned one how its queries must be privatized.

    \b
    Example:
      rapt models show ft:minilm:reviews:a1b2 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        _show_one(_describe_model(client.model(model)), as_json=as_json)


@models.command("delete")
@asks_a_service
def delete_model(model: ModelName, access: ServiceAccess, as_json: AsJson = False) -> None:
    """Delete a tuned model with its weights.

    \b
    Example:
      rapt models delete ft:minilm:reviews:a1b2 --service http://127.0.0.1:8420
    """
    with access.open() as client:
        client.delete_model(model)
    _say_deleted("model", model, as_json=as_json)


def _describe_job(found: JobInfo) -> dict[str, Any]:
    return {
        "job": found.id,
        "status": found.status,
        "base": found.model,
        "file": found.training_file,
        "created": found.created_at,
        "method": dict(found.method),
        "seed": found.seed,
        "model": found.fine_tuned_model,
        "trained_tokens": found.trained_tokens,
        "validation_file": found.validation_file,
        "waits_because": found.waits_because,
        "error": found.error_message,
    }


def _describe_checkpoint(found: CheckpointInfo) -> dict[str, Any]:
    return {
        "model": found.model,
        "step": found.step,
        "valid_loss": found.metrics.get("full_valid_loss"),
        "created": found.created_at,
        "metrics": dict(found.metrics),
    }


def _describe_file(found: FileInfo) -> dict[str, Any]:
    return {
        "file": found.id,
        "records": found.records,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "created": found.created_at,
        "vocabulary_hash": found.vocabulary_hash,
        "sha256": found.sha256,
    }


def _describe_model(found: ModelInfo) -> dict[str, Any]:
    described: dict[str, Any] = {
        "model": found.id,
        "base": found.base,
        "unit": found.unit,
        "max_tokens": found.max_tokens,
        "vocabulary_hash": found.vocabulary_hash,
    }
    if (card := found.card) is not None:
        setting = f"{card.mechanism.name} at {card.mechanism.describe_strength()}"
        described |= {"method": card.method, "task": card.task, "labels": list(card.labels), "queries": setting}
        described["plain_tokens"] = card.plain_tokens
    return described


def _show_list(
    what: str,
    found: Sequence[Any],
    describe: Callable[[Any], Mapping[str, Any]],
    columns: Sequence[str],
    *,
    as_json: bool,
) -> None:
    described = [describe(item) for item in found]
    if as_json:
        show_json({what: described})
    else:
        show(format_table(columns, [[_write(name, item[name]) for name in columns] for item in described]))


def _show_one(described: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(described)
        return
    width = max(map(len, described))
    show("\n".join(f"{name.ljust(width)}  {_write(name, value)}".rstrip() for name, value in described.items()))


def _write(name: str, value: Any) -> str:
    """Write a value for people; what a stranger's service says has no control characters when it reaches a terminal."""
    from rapt.local.client.objects import clean_line

    if value is None:
        return ""
    if name == "created":
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M") if 0 <= value < 2**37 else ""
    if name == "method" and isinstance(value, dict):
        value = value.get("type")
    if isinstance(value, int) and name != "seed":  # which is typed again as it stands
        return f"{value:,}"
    return clean_line(", ".join(map(str, value)) if isinstance(value, list) else value)


def _say_switched(found: JobInfo, line: str, *, as_json: bool) -> None:
    if as_json:
        show_json(_describe_job(found))
    else:
        show(found.id)
        say(line)


def _say_deleted(what: str, name: str, *, as_json: bool) -> None:
    if as_json:
        show_json({what: name, "deleted": True})
    else:
        show(name)
        say(f"the {what} is deleted")
