"""`/v1/fine_tuning/jobs`: ask for a tuning, follow it, stop it."""

from __future__ import annotations

import secrets
import time

from fastapi import APIRouter

from rapt.service.http.assembly import Service
from rapt.service.http.callers import CallerOf
from rapt.service.http.routes.pages import After, Limit, cursor, list_of
from rapt.service.http.schemas import EventObject, JobError, JobObject, JobRequest, ListOf
from rapt.service.jobs.hyperparameters import check_run, method_to_json, resolve_config
from rapt.service.storage.file_rows import get_file
from rapt.service.storage.job_events import StoredEvent, list_events
from rapt.service.storage.job_rows import StoredJob, add_job, cancel_job, get_job, list_jobs


def router(service: Service) -> APIRouter:
    """The routes of jobs and their events."""
    routes = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

    @routes.post("")
    def create_job(request: JobRequest, caller: CallerOf) -> JobObject:
        """Queue a tuning job. `auto` and what is left out are decided now and shown in the answer."""
        backbone = service.backbone(request.model)
        file = get_file(service.store, request.training_file, tenant=caller.tenant)
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        config = resolve_config(request.method, file=file, seed=seed)
        check_run(config, file=file, bundle=backbone.bundle)
        job = add_job(
            service.store,
            model=request.model,
            training_file=file.id,
            method=method_to_json(config),
            seed=seed,
            suffix=request.suffix,
            caller=caller,
            now=int(time.time()),
            max_jobs=service.settings.tenant_jobs,
        )
        service.runner.wake()
        return show_job(job)

    @routes.get("")
    def list_all_jobs(caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[JobObject]:
        """List jobs, newest first."""
        return list_of(list_jobs(service.store, cursor(after, limit), tenant=caller.tenant), show_job)

    @routes.get("/{job_id}")
    def retrieve_job(job_id: str, caller: CallerOf) -> JobObject:
        """How a job stands."""
        return show_job(get_job(service.store, job_id, tenant=caller.tenant))

    @routes.post("/{job_id}/cancel")
    def cancel(job_id: str, caller: CallerOf) -> JobObject:
        """Stop a job: nothing of it is kept. One that runs stops within a step."""
        job = cancel_job(service.store, job_id, caller=caller, now=int(time.time()))
        service.runner.cancel(job_id)
        return show_job(job)

    @routes.get("/{job_id}/events")
    def list_job_events(job_id: str, caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[EventObject]:
        """What happened to a job, newest first."""
        return list_of(list_events(service.store, job_id, cursor(after, limit), tenant=caller.tenant), show_event)

    return routes


def show_job(job: StoredJob) -> JobObject:
    """A job in the shape of the API."""
    error = None
    if job.error_code is not None:
        error = JobError(code=job.error_code, message=job.error_message or "")
    asked = job.method[job.method["type"]]["hyperparameters"]
    return JobObject.model_validate(
        {
            **{name: value for name, value in vars(job).items() if not name.startswith("error_")},
            # Where OpenAI's own objects name who owns them.
            "organization_id": job.tenant,
            "error": error,
            # Where OpenAI's own clients look for the two that every method has.
            "hyperparameters": {name: asked[name] for name in ("n_epochs", "batch_size")},
        }
    )


def show_event(event: StoredEvent) -> EventObject:
    """An event in the shape of the API."""
    return EventObject.model_validate({name: value for name, value in vars(event).items() if name != "job_id"})
