"""A real service on a free port of loopback, in a thread of the test: nothing between it and the client is faked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event, Thread

from rapt.service.backbone.backbone import Backbone
from rapt.service.http.server import listen, serve_on
from rapt.service.http.settings import load_settings
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_writer import write_privatized_file


@contextmanager
def running_service(
    data_directory: Path, *, backbones: Mapping[str, Backbone], settings: Mapping[str, object] | None = None
) -> Iterator[str]:
    """The URL of a service that runs until the end of the block, worker and all."""
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


SERVE = """
import resource, sys
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_NOFILE, 2 * (int(sys.argv[1]),))
from rapt.service.http.server import serve
from rapt.service.http.settings import load_settings
serve(load_settings({}), forks=True)
"""


@contextmanager
def serving_process(
    folder: Path, *, descriptors: int | None = None, command: Sequence[str] = (), **variables: object
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A service in a process of its own, which may open so many descriptors, and its URL as a parent finds it.

    Its log is the file `log` in the folder. `variables` are those of its settings, such as `models` for `RAPT_MODELS`.
    """
    ready = folder / "ready.json"
    settings = {"data_directory": folder / "data", "port": 0, "models": "bert-tiny", "torch_threads": 1, **variables}
    named = {f"RAPT_{name.upper()}": str(value) for name, value in {**settings, "ready_file": ready}.items()}
    limits = [] if descriptors is None else [str(descriptors)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command or [sys.executable, "-c", SERVE, *limits], env=os.environ | named, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, seconds=300)
        assert process.poll() is None, (folder / "log").read_text()
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
    """Look again and again until the condition holds; the time limit only ends a test that would hang."""
    pause = Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"the condition did not hold within {seconds} s")
