"""A service put together: settings, store, backbones, worker. One value that every route is given."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from rapt.errors import NotFoundError, UsageError
from rapt.service.adapter.adapter_cache import AdapterCache
from rapt.service.answers.batching import BatchLimits
from rapt.service.answers.decoding import check_cached_writing
from rapt.service.answers.prediction import Predictor
from rapt.service.answers.writing import Writes, compute_answers
from rapt.service.backbone.architectures import ARCHITECTURES
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import import_for, load_served
from rapt.service.backbone.placement import choose_device, may_have_gpu, measure_half_of_gpu, share_gpus
from rapt.service.http.admission import Gate
from rapt.service.http.housekeeping import Housekeeper
from rapt.service.http.middleware import Metrics
from rapt.service.http.quotas import ArrivingBytes, TokenQuotas
from rapt.service.http.settings import Settings, name_served_model, reveal
from rapt.service.jobs.fork_server import ForkServer, open_fork_server
from rapt.service.jobs.job_limits import JobLimits, JobSettings
from rapt.service.jobs.job_log import check_job_log, load_job_logger
from rapt.service.jobs.job_run import make_runner_here
from rapt.service.jobs.tuning_process import ChildSettings, TuningProcess, run_jobs
from rapt.service.jobs.worker import JobRunner, JobRunners
from rapt.service.replicas.calls import ReplicaPlan
from rapt.service.replicas.front import ReplicaBatches, Replicas, ReplicaSettings, ReplicaWriter, Room
from rapt.service.storage.callers import LOCAL
from rapt.service.storage.database import refuse_to_wait
from rapt.service.storage.job_runs import warn_of_models_not_served
from rapt.service.storage.key_rows import has_keys
from rapt.service.storage.recovery import open_store
from rapt.service.storage.store import Store, read_service_id
from rapt.service.storage.tenant_rows import ensure_tenant
from rapt.this_machine import is_loopback, measure_half_of_memory
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.model_files import make_tokenizer
from rapt.wire.vocabulary_bundle import write_bundle

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Service:
    """Everything that the routes work with.

    Attributes:
        settings: The settings as they were read.
        store: Files, jobs, models.
        backbones: The base models, by the name that clients use.
        gate: Checks what comes in.
        runner: Runs the jobs.
        adapters: Tuned models in memory.
        predictors: Queues of predictions by the name of the backbone; all callers share batches.
        writers: Writers of texts by the name of the backbone; all callers share one batch.
        replicas: Replicas that compute on a Ray cluster; None where this process computes.
        tokenizers: Tokenizers by the name of a backbone that writes, which spell what was written.
        quotas: Tokens a minute of each tenant.
        arriving: Bytes on their way in, of each tenant.
        metrics: Counters of the service.
        job_limits: Limits of one job.
        started_at: Start of the service, Unix time, s; the creation time of base models.
    """

    settings: Settings
    store: Store
    backbones: Mapping[str, Backbone]
    gate: Gate
    runner: JobRunner | JobRunners
    adapters: AdapterCache
    predictors: Mapping[str, Predictor]
    writers: Mapping[str, Writes[Any]]
    replicas: Replicas | None
    tokenizers: Mapping[str, Tokenizer]
    quotas: TokenQuotas
    arriving: ArrivingBytes
    metrics: Metrics
    job_limits: JobLimits
    started_at: int

    def backbone(self, name: str) -> Backbone:
        """The base model of a name. Raises `NotFoundError`."""
        if name not in self.backbones:
            raise NotFoundError(f"the model must be one of {', '.join(self.backbones)}")
        return self.backbones[name]


def load_backbones(settings: Settings) -> dict[str, Backbone]:
    """The base models of the settings, by the name that they are served under.

    Raises:
        VocabularyError: The files of one are missing.
        UsageError: The architecture of one is not supported, or breaks a law that serving needs; or a GPU lacks room
            for them, their answers and jobs.
    """
    models = name_models(settings)
    found = {
        name: load_served(
            model,
            name=name,
            precision=settings.precision,
            device=settings.device,
            served=models,
            weights=settings.weights,
            device_map=settings.device_map,
        )
        for name, model in models.items()
    }
    for backbone in found.values():
        if backbone.kind != "encoder" and backbone.architecture not in ARCHITECTURES:
            check_cached_writing(backbone)
    # A process of jobs has the models once more, on the same GPUs.
    own = settings.job_process and settings.worker_in_service and settings.ray_address is None
    share_gpus(
        [backbone.sites.model for backbone in found.values()],
        [backbone.word_embeddings for backbone in found.values()],
        job_bytes=make_job_settings(settings).limits.memory_bytes if own else 0,
    )
    return found


def name_models(settings: Settings) -> dict[str, str]:
    """Map the name that each base model is served under to its name in the settings, a known name or a folder."""
    return {name_served_model(model): model for model in settings.models}


def make_job_settings(settings: Settings) -> JobSettings:
    """How jobs are run."""
    return JobSettings(
        tenant_bytes=settings.tenant_bytes,
        limits=JobLimits(
            memory_bytes=settings.job_memory_bytes or _measure_memory_of_a_job(settings),
            hidden_size=settings.job_hidden_size,
            virtual_tokens=settings.job_virtual_tokens,
            rank=settings.job_rank,
            classes=settings.job_classes,
            steps=settings.job_steps,
            records=settings.job_records,
            validation_records=settings.job_validation_records,
            gradient_checkpointing=settings.job_gradient_checkpointing,
        ),
        seconds_between_run_states=settings.run_state_seconds,
        slice_seconds=settings.job_slice_seconds,
        most_deaths=settings.job_attempts,
        log_folder=None if settings.job_log is None else str(settings.job_log.absolute()),
        logger=settings.job_logger,
    )


def _measure_memory_of_a_job(settings: Settings) -> int:
    """Half of the memory of this machine, and of its GPU where jobs compute on one, bytes."""
    here, there = measure_half_of_memory(), measure_half_of_gpu(choose_device(settings.device))
    return here if there is None else min(here, there)


def find_precision(backbones: Iterable[Backbone]) -> str:
    """The precision of language models that were loaded alike; a codebook among them is in float32 whatever it is."""
    dtypes = (backbone.dtype for backbone in backbones if not backbone.is_codebook)
    return str(next(dtypes, torch.float32)).removeprefix("torch.")


@contextmanager
def fork_job_processes(settings: Settings) -> Iterator[ForkServer | None]:
    """Fork what starts the processes of jobs from this process, which has done nothing yet, until the end of the block.

    Yields:
        The fork server; None where each process of jobs imports what it needs: where it may compute on a GPU, whose
        driver must not have been asked anything before a fork.
    """
    if not settings.job_process or (settings.device != "cpu" and may_have_gpu()):
        yield None
        return
    import_for(settings.models)
    with open_fork_server(run_jobs) as server:
        yield server


def make_runner(
    settings: Settings,
    store: Store,
    *,
    backbones: Mapping[str, Backbone],
    precision: str,
    fork_server: ForkServer | None = None,
) -> JobRunner:
    """Make the runner of jobs: in a process of their own, or on the loaded models if the settings say so.

    Args:
        settings: The settings of the service.
        store: Store of the jobs.
        backbones: Loaded models; may be empty where jobs have a process of their own, which loads them itself.
        precision: Precision of the models, `float32` or `bfloat16`.
        fork_server: Server that forks processes of jobs; None starts each afresh.
    """
    jobs = make_job_settings(settings)
    if settings.job_log is not None:
        check_job_log(settings.job_log)
    if settings.job_logger is not None:
        load_job_logger(settings.job_logger)
    if not settings.job_process:
        run = make_runner_here(store, backbones, jobs)
        return JobRunner(store, models=tuple(backbones), run=run, most_deaths=jobs.most_deaths)
    child = make_child_settings(settings, precision=precision)
    process = TuningProcess(child, fork_server=fork_server)
    return JobRunner(
        store,
        models=tuple(child.models),
        run=process.run,
        most_deaths=jobs.most_deaths,
        on_idle=process.rest,
        on_close=process.close,
    )


def make_cluster_runners(
    settings: Settings, store: Store, replicas: Replicas, *, models: tuple[str, ...]
) -> JobRunners:
    """Make the runners of jobs on a cluster: each claims a job, and has it run where there is room."""
    jobs = make_job_settings(settings)
    return JobRunners(
        [
            JobRunner(store, models=models, run=partial(replicas.run_job, slot), most_deaths=jobs.most_deaths)
            for slot in range(settings.jobs_at_once)
        ]
    )


def make_child_settings(settings: Settings, *, precision: str) -> ChildSettings:
    """Settings of a process that runs jobs."""
    return ChildSettings(
        data_directory=str(settings.data_directory.absolute()),
        database_url=reveal(settings.database_url),
        database_connections=settings.database_connections,
        blobs=reveal(settings.blobs),
        models=name_models(settings),
        precision=precision,
        device=settings.device,
        weights=settings.weights,
        device_map=settings.device_map,
        torch_threads=settings.torch_threads,
        debug=settings.debug,
        jobs=make_job_settings(settings),
    )


@contextmanager
def open_service(
    settings: Settings,
    *,
    backbones: Mapping[str, Backbone],
    started_at: int,
    fork_server: ForkServer | None = None,
) -> Iterator[Service]:
    """A service whose worker runs until the end of the block.

    Raises:
        UsageError: The data directory cannot be used, or anybody could come in.
        UnavailableError: The database cannot be reached.
    """
    with (
        open_store(
            settings.data_directory,
            url=reveal(settings.database_url),
            blobs=reveal(settings.blobs),
            connections=settings.database_connections,
        ) as store,
        _open_computing(settings, store, backbones) as (predictors, writers, replicas),
    ):
        _refuse_an_open_door(settings, store)
        ensure_tenant(store, LOCAL, now=started_at)
        shutil.rmtree(store.directory.vocabularies)
        for name, backbone in backbones.items():
            if backbone.code is None:
                write_bundle(backbone.bundle, locate_vocabulary(store, name))
            else:
                write_code_bundle(backbone.code, locate_vocabulary(store, name))
        for job_id in warn_of_models_not_served(store, served=tuple(backbones), now=started_at):
            log.warning("job %s waits: its base model is not served any more", job_id)
        runner: JobRunner | JobRunners
        if replicas is None:
            precision = find_precision(backbones.values())
            runner = make_runner(settings, store, backbones=backbones, precision=precision, fork_server=fork_server)
        else:
            runner = make_cluster_runners(settings, store, replicas, models=tuple(backbones))
        service = Service(
            settings=settings,
            store=store,
            backbones=backbones,
            gate=Gate(
                [backbone.bundle for backbone in backbones.values()],
                codes=[backbone.code for backbone in backbones.values() if backbone.code is not None],
            ),
            runner=runner,
            adapters=AdapterCache(settings.adapter_memory_bytes, before_waiting=refuse_to_wait),
            predictors=predictors,
            writers=writers,
            replicas=replicas,
            tokenizers={name: make_tokenizer(backbones[name].vocabulary.tokenizer_json) for name in writers},
            metrics=Metrics(store),
            job_limits=make_job_settings(settings).limits,
            quotas=TokenQuotas(store, default=settings.tenant_tokens_per_minute),
            arriving=ArrivingBytes(store, default=settings.tenant_bytes),
            started_at=started_at,
        )
        housekeeper = Housekeeper(store)
        if settings.worker_in_service:
            runner.start()
        housekeeper.start()
        try:
            yield service
        finally:
            housekeeper.close()
            runner.close()


Computing = tuple[Mapping[str, Predictor], Mapping[str, Writes[Any]], Replicas | None]


@contextmanager
def _open_computing(settings: Settings, store: Store, backbones: Mapping[str, Backbone]) -> Iterator[Computing]:
    if settings.engine == "local":
        with compute_answers(backbones, limits=BatchLimits(waiting_cost=settings.max_waiting_tokens)) as both:
            yield *both, None
        return
    found = make_replica_settings(settings, store, backbones)
    room = Room(settings.max_waiting_tokens * found.plan.most)
    replicas = Replicas(found)
    predictors = {
        name: Predictor(backbone, elsewhere=ReplicaBatches(replicas, name, room=room))
        for name, backbone in backbones.items()
    }
    writers = {
        name: ReplicaWriter(replicas, name, backbone, room=room)
        for name, backbone in backbones.items()
        if backbone.kind != "encoder"
    }
    replicas.start()
    try:
        yield predictors, writers, replicas
    finally:
        replicas.close()


def make_replica_settings(settings: Settings, store: Store, backbones: Mapping[str, Backbone]) -> ReplicaSettings:
    """Make the settings of the replicas of a service, and of what runs its jobs."""
    plan = ReplicaPlan(
        service=read_service_id(store),
        models=name_models(settings),
        vocabularies={name: backbone.bundle.hash for name, backbone in backbones.items()},
        precision="bfloat16" if find_precision(backbones.values()) == "bfloat16" else "float32",
        device=settings.device,
        weights=settings.weights,
        device_map=settings.device_map,
        torch_threads=settings.torch_threads,
        waiting_cost=settings.max_waiting_tokens,
        adapter_bytes=settings.adapter_memory_bytes,
        least=settings.replicas,
        most=settings.most_replicas or settings.replicas,
        requests=settings.replica_requests,
        up_after=settings.replica_up_seconds,
        down_after=settings.replica_down_seconds,
        cores=settings.replica_cores,
        gpus=settings.replica_gpus,
    )
    runs_jobs = settings.worker_in_service
    return ReplicaSettings(
        plan=plan,
        address=settings.ray_address,
        keep=settings.keep_replicas,
        jobs=make_child_settings(settings, precision=plan.precision) if runs_jobs else None,
        jobs_at_once=settings.jobs_at_once,
        shares_disk=settings.ray_address is None,
    )


def locate_vocabulary(store: Store, name: str) -> Path:
    """Where the bundle of a base model is written for clients to fetch; made anew at every start."""
    return store.directory.vocabularies / name


def _refuse_an_open_door(settings: Settings, store: Store) -> None:
    if settings.admin_key is None and not is_loopback(settings.host) and not has_keys(store):
        raise UsageError(
            "a service without keys must listen on loopback only; create one with `rapt admin create-key`, or leave "
            "out --host"
        )
