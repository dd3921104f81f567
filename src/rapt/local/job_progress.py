"""Following a tuning job until it has ended, in words and figures for whoever shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rapt.errors import TuningError
from rapt.local.client import ServiceClient
from rapt.local.service_objects import JobEvent, JobInfo


def follow_job(
    client: ServiceClient,
    job_id: str,
    *,
    on_step: Callable[[int, int, str], None],
    on_warning: Callable[[str], None] = lambda message: None,
) -> JobInfo:
    """The job, once it has succeeded.

    Args:
        client: To the service that runs it.
        job_id: As the service named it.
        on_step: Called with the steps made, the steps in all, and the losses in words.
        on_warning: Called with what went wrong on the way.

    Raises:
        TuningError: It failed or was cancelled.
        ServiceError: The service stopped answering.
    """

    def show(event: JobEvent) -> None:
        if event.data is not None and "step" in event.data:
            on_step(int(event.data["step"]), int(event.data.get("total_steps", 0)), losses_in_words(event.data))
        elif event.level != "info":
            on_warning(event.message)

    job = client.wait(job_id, on_event=show)
    if job.fine_tuned_model is None:
        reason = job.error_message or "somebody cancelled it"
        raise TuningError(f"the job must succeed, got status={job.status!r}: {reason}")
    return job


def losses_in_words(data: Mapping[str, Any]) -> str:
    """The figures of a step: training loss, reconstruction loss if there is one, accuracy on the step's own texts."""
    names = (("train_loss", "loss"), ("reconstruction_loss", "reconstruction"), ("accuracy", "accuracy"))
    return ", ".join(f"{name} {data[key]:.3f}" for key, name in names if data.get(key) is not None)
