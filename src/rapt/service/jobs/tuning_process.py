"""A process of its own for the jobs: what a job does to it, it does not do to the service.

The child is started when the first job comes, holds the base models that jobs have asked for, and runs one job after
the other. It is forked by a `ForkServer` that has imported all it needs, or where there is none it imports that itself
(`python -m rapt.service.jobs.tuning_process`). It has a limit of memory, and is what the system ends first when memory
is short. When it dies, the job that it ran waits again with the reason, and the next one gets a new child.

Both sides write lines of JSON: settings, a job or a wish to stop go in, how a job ended comes out. Everything else
about a job, its files, its progress, its states, the child does in the store itself.
"""

from __future__ import annotations

import ctypes
import json
import logging
import logging.config
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, BinaryIO, Final

import numpy as np
import torch

from rapt.service.backbone.backbone import Backbone, Weights
from rapt.service.backbone.opening import Precision, load_served
from rapt.service.backbone.placement import limit_gpu_memory
from rapt.service.jobs.fork_server import ForkedProcess, ForkServer
from rapt.service.jobs.job_limits import MEBIBYTE, JobLimits, JobSettings
from rapt.service.jobs.job_run import Outcome, run_job, run_to_outcome
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.recovery import join_store
from rapt.service.storage.store import Store
from rapt.service.traces import switch_tracebacks

log = logging.getLogger(__name__)

_BETWEEN_LOOKS: Final = 0.1  # at the child's memory, and at whether the job shall stop, s
# A child that was told to stop and does not within so long, in a step that takes longer, is killed; its last state is
# kept. s
_LONGEST_STEP: Final = 5.0
_LONGEST_LEAVING: Final = 2.0  # of a child without a job, s
_LONGEST_IDLE: Final = 600.0  # then its memory is given back, s
# Resident memory beyond the limit at which the child is killed, where the system does not hold it to its limit itself.
_LEEWAY: Final = 256 * MEBIBYTE
_LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"rapt": {"handlers": ["stderr"], "level": "INFO", "propagate": False}},
}
# Number of an option of glibc's `mallopt`, and the size from which a block is given back when it is freed, bytes. No
# cost can be told from chance: steps of MiniLM took 0.66 and 0.70 s with it, 0.72 and 0.66 without.
_MMAP_THRESHOLD: Final = -3
_LARGER: Final = 1 << 16
# The system ends this process before the service when memory is short.
_FIRST_TO_GO: Final = "800"
# By how much its priority is below that of the service: where processors are few, answers go before jobs.
_BEHIND_ANSWERS: Final = 10

Child = subprocess.Popen[bytes] | ForkedProcess


@dataclass(frozen=True, kw_only=True)
class ChildSettings:
    """Settings of a child; it reads them on its standard input, because a password may be in them.

    Attributes:
        data_directory: Data directory of the service.
        database_url: URL of the database, from the settings of the service.
        database_connections: Most connections to it, from the settings.
        blobs: URL of the blobs, from the settings.
        models: Models to load, a known name or a folder each, by the name that they are served under.
        precision: `float32` or `bfloat16`, of all models: a run must go on in the precision it was begun in.
        device: Device of all models, as `choose_device` takes it.
        weights: Form in which all models keep the weights of linear layers.
        device_map: Devices of layers, of all models.
        torch_threads: Threads of one matrix product; None for all cores.
        debug: Whether tracebacks are printed.
        jobs: Settings of jobs.
    """

    data_directory: str
    database_url: str | None
    database_connections: int
    blobs: str | None
    models: Mapping[str, str]
    precision: str
    device: str
    weights: Weights = "whole"
    device_map: str = ""
    torch_threads: int | None
    debug: bool
    jobs: JobSettings


class TuningProcess:
    """Runs jobs in a child, one at a time; used by one thread."""

    def __init__(self, settings: ChildSettings, *, fork_server: ForkServer | None = None) -> None:
        """Keep the settings, and what forks children; the child starts with its first job."""
        self._settings = settings
        self._fork_server = fork_server
        self._child: Child | None = None
        self._said: Queue[dict[str, Any] | None] = Queue()
        self._resting = 0  # resident bytes of the child before its job
        self._used_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        """The id of the child process; None where none is alive."""
        return None if self._child is None or self._child.poll() is not None else self._child.pid

    def run(self, job: StoredJob, should_stop: Callable[[], bool]) -> Outcome:
        """Run a claimed job until it has ended, the child has died, or the function says that it shall stop."""
        try:
            child = self._start_child()
        except OSError as error:
            log.warning("no process for job %s: %s", job.id, type(error).__name__)
            return Outcome(kind="away")
        _send(child, {"job": asdict(job)})  # one that has died meanwhile says nothing, and that is seen
        outcome = self._wait(child, job, should_stop)
        self._used_at = time.monotonic()
        if child.poll() is not None:
            self.close()
        if outcome.kind == "died":
            log.error("job %s: its process died: %s", job.id, outcome.message)
        return outcome

    def rest(self) -> None:
        """No job waits: a child that has had nothing to do for long gives its memory back."""
        if self._child is not None and time.monotonic() - self._used_at > _LONGEST_IDLE:
            self.close()

    def close(self) -> None:
        """End the child, which runs nothing any more."""
        if self._child is None:
            return
        child, self._child = self._child, None
        with suppress(OSError):
            assert child.stdin is not None
            child.stdin.close()  # it leaves when nobody can ask it any more
        try:
            child.wait(_LONGEST_LEAVING)
        except subprocess.TimeoutExpired:
            _kill(child)

    def _start_child(self) -> Child:
        if self._child is not None and self._child.poll() is None:
            return self._child
        child = (None if self._fork_server is None else self._fork_server.start()) or _start_afresh()
        said: Queue[dict[str, Any] | None] = Queue()
        Thread(target=_hear_child, args=(child, said), name="rapt-tuning-process", daemon=True).start()
        self._child, self._said, self._resting = child, said, 0
        _send(child, asdict(self._settings))
        return child

    def _wait(self, child: Child, job: StoredJob, should_stop: Callable[[], bool]) -> Outcome:
        told_at: float | None = None
        while True:
            with suppress(Empty):
                said = self._said.get(timeout=_BETWEEN_LOOKS)
                if said is None:
                    child.wait()
                    return Outcome(kind="died", message=_describe_death(child.returncode))
                if "outcome" in said:
                    return Outcome(**said["outcome"])
                self._resting = measure_resident_bytes(child.pid)  # "ready": the model is loaded, and the run begins
            if self._resting and measure_resident_bytes(child.pid) > self._resting + self._count_most_bytes():
                _kill(child)
                return Outcome(kind="died", message=f"it took more memory than job_memory_bytes={self._limit()}")
            if told_at is None and should_stop():
                told_at = time.monotonic()
                _send(child, {"stop": name_run(job)})
            if told_at is not None and time.monotonic() - told_at > _LONGEST_STEP:
                _kill(child)
                return Outcome(kind="stopped")

    def _limit(self) -> int:
        return self._settings.jobs.limits.memory_bytes

    def _count_most_bytes(self) -> int:
        return self._limit() + self._limit() // 8 + _LEEWAY


