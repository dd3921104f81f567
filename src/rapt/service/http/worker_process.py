"""A worker in a process of its own: the same runner as in the service, on the same data directory."""

from __future__ import annotations

import logging.config
import os
from collections.abc import Callable, Mapping
from threading import Event

import torch

from rapt.public_models import model_directory, model_name
from rapt.service.backbone.backbone import Backbone, chosen_dtype
from rapt.service.http.assembly import load_backbones, make_runner
from rapt.service.http.memory import giving_back
from rapt.service.http.server import LOGGING, stopped_by_signals
from rapt.service.http.settings import Settings, revealed
from rapt.service.http.variables import warn_of_unknown_variables
from rapt.service.storage.blob_owner import own_blobs
from rapt.service.storage.recovery import join_store
from rapt.service.traces import switch_tracebacks
from rapt.wire.vocabulary_bundle import bundle_from_model_directory

log = logging.getLogger(__name__)


def work(settings: Settings, *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run jobs until the process is asked to stop (SIGINT or SIGTERM).

    Raises:
        UsageError: The data directory cannot be used.
        VocabularyError: The files of a model are missing.
    """
    logging.config.dictConfig(LOGGING)
    warn_of_unknown_variables(os.environ)
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    switch_tracebacks(log, on=settings.debug)
    with stopped_by_signals(), giving_back():
        backbones = {} if settings.job_process else load_backbones(settings)
        if settings.job_process:
            for model in settings.models:  # that their files are there is said now and not when a job comes
                bundle_from_model_directory(model_directory(model), model=model_name(model))
        work_with(settings, backbones=backbones, on_ready=on_ready, until=Event())


def work_with(
    settings: Settings, *, backbones: Mapping[str, Backbone], on_ready: Callable[[], None], until: Event
) -> None:
    """Run jobs until the event, or until a signal interrupts the wait."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = str(chosen_dtype(settings.precision, device)).removeprefix("torch.")
    with join_store(
        settings.data_directory,
        url=revealed(settings.database_url),
        blobs=revealed(settings.blobs),
        connections=settings.database_connections,
    ) as store:
        own_blobs(store)
        runner = make_runner(settings, store, backbones=backbones, precision=precision)
        runner.start()
        try:
            on_ready()
            until.wait()
        finally:
            runner.close()
