"""A worker in a process of its own: the same runner as in the service, on the same data directory."""

from __future__ import annotations

import logging.config
from collections.abc import Callable, Mapping
from threading import Event

import torch

from rapt.service.http.assembly import load_backbones
from rapt.service.http.memory import giving_back
from rapt.service.http.server import LOGGING, stopped_by_signals
from rapt.service.http.settings import Settings, revealed
from rapt.service.jobs.worker import ThreadRunner
from rapt.service.model.backbone import Backbone
from rapt.service.storage.blob_owner import own_blobs
from rapt.service.storage.recovery import join_store


def work(settings: Settings, *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run jobs until the process is asked to stop (SIGINT or SIGTERM).

    Raises:
        UsageError: The data directory cannot be used.
        VocabularyError: The files of a model are missing.
    """
    logging.config.dictConfig(LOGGING)
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    with stopped_by_signals(), giving_back():
        work_with(settings, backbones=load_backbones(settings), on_ready=on_ready, until=Event())


def work_with(
    settings: Settings, *, backbones: Mapping[str, Backbone], on_ready: Callable[[], None], until: Event
) -> None:
    """Run jobs on loaded models until the event, or until a signal interrupts the wait."""
    with join_store(
        settings.data_directory,
        url=revealed(settings.database_url),
        blobs=revealed(settings.blobs),
        connections=settings.database_connections,
    ) as store:
        own_blobs(store)
        runner = ThreadRunner(
            store, backbones, between_checkpoints=settings.checkpoint_seconds, tenant_bytes=settings.tenant_bytes
        )
        runner.start()
        try:
            on_ready()
            until.wait()
        finally:
            runner.close()
