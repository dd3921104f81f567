"""Processes to be killed: a service and a worker, forked from one process that has loaded torch and a model once.

Imported by that process (`forkserver`), so what is loaded at import here is loaded once for all of them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from threading import Event

import torch

from rapt.service.http.assembly import load_backbones
from rapt.service.http.server import listen, serve_on, work_with
from rapt.service.http.settings import load_settings
from running_service import wait_until

torch.set_num_threads(1)  # before anything runs: a pool of threads does not survive a fork
BACKBONES = load_backbones(load_settings({"models": "bert-tiny", "precision": "float32"}))


def settings_in(folder: Path, **changes: object):
    """Settings of a service whose every state is worth a crash."""
    chosen = {"data_directory": folder / "data", "port": 0, "models": "bert-tiny", "run_state_seconds": 0.0}
    chosen |= {"job_process": False, "job_attempts": 1000}  # a process of such a service is killed again and again
    return load_settings({**chosen, "ready_file": folder / "ready.json", **changes})


def serve_until_killed(folder: Path, worker_in_service: bool) -> None:
    """Be the service."""
    settings = settings_in(folder, worker_in_service=worker_in_service)
    with listen(settings) as listener:
        serve_on(listener, settings, backbones=BACKBONES, on_ready=lambda server, url: None)


def work_until_killed(folder: Path) -> None:
    """Be the worker."""
    work_with(settings_in(folder), backbones=BACKBONES, on_ready=lambda: None, until=Event())


class Processes:
    """A service, and a worker beside it if asked for; killed and started again on the same folder."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet."""
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["crash_processes"])
        # Python 3.11 does not hand the path on, and says nothing if what is to be loaded cannot be found: then every
        # process loads torch anew.
        before = os.environ.get("PYTHONPATH")
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = here if before is None else os.pathsep.join((here, before))
        try:
            forkserver.ensure_running()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
        self._running: list = []

    def start(self, *, own_worker: bool) -> str:
        """The URL of a service that answers."""
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        self._running = [self._process(serve_until_killed, (self._folder, not own_worker))]
        wait_until(lambda: ready.exists() or not self._running[0].is_alive(), seconds=300)
        assert ready.exists(), "the service did not start"
        if own_worker:
            self._running.append(self._process(work_until_killed, (self._folder,)))
        return json.loads(ready.read_text())["url"]

    def kill(self, which: str = "all") -> None:
        """SIGKILL: nothing is said, nothing is tidied up."""
        chosen = {"all": self._running, "service": self._running[:1], "worker": self._running[-1:]}[which]
        for process in chosen:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()

    def _process(self, target, arguments):
        process = self._context.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process
