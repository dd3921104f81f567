"""A service put together: settings, store, backbones, worker. One value that every route is given."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from rapt.errors import NotFoundError, UsageError
from rapt.service.http.adapter_cache import AdapterCache
from rapt.service.http.admission import Gate
from rapt.service.http.metrics import Metrics
from rapt.service.http.quotas import TokenQuotas
from rapt.service.http.settings import Settings, revealed, served_name
from rapt.service.jobs.job_runner import JobRunner
from rapt.service.jobs.worker import ThreadRunner
from rapt.service.model.backbone import Backbone, load_backbone
from rapt.service.model.batching import BatchLimits
from rapt.service.model.frame import make_tokenizer
from rapt.service.model.serving import Predictor
from rapt.service.model.writing import Writer
from rapt.service.storage.callers import LOCAL
from rapt.service.storage.key_rows import has_keys
from rapt.service.storage.recovery import open_store
from rapt.service.storage.store import Store
from rapt.service.storage.tenant_rows import ensure_tenant
from rapt.wire.addresses import is_loopback
from rapt.wire.vocabulary_bundle import write_bundle


@dataclass(frozen=True, eq=False, kw_only=True)
class Service:
    """What the routes work with.

    Attributes:
        settings: As they were read.
        store: Files, jobs, models.
        backbones: By the name that clients use.
        gate: Checks what comes in.
        runner: Runs the jobs.
        adapters: Tuned models in memory.
        predictors: By the name of the backbone: predictions of all callers, in common batches.
        writers: By the name of the backbone, of those that write: the texts of all callers in one batch.
        tokenizers: By the name of the backbone, to spell what was written.
        quotas: Tokens a minute of each tenant.
        metrics: What is counted.
        started_at: Unix time, s; what base models say about their creation.
    """

    settings: Settings
    store: Store
    backbones: Mapping[str, Backbone]
    gate: Gate
    runner: JobRunner
    adapters: AdapterCache
    predictors: Mapping[str, Predictor]
    writers: Mapping[str, Writer]
    tokenizers: Mapping[str, Tokenizer]
    quotas: TokenQuotas
    metrics: Metrics
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
        UsageError: The architecture of one is not supported.
    """
    loaded = {}
    for model in settings.models:
        name, backbone = served_name(model), load_backbone(model, precision=settings.precision)
        # A model from a folder is known by that folder's name, here and in what clients are given.
        loaded[name] = replace(backbone, model=name, bundle=replace(backbone.bundle, model=name))
    return loaded


@contextmanager
def open_service(settings: Settings, *, backbones: Mapping[str, Backbone], started_at: int) -> Iterator[Service]:
    """A service whose worker runs until the end of the block.

    Raises:
        UsageError: The data directory cannot be used, or anybody could come in.
        UnavailableError: The database cannot be reached.
    """
    with (
        open_store(
            settings.data_directory,
            url=revealed(settings.database_url),
            blobs=revealed(settings.blobs),
            connections=settings.database_connections,
        ) as store,
        _computing(settings, backbones) as (predictors, writers),
    ):
        _refuse_an_open_door(settings, store)
        ensure_tenant(store, LOCAL, now=started_at)
        shutil.rmtree(store.directory.vocabularies)
        for name, backbone in backbones.items():
            write_bundle(backbone.bundle, vocabulary_folder(store, name))
        runner = ThreadRunner(
            store, backbones, between_checkpoints=settings.checkpoint_seconds, tenant_bytes=settings.tenant_bytes
        )
        service = Service(
            settings=settings,
            store=store,
            backbones=backbones,
            gate=Gate([backbone.bundle for backbone in backbones.values()]),
            runner=runner,
            adapters=AdapterCache(settings.adapter_memory_bytes),
            predictors=predictors,
            writers=writers,
            tokenizers={name: make_tokenizer(backbone.bundle.tokenizer_json) for name, backbone in backbones.items()},
            metrics=Metrics(store),
            quotas=TokenQuotas(store, default=settings.tenant_tokens_per_minute),
            started_at=started_at,
        )
        if settings.worker_in_service:
            runner.start()
        try:
            yield service
        finally:
            runner.close()


@contextmanager
def _computing(
    settings: Settings, backbones: Mapping[str, Backbone]
) -> Iterator[tuple[dict[str, Predictor], dict[str, Writer]]]:
    limits = BatchLimits(waiting_cost=settings.max_waiting_tokens)
    with ExitStack() as closing:
        predictors, writers = {}, {}
        for name, backbone in backbones.items():
            predictors[name] = Predictor(backbone, limits=limits)
            closing.callback(predictors[name].close)
            if backbone.kind != "encoder":
                writers[name] = Writer(backbone, limits=limits)
                closing.callback(writers[name].close)
        yield predictors, writers


def vocabulary_folder(store: Store, name: str) -> Path:
    """Where the bundle of a base model is written for clients to fetch; made anew at every start."""
    return store.directory.vocabularies / name


def _refuse_an_open_door(settings: Settings, store: Store) -> None:
    if settings.api_key is None and not is_loopback(settings.host) and not has_keys(store):
        raise UsageError(
            "a service without keys must listen on loopback only; create one with `rapt admin create-key`, or leave "
            "out --host"
        )
