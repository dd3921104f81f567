"""Processes to be killed: a service and a worker, forked from one process that has loaded torch and a model once."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

from rapt.service.http.server import listen, serve_on, work_with
from rapt.service.http.settings import load_settings
from running_service import wait_until
from warm_processes import WarmProcess


def settings_in(folder: Path, **changes: object):
    """Settings of a service whose every state is worth a crash."""
    chosen = {"data_directory": folder / "data", "port": 0, "models": "bert-tiny", "run_state_seconds": 0.0}
    chosen |= {"job_process": False, "job_attempts": 1000}  # a process of such a service is killed again and again
    return load_settings({**chosen, "ready_file": folder / "ready.json", **changes})


def serve_until_killed(folder: Path, worker_in_service: bool) -> None:
    """Be the service."""
    settings = settings_in(folder, worker_in_service=worker_in_service)
    from loaded_once import BACKBONES

    with listen(settings) as listener:
        serve_on(listener, settings, backbones=BACKBONES, on_ready=lambda server, url: None)


def work_until_killed(folder: Path) -> None:
    """Be the worker."""
    from loaded_once import BACKBONES

    work_with(settings_in(folder), backbones=BACKBONES, on_ready=lambda: None, until=Event())


class Processes:
    """A service, and a worker beside it if asked for; killed and started again on the same folder."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet."""
        self._folder = folder
        self._running: list[WarmProcess] = []

    def start(self, *, own_worker: bool) -> str:
        """The URL of a service that answers."""
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        self._running = [WarmProcess(serve_until_killed, self._folder, not own_worker)]
        wait_until(lambda: ready.exists() or self._running[0].poll() is not None, seconds=300)
        assert ready.exists(), "the service did not start"
        if own_worker:
            self._running.append(WarmProcess(work_until_killed, self._folder))
        return json.loads(ready.read_text())["url"]

    def kill(self, which: str = "all") -> None:
        """SIGKILL: nothing is said, nothing is tidied up."""
        chosen = {"all": self._running, "service": self._running[:1], "worker": self._running[-1:]}[which]
        for process in chosen:
            process.kill()
            process.wait()
