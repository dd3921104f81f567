"""Processes of their own that begin in milliseconds: forked from one that has imported and loaded `loaded_once`.

That one is the fork server of `multiprocessing`, which knows nothing of the test's process. A Python that imports torch
and the library of models anew takes five seconds of a processor.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")


class WarmProcess:
    """A process that calls a function of a module, with those parts of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        target: Callable[..., None],
        *arguments: Any,
        variables: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """Start it, with variables of the environment beside those of the test, and a file for what it prints."""
        _ensure_running()
        # A daemon is ended with the test's process.
        self._process = _CONTEXT.Process(
            target=_call, args=(target, arguments, dict(os.environ) | dict(variables or {}), log), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended (`subprocess.TimeoutExpired`)."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def run_warm(function: Callable[..., Any], *arguments: Any, folder: Path) -> Any:
    """What a function returns in a process of its own, by way of JSON."""
    log, returned = folder / "printed", folder / "returned.json"
    code = WarmProcess(_write_returned, returned, function, arguments, log=log).wait(600)
    assert code == 0, log.read_text()[-2000:]
    return json.loads(returned.read_text())


def _write_returned(place: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    place.write_text(json.dumps(function(*arguments)))


def _call(
    target: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str], log: Path | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if log is not None:
        place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(place, 1)
        os.dup2(place, 2)
        os.close(place)
    target(*arguments)


def _ensure_running() -> None:
    _CONTEXT.set_forkserver_preload(["loaded_once"])
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
