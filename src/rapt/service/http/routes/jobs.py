"""`/v1/fine_tuning/jobs`: ask for a tuning, follow it, stop it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from functools import partial
from typing import Final

from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request

from rapt.errors import UsageError
from rapt.service.adapter.adapter_check import list_methods
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import BodyRoute
from rapt.service.http.parameters import After, CallerOf, IdempotencyKey, Limit, make_cursor, make_list
from rapt.service.http.schemas import CheckpointObject, EventObject, JobError, JobObject, JobRequest, ListOf
from rapt.service.jobs.hyperparameters import check_run, method_to_json, resolve_config
from rapt.service.jobs.job_checks import check_job, choose_backbone
from rapt.service.storage.callers import mark_repeatable
from rapt.service.storage.file_rows import get_file
from rapt.service.storage.job_rows import (
    StoredEvent,
    StoredJob,
    add_job,
    cancel_job,
    get_job,
    list_events,
    list_jobs,
    pause_job,
    resume_job,
)
from rapt.service.storage.job_runs import MODEL_NOT_SERVED, list_checkpoint_models, make_checkpoint_id
from rapt.service.storage.model_rows import StoredModel

_MOST_PAIRS: Final = 16


def make_job_router(service: Service) -> APIRouter:
    """The routes of jobs and their events."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

    @routes.post("")
    def create_job(request: JobRequest, caller: CallerOf, idempotency_key: IdempotencyKey = None) -> JobObject:
        """Queue a tuning job. `auto` and what is left out are decided now and shown in the answer."""
        backbone = service.backbone(request.model)
        file = get_file(service.store, request.training_file, tenant=caller.tenant)
        validation = None
        if request.validation_file is not None:
            validation = get_file(service.store, request.validation_file, tenant=caller.tenant)
        method = request.asked_method
        if method is not None and method.is_left_to_the_service:
            backbone = choose_backbone(backbone, service.backbones.values(), file=file)
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        config = resolve_config(method, file=file, seed=seed, auto=list_methods(backbone)[0])
        check_run(config, file=file, backbone=backbone)
        check_job(
            config, service.store, training=file, validation=validation, backbone=backbone, limits=service.job_limits
        )
        job = add_job(
            service.store,
            model=backbone.model,
            training_file=file.id,
            method=method_to_json(config),
            seed=seed,
            suffix=request.suffix,
            caller=caller,
            now=int(time.time()),
            max_jobs=service.settings.tenant_jobs,
            max_bytes=service.settings.tenant_bytes,
            max_models=service.settings.tenant_models,
            validation_file=request.validation_file,
            metadata=request.metadata,
            priority=0 if request.rapt is None else request.rapt.priority,
            request=mark_repeatable(idempotency_key, "job", request.model_dump_json()),
        )
        service.runner.wake()
        return show_job(job, served=service.backbones)

    @routes.get("")
    def list_all_jobs(request: Request, caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[JobObject]:
        """List jobs, newest first; with `metadata[name]=value`, those alone that have the pair."""
        wanted = _parse_metadata_filter(request.query_params)
        page = list_jobs(service.store, make_cursor(after, limit), tenant=caller.tenant, metadata=wanted)
        return make_list(page, partial(show_job, served=service.backbones))

    @routes.get("/{job_id}")
    def retrieve_job(job_id: str, caller: CallerOf) -> JobObject:
        """How a job stands."""
        return show_job(get_job(service.store, job_id, tenant=caller.tenant), served=service.backbones)

    @routes.post("/{job_id}/cancel")
    def cancel(job_id: str, caller: CallerOf) -> JobObject:
        """Stop a job: nothing of it is kept. One that runs stops within a step."""
        job, adapters = cancel_job(service.store, job_id, caller=caller, now=int(time.time()))
        service.runner.cancel(job_id)
        for adapter in adapters:
            service.adapters.drop(adapter)
        return show_job(job, served=service.backbones)

    @routes.post("/{job_id}/pause")
    def pause(job_id: str, caller: CallerOf) -> JobObject:
        """Let a job rest. One that runs stops within a step, and goes on from there when it is resumed."""
        job = pause_job(service.store, job_id, caller=caller, now=int(time.time()))
        service.runner.cancel(job_id)
        return show_job(job, served=service.backbones)

    @routes.post("/{job_id}/resume")
    def resume(job_id: str, caller: CallerOf) -> JobObject:
        """Queue a paused job again."""
        job = resume_job(service.store, job_id, caller=caller, now=int(time.time()))
        service.runner.wake()
        return show_job(job, served=service.backbones)

    @routes.get("/{job_id}/checkpoints")
    def list_job_checkpoints(
        job_id: str, caller: CallerOf, after: After = None, limit: Limit = 10
    ) -> ListOf[CheckpointObject]:
        """Checkpoints of a job, newest first: models of the ends of its epochs, ten at most."""
        page = list_checkpoint_models(service.store, job_id, make_cursor(after, limit), tenant=caller.tenant)
        return make_list(page, show_checkpoint)

    @routes.get("/{job_id}/events")
    def list_job_events(job_id: str, caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[EventObject]:
        """List what happened to a job, newest first."""
        return make_list(
            list_events(service.store, job_id, make_cursor(after, limit), tenant=caller.tenant), show_event
        )

    return routes


def show_job(job: StoredJob, *, served: Collection[str]) -> JobObject:
    """A job in the shape of the API; `served` are the names of the base models."""
    error = None
    if job.error_code is not None:
        error = JobError(code=job.error_code, message=job.error_message or "")
    own = ("tenant", "priority", "worker", "attempt", "deaths", "last_death")
    waits = job.status in ("queued", "paused") and job.model not in served
    asked = job.method[job.method["type"]]["hyperparameters"]
    return JobObject.model_validate(
        {
            **{name: value for name, value in vars(job).items() if not name.startswith("error_") and name not in own},
            "rapt": {
                "priority": job.priority,
                "deaths": job.deaths,
                "waits_because": MODEL_NOT_SERVED if waits else None,
            },
            # Where OpenAI's own objects name who owns them.
            "organization_id": job.tenant,
            "error": error,
            # Where OpenAI's own clients look for the two that every method has.
            "hyperparameters": {name: asked[name] for name in ("n_epochs", "batch_size")},
        }
    )


def show_checkpoint(model: StoredModel) -> CheckpointObject:
    """A checkpoint in the shape of the API."""
    return CheckpointObject.model_validate(
        {
            "id": make_checkpoint_id(model),
            "created_at": model.created_at,
            "fine_tuned_model_checkpoint": model.id,
            "fine_tuning_job_id": model.job_id,
            "step_number": model.step,
            "metrics": model.metrics,
        }
    )


def _parse_metadata_filter(query: QueryParams) -> dict[str, str]:
    """The pairs of `metadata[name]=value`, as the official clients write them."""
    pairs = {name[9:-1]: value for name, value in query.items() if name.startswith("metadata[") and name.endswith("]")}
    if len(pairs) > _MOST_PAIRS or any(len(name) > 64 or len(value) > 512 for name, value in pairs.items()):
        raise UsageError(f"a filter must have at most {_MOST_PAIRS} pairs of metadata that a job can have")
    return pairs


def show_event(event: StoredEvent) -> EventObject:
    """An event in the shape of the API."""
    return EventObject.model_validate({name: value for name, value in vars(event).items() if name != "job_id"})
