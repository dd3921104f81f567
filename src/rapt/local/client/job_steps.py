"""Tuning jobs at a service: queued, followed, paused, resumed and cancelled."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from rapt.errors import TuningError, UsageError
from rapt.local.client.connection import Connection, quote_part
from rapt.local.client.objects import (
    CheckpointInfo,
    JobEvent,
    JobInfo,
    read_answer,
    read_answers,
    read_checkpoint_info,
    read_job_event,
    read_job_info,
)
from rapt.local.client.steps import Pause, Steps

T = TypeVar("T")
_PER_REQUEST: Final = 100
_MOST_LISTED: Final = 1000
_PATH: Final = "/v1/fine_tuning/jobs"


def create_job(
    service: Connection,
    *,
    file_id: str,
    model: str,
    method: Mapping[str, Any] | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    priority: int = 0,
    validation_file: str | None = None,
    patience: int | None = None,
    metadata: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> Steps[JobInfo]:
    """Queue a tuning job.

    Args:
        service: Connection to the service.
        file_id: An uploaded file, with labels.
        model: A base model of the service, the one that the file was privatized for.
        method: Method and hyper-parameters, such as
            `{"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 3}}}`; None leaves both to the
            service.
        suffix: Part of the tuned model's name.
        seed: Seed of the training, to repeat it.
        priority: Among the tenant's own jobs; the highest is first.
        validation_file: Another uploaded file, by whose loss the best epoch is chosen.
        patience: Epochs without a lower loss on the validation file after which the job ends; None sets none.
        metadata: Names and values of your own, which the service keeps with the job and reads: no private text.
        idempotency_key: Name of this request that you keep: the same call with it, from a program that was killed and
            started again, finds the job that the first one made. None makes a job with each call.

    Raises:
        UsageError: Patience without a validation file, or two different ones.
        ServiceError: The service refused, or gave no answer.
    """
    body: dict[str, Any] = {"training_file": file_id, "model": model, "method": _add_patience(method, patience)}
    if patience is not None and validation_file is None:
        raise UsageError("patience must come with a validation file, by whose loss a job ends; give validation_file")
    given = {"suffix": suffix, "seed": seed, "validation_file": validation_file, "metadata": metadata}
    body |= {name: value for name, value in given.items() if value is not None}
    if priority:
        body["rapt"] = {"priority": priority}
    answer = yield from service.ask("POST", _PATH, json=body, key=idempotency_key or secrets.token_hex(16))
    return read_answer(read_job_info, answer)


def _add_patience(method: Mapping[str, Any] | None, patience: int | None) -> dict[str, Any]:
    """A method with its patience, as the API has it among the hyper-parameters."""
    asked: dict[str, Any] = {"type": "auto"} if method is None else dict(method)
    kind = str(asked.get("type"))
    asked.setdefault(kind, {"hyperparameters": {}})
    if patience is None or not isinstance(asked[kind], Mapping):  # what is no method is for the service to refuse
        return asked
    settings = asked[kind].get("hyperparameters") or {}
    if settings.get("patience", patience) != patience:
        raise UsageError("patience must be given once, got another one in method; leave one of them out")
    return {**asked, kind: {**asked[kind], "hyperparameters": {**settings, "patience": patience}}}


def get_job(service: Connection, job_id: str) -> Steps[JobInfo]:
    """How a job stands. Raises `NotFoundError`."""
    answer = yield from service.ask("GET", f"{_PATH}/{quote_part(job_id)}")
    return read_answer(read_job_info, answer)


def list_jobs(service: Connection) -> Steps[list[JobInfo]]:
    """The jobs of the tenant, newest first, the newest thousand at most."""
    return (yield from _list_pages(service, _PATH, read_job_info, most=_MOST_LISTED))


def list_checkpoints(service: Connection, job_id: str) -> Steps[list[CheckpointInfo]]:
    """The models at the ends of a job's epochs that the service keeps, newest first. Raises `NotFoundError`."""
    path = f"{_PATH}/{quote_part(job_id)}/checkpoints"
    return (yield from _list_pages(service, path, read_checkpoint_info, most=_MOST_LISTED))


def list_events(service: Connection, job_id: str, *, after: str | None = None) -> Steps[list[JobEvent]]:
    """What happened to a job since the event `after`, oldest first; all of it without `after`."""
    path = f"{_PATH}/{quote_part(job_id)}/events"
    found = yield from _list_pages(service, path, read_job_event, until=after)
    return found[::-1]  # the service lists the newest first


