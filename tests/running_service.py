"""A real service on a free port of loopback, in a thread of the test: nothing between it and the client is faked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
        server, url, error = ready.get(timeout=60)
        if error is not None:
            thread.join()
            raise error
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def save_privatized(file: PrivatizedFile, path: Path) -> Path:
    """A privatized file on the disk."""
    with write_privatized_file(path, file.manifest, overwrite=True) as writer:
        for record in file.records:
            writer.write(record)
    return path


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Look again and again until the condition holds; the time limit only ends a test that would hang."""
    pause = Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"the condition did not hold within {seconds} s")
