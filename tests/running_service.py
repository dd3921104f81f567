"""A real service on a free port of loopback, in a thread of the test: nothing between it and the client is faked."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event, Thread

from rapt.cli import main
from rapt.service.backbone.backbone import Backbone
from rapt.service.http import server
from rapt.service.http.server import listen, serve, serve_on
from rapt.service.http.settings import load_settings
from rapt.service.storage.recovery import open_store
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_writer import write_privatized_file
from warm_processes import WarmProcess


@functools.cache
def _new_data_directory() -> tempfile.TemporaryDirectory[str]:
    """One that was opened once, for the whole run of the tests."""
    place = tempfile.TemporaryDirectory(prefix="rapt-tests-")
    with open_store(Path(place.name) / "data"):
        return place


def begin_data_directory(folder: Path) -> Path:
    """Let a new folder have the tables already: a tenth of a second for each that is not made step by step."""
    if not (folder / "rapt.sqlite3").exists():
        shutil.copytree(Path(_new_data_directory().name) / "data", folder, dirs_exist_ok=True)
    return folder


@contextmanager
def running_service(
    data_directory: Path, *, backbones: Mapping[str, Backbone], settings: Mapping[str, object] | None = None
) -> Iterator[str]:
    """The URL of a service that runs until the end of the block, worker and all."""
    begin_data_directory(data_directory)
    chosen = load_settings(
        {
            "data_directory": data_directory,
            "port": 0,
            "models": tuple(backbones),
            "job_process": False,  # on the models that are loaded here; a process would load them from the disk again
            **(settings or {}),
        }
    )
    ready: Queue = Queue()

    def run() -> None:
        try:
            serve_on(listener, chosen, backbones=backbones, on_ready=lambda server, url: ready.put((server, url, None)))
        except BaseException as error:
            ready.put((None, None, error))

    with listen(chosen) as listener:
        thread = Thread(target=run, name="service")
        thread.start()
        server, url, error = ready.get(timeout=300)
        if error is not None:
            thread.join()
            raise error
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def serve_here(descriptors: int | None, by_command: bool) -> None:
    """Be a service that may open so many descriptors."""
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if by_command:
        sys.argv = ["rapt", "serve"]
        server._GONE_WITHIN = 300.0  # no machine is too busy to end in order
        main()
    else:
        serve(load_settings({}), forks=True)


@contextmanager
def serving_process(
    folder: Path,
    *,
    descriptors: int | None = None,
    by_command: bool = False,
    command: Sequence[str] = (),
    **variables: object,
) -> Iterator[tuple[WarmProcess | subprocess.Popen, str]]:
    """A service in a process of its own, and its URL as a parent finds it; its log is the file `log` in the folder.

    Args:
        folder: Where it keeps all that it has.
        descriptors: How many it may open.
        by_command: Whether `rapt serve` starts it, and not a call of its function.
        command: A command that starts it in a Python of its own.
        variables: Those of its settings, such as `models` for `RAPT_MODELS`.
    """
    ready, log = folder / "ready.json", folder / "log"
    # In float32 the model is there already, in warm processes.
    settings: dict[str, object] = {"models": "bert-tiny", "precision": "float32", "torch_threads": 1, "port": 0}
    settings |= {"data_directory": folder / "data", **variables}
    named = {f"RAPT_{name.upper()}": str(value) for name, value in {**settings, "ready_file": ready}.items()}
    process: WarmProcess | subprocess.Popen
    if command:
        with log.open("ab") as stream:
            process = subprocess.Popen(command, env=os.environ | named, stdout=stream, stderr=stream)
    else:
        process = WarmProcess(serve_here, descriptors, by_command, variables=named, log=log)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, seconds=300)
        assert process.poll() is None, log.read_text()
        found = json.loads(ready.read_text())
        assert found["pid"] == process.pid
        yield process, found["url"]
    finally:
        process.kill()
        process.wait()


def save_privatized(file: PrivatizedFile, path: Path) -> Path:
    """A privatized file on the disk."""
    with write_privatized_file(path, file.manifest, overwrite=True) as writer:
        for record in file.records:
            writer.write(record)
    return path


def wait_until(condition: Callable[[], bool], *, seconds: float = 600.0) -> None:
    """Look again and again until the condition holds, less often the longer that takes.

    The time limit only ends a test that would hang.
    """
    begun, pause = time.monotonic(), Event()
    while not condition():
        if (waited := time.monotonic() - begun) > seconds:
            raise AssertionError(f"the condition did not hold within {seconds} s")
        pause.wait(min(0.1, max(0.02, waited / 20)))
