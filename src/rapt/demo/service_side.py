"""Starts the service as a process of its own and stops it again.

It gets a folder, a model and a port, and nothing else: no argument, variable or working directory names the trusted
folder. It runs under the same account on the same machine, so this keeps texts from it by not handing them over,
as a client does; it is not a sandbox.

What the service does for the demo: two runs of tuning on one privatized file, and predictions for queries.

Both runs read the same token ids. The one without reconstruction leaves the plain tokens out, in tuning and in
prediction; RAPT keeps them and learns to reconstruct them. So the runs differ in the method alone.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from rapt.demo.plan import DemoPlan
from rapt.demo.trusted_side import TrustedSide
from rapt.drawing import Line
from rapt.errors import ServiceError, UnavailableError
from rapt.local.client import ServiceClient, follow_job
from rapt.local.client.objects import JobInfo
from rapt.narration import Narrator

LOG: Final = "service.log"
# Loading torch and a model takes seconds; minutes mean that something is wrong. In seconds.
_PATIENCE: Final = 180.0
_TIME_TO_STOP: Final = 20.0
# What a Python process needs to run at all; everything else of the environment stays here.
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH", "PYTHONPATH")


@contextmanager
def running_service(folder: Path, *, models: Sequence[str], threads: int) -> Iterator[ServiceProcess]:
    """A service that has been started, and is stopped at the end of the block.

    Args:
        folder: Working directory, data directory and place of the log; made if it is missing.
        models: Base models to serve: known names, and names of folders below `folder`.
        threads: Threads of its matrix products.

    Raises:
        UnavailableError: It did not start; the log says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"RAPT_TORCH_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    # -P: the working directory, which clients can write to through uploads, must not be a place to import from.
    command = [sys.executable, "-P", "-m", "rapt", "serve", "--data", "data", "--port", "0"]
    command += [word for model in models for word in ("--model", model)]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log)
        try:
            yield ServiceProcess(process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=_TIME_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


class ServiceProcess:
    """A process that will answer at some URL."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process that prints its URL once it answers."""
        self._process = process

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def url(self) -> str:
        """Where it answers; waits until it does.

        Raises:
            UnavailableError: It ended, or took too long.
            ServiceError: It said something else.
        """
        assert self._process.stdout is not None
        line = _read_first_line(self._process.stdout)
        try:
            return str(json.loads(line)["url"])
        except (ValueError, KeyError, TypeError):
            raise ServiceError(f"the service must print its address first, and did not; see {LOG}") from None


def _read_first_line(stream: IO[bytes]) -> bytes:
    ready, _, _ = select.select([stream], [], [], _PATIENCE)
    line = stream.readline() if ready else b""
    if not line:
        why = "ended" if ready else f"gave no answer in {_PATIENCE:.0f} s"
        raise UnavailableError(f"the service must start, but it {why}; its reason is in {LOG}")
    return line


PROMPT_TUNING: Final = "prompt tuning on privatized text"
RAPT: Final = "RAPT on privatized text"


def start_jobs(client: ServiceClient, side: TrustedSide, plan: DemoPlan) -> dict[str, JobInfo]:
    """Upload the privatized file and queue both runs; the service works on one after the other."""
    uploaded = client.upload(side.training_path)
    rapt = {} if plan.reconstruction_weight is None else {"weight": plan.reconstruction_weight}
    return {
        name: client.create_job(
            file_id=uploaded.id,
            model=plan.model,
            method={
                "type": "prompt_tuning",
                "prompt_tuning": {
                    "hyperparameters": {
                        "num_virtual_tokens": plan.prompt_length,
                        "n_epochs": plan.epochs,
                        "reconstruction": reconstruction,
                    }
                },
            },
            suffix="demo",
            seed=plan.seed,
        )
        for name, reconstruction in ((PROMPT_TUNING, None), (RAPT, rapt))
    }


def follow(client: ServiceClient, job: JobInfo, *, name: str, narrator: Narrator) -> str:
    """The name of the tuned model, once the job has ended. Raises `TuningError` if it did not succeed."""
    with narrator.meter(f"service: {name}", unit="steps") as meter:
        ended = follow_job(client, job.id, on_step=lambda done, total, losses: meter(done, total=total, note=losses))
    return str(ended.fine_tuned_model)


def read_losses(client: ServiceClient, job: JobInfo, *, name: str) -> Line:
    """The training loss of a run over its steps, in nats."""
    steps = [event.data for event in client.events(job.id) if event.data is not None and "step" in event.data]
    return Line(name=name, points=tuple((float(data["step"]), float(data["train_loss"])) for data in steps))


def predict_queries(client: ServiceClient, model: str, side: TrustedSide) -> list[str]:
    """Predicted labels of the privatized queries, in order."""
    return [prediction.label for prediction in client.classify(model, side.privatized_queries())]