def _start_afresh() -> Child:
    # Where this code is found is handed on: a child must not run another rapt.
    path = os.pathsep.join([name for name in sys.path if name])
    return subprocess.Popen(
        [sys.executable, "-m", "rapt.service.jobs.tuning_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # a Ctrl-C in the terminal is for the service, which tells the child
    )


def name_run(job: StoredJob) -> str:
    """Name one run of a job, unlike all others of it."""
    return f"{job.id} {job.attempt}"


def measure_resident_bytes(pid: int) -> int:
    """Memory of a process that is in use, bytes, without that of files that it maps; 0 where the system does not say.

    A forked process maps code of libraries anew whenever it first runs some, which is no memory of its job.
    """
    try:
        _size, resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[:3])
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _hear_child(child: Child, said: Queue[dict[str, Any] | None]) -> None:
    """Hand on what a child says, and None once it says nothing any more."""
    assert child.stdout is not None
    with child.stdout as lines, suppress(ValueError):
        for line in lines:
            said.put(json.loads(line))
    said.put(None)


def _send(child: Child, message: Mapping[str, Any]) -> None:
    """Tell a child something, unless it is dead."""
    assert child.stdin is not None
    with suppress(OSError):
        child.stdin.write(json.dumps(message).encode() + b"\n")
        child.stdin.flush()


def _kill(child: Child) -> None:
    child.kill()
    child.wait()


def _describe_death(code: int | None) -> str:
    """Words for its tenant."""
    if code is None or code >= 0:
        return f"it ended by itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    if -code in (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
        return f"it was ended by {name}, most likely for want of memory"
    return f"it was ended by {name}"


def main() -> None:
    """Run jobs until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run_jobs(sys.stdin.buffer, answers)


def run_jobs(asked: BinaryIO, answers: BinaryIO) -> None:
    """Run the jobs that are asked for, in a process of their own; ends it when nobody can ask any more."""
    # The worker is told to stop, and tells this process; systemd may tell both, with a SIGHUP behind it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(_BEHIND_ANSWERS)
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    np.random.seed()  # noqa: NPY002  # a library may draw from it, and every fork would begin with the same numbers
    settings = _parse_settings(json.loads(asked.readline()))
    logging.config.dictConfig(_LOGGING)
    switch_tracebacks(log, on=settings.debug)
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    jobs: Queue[StoredJob] = Queue()
    stopped: set[str] = set()
    Thread(target=_hear_worker, args=(asked, jobs, stopped), name="rapt-listener", daemon=True).start()
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
    run = name_run(job)

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

    return run_to_outcome(job, work)


def _load(settings: ChildSettings, name: str) -> Backbone:
    precision: Precision = "bfloat16" if settings.precision == "bfloat16" else "float32"
    # The second time, the same object.
    model, device = settings.models[name], settings.device
    return load_served(
        model,
        name=name,
        precision=precision,
        device=device,
        served=settings.models,
        weights=settings.weights,
        device_map=settings.device_map,
    )


def limit_memory(more: int | None) -> None:
    """Let this process take so many bytes beyond what it has, and on each GPU as many; None lets it take what there is.

    A step that would take more fails with an error of memory, which a run answers with smaller parts of its batch.
    """
    limit_gpu_memory(more)
    most = resource.RLIM_INFINITY
    if more is not None:
        _give_back_what_is_freed()
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:  # not Linux, where alone this limit holds for all memory that is written to
            return
        has = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
        most = has + more
    with suppress(ValueError, OSError):  # a lower one was set for all of us
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _give_back_what_is_freed() -> None:
    """Have the C library give each larger block back when it is freed, as glibc does until it has seen some freed.

    What it keeps counts within the limit, in pieces that the smaller parts of a failed step may not fit into.
    """
    with suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGER)


def _hear_worker(asked: BinaryIO, jobs: Queue[StoredJob], stopped: set[str]) -> None:
    for line in asked:
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


def _parse_settings(value: dict[str, Any]) -> ChildSettings:
    jobs = value.pop("jobs")
    limits = JobLimits(**jobs.pop("limits"))
    return ChildSettings(**value, jobs=JobSettings(**jobs, limits=limits))


if __name__ == "__main__":
    main()
