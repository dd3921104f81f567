"""The child of `tuning_process`: runs the jobs that it is told, until nobody can tell it anything any more.

`python -m rapt.service.jobs.tuning_child`, started by a worker alone. Its settings are the first line of its standard
input. It answers on what was its standard output; whatever else is printed goes to stderr.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, BinaryIO, Final

import torch

from rapt.service.backbone.backbone import Backbone, Precision, load_served
from rapt.service.jobs.job_run import Outcome, outcome_of, run_job
from rapt.service.jobs.job_settings import JobLimits, JobSettings
from rapt.service.jobs.tuning_process import ChildSettings, name_of_run
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.recovery import join_store
from rapt.service.storage.store import Store
from rapt.service.traces import switch_tracebacks

log = logging.getLogger(__name__)

_LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"rapt": {"handlers": ["stderr"], "level": "INFO", "propagate": False}},
}
# The system ends this process before the service when memory is short.
_FIRST_TO_GO: Final = "800"


def main() -> None:
    """Run jobs until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # The worker is told to stop, and tells this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    settings = _settings_from_json(json.loads(sys.stdin.buffer.readline()))
    logging.config.dictConfig(_LOGGING)
    switch_tracebacks(log, on=settings.debug)
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    jobs: Queue[StoredJob] = Queue()
    stopped: set[str] = set()
    Thread(target=_listen, args=(jobs, stopped), name="rapt-listener", daemon=True).start()
    with join_store(
        Path(settings.data_directory),
        url=settings.database_url,
        blobs=settings.blobs,
        connections=settings.database_connections,
    ) as store:
        while True:
            job = jobs.get()
            outcome = _run(job, store, settings, stopped=stopped, answers=answers)
            _answer(answers, {"outcome": asdict(outcome)})


def _run(job: StoredJob, store: Store, settings: ChildSettings, *, stopped: set[str], answers: BinaryIO) -> Outcome:
    run = name_of_run(job)

    def work() -> None:
        limit_memory(None)
        backbone = _load(settings, job.model)
        _answer(answers, {"ready": True})
        limit_memory(settings.jobs.limits.memory_bytes)
        run_job(
            store,
            job,
            backbone=backbone,
            models=tuple(settings.models),
            should_stop=lambda: run in stopped,
            settings=settings.jobs,
        )

    return outcome_of(job, work)


def _load(settings: ChildSettings, name: str) -> Backbone:
    precision: Precision = "bfloat16" if settings.precision == "bfloat16" else "float32"
    return load_served(settings.models[name], name=name, precision=precision)  # the second time, the same object


def limit_memory(more: int | None) -> None:
    """Let this process take so many bytes beyond what it has; None lets it take what there is.

    A step that would take more fails with an error of memory, which a run answers with smaller parts of its batch.
    """
    most = resource.RLIM_INFINITY
    if more is not None:
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:  # not Linux, where alone this limit holds for all memory that is written to
            return
        has = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
        most = has + more
    with suppress(ValueError, OSError):  # a lower one was set for all of us
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _listen(jobs: Queue[StoredJob], stopped: set[str]) -> None:
    for line in sys.stdin.buffer:
        said = json.loads(line)
        if "job" in said:
            jobs.put(StoredJob(**said["job"]))
        else:
            stopped.add(said["stop"])  # by its run: the word may come when that one has just ended
    # The worker is gone: whoever takes its place begins where the last state was kept.
    os._exit(0)


def _answer(answers: BinaryIO, message: dict[str, Any]) -> None:
    try:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()
    except OSError:
        os._exit(0)


def _settings_from_json(value: dict[str, Any]) -> ChildSettings:
    jobs = value.pop("jobs")
    limits = JobLimits(**jobs.pop("limits"))
    return ChildSettings(**value, jobs=JobSettings(**jobs, limits=limits))


if __name__ == "__main__":
    main()