def _list_pages(
    service: Connection,
    path: str,
    parse: Callable[[Mapping[str, Any]], T],
    *,
    most: int | None = None,
    until: str | None = None,
) -> Steps[list[T]]:
    """The objects of a list that comes page by page, `most` of them, and those before the one of id `until`."""
    found: list[tuple[str, T]] = []
    query: dict[str, str | int] = {"limit": _PER_REQUEST}
    while True:
        answer = yield from service.ask("GET", path, params=query)
        page = read_answers(lambda item: (str(item.get("id")), parse(item)), answer)
        for name, item in page:
            if name == until:
                return [item for _, item in found]
            found.append((name, item))
        if answer.get("has_more") is not True or not page or (most is not None and len(found) >= most):
            return [item for _, item in found]
        query["after"] = found[-1][0]


def cancel_job(service: Connection, job_id: str) -> Steps[JobInfo]:
    """Stop a job: nothing of it is kept. Raises `NotFoundError`, and `ServiceError` if it has ended."""
    return (yield from _switch(service, job_id, "cancel"))


def pause_job(service: Connection, job_id: str) -> Steps[JobInfo]:
    """Let a job rest; one that runs stops within a step.

    Raises:
        NotFoundError: There is no such job.
        ServiceError: It has ended, or rests already.
    """
    return (yield from _switch(service, job_id, "pause"))


def resume_job(service: Connection, job_id: str) -> Steps[JobInfo]:
    """Queue a paused job again; it goes on where it stopped, to the same weights as if it had not been paused.

    Raises:
        NotFoundError: There is no such job.
        ServiceError: It is not paused.
    """
    return (yield from _switch(service, job_id, "resume"))


def _switch(service: Connection, job_id: str, verb: str) -> Steps[JobInfo]:
    answer = yield from service.ask("POST", f"{_PATH}/{quote_part(job_id)}/{verb}")
    return read_answer(read_job_info, answer)


def wait(
    service: Connection,
    job_id: str,
    *,
    on_event: Callable[[JobEvent], None] = lambda event: None,
    seconds_between: float = 0.5,
    most_seconds_between: float = 5.0,
) -> Steps[JobInfo]:
    """The job once it has ended, well or not; `on_event` gets everything that happens, in order.

    While nothing happens the service is asked less and less often. A job that another program began, or an earlier run
    of this one, is waited for by its id alone.

    Args:
        service: Connection to the service.
        job_id: Name that the service gave the job.
        on_event: Called with each event.
        seconds_between: Pause between two questions, at first and after each event, s.
        most_seconds_between: Longest pause between two questions, however long nothing happens, s.
    """
    latest, pause = None, seconds_between
    while True:
        job = yield from get_job(service, job_id)  # before the events: then none of an ended job is missed
        news = yield from list_events(service, job_id, after=latest)
        for event in news:
            latest = event.id
            on_event(event)
        if job.ended:
            return job
        pause = seconds_between if news else min(1.5 * pause, max(seconds_between, most_seconds_between))
        yield Pause(pause)


def follow(
    service: Connection,
    job_id: str,
    *,
    on_step: Callable[[int, int, str], None] = lambda done, total, losses: None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> Steps[JobInfo]:
    """The job, once it has succeeded.

    Args:
        service: Connection to the service.
        job_id: Name that the service gave the job.
        on_step: Called with the steps made, the steps in all, and the losses in words.
        on_warning: Called with what went wrong on the way.

    Raises:
        TuningError: It failed or was cancelled.
        ServiceError: The service stopped answering.
    """

    def show(event: JobEvent) -> None:
        if event.data is not None and "step" in event.data:
            on_step(int(event.data["step"]), int(event.data.get("total_steps", 0)), describe_losses(event.data))
        elif event.level != "info":
            on_warning(event.message)

    job = yield from wait(service, job_id, on_event=show)
    if job.fine_tuned_model is None:
        reason = job.error_message or "somebody cancelled it"
        raise TuningError(f"the job must succeed, got status={job.status!r}: {reason}")
    return job


def describe_losses(data: Mapping[str, Any]) -> str:
    """The figures of a step: training loss, reconstruction loss if there is one, accuracy on the step's own texts."""
    names = (
        ("train_loss", "loss"),
        ("reconstruction_loss", "reconstruction"),
        ("train_mean_token_accuracy", "accuracy"),
    )
    return ", ".join(f"{name} {data[key]:.3f}" for key, name in names if data.get(key) is not None)
