"""The serving process from outside: started, killed, started again, stopped."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from rapt.errors import UsageError
from rapt.local.client import ServiceClient
from rapt.service.http.server import listen, serve, url_of
from rapt.service.http.settings import load_settings
from rapt.service.storage.recovery import open_store
from running_service import running_service, wait_until

SERVE = """
from rapt.service.http.server import serve
from rapt.service.http.settings import load_settings

serve(load_settings({}))
"""


@contextmanager
def serving_process(folder):
    """A service in a process of its own, and its URL as a parent finds it."""
    ready = folder / "ready.json"
    settings = {
        "RAPT_DATA_DIRECTORY": folder / "data",
        "RAPT_PORT": 0,
        "RAPT_MODELS": "bert-tiny",
        "RAPT_READY_FILE": ready,
        "RAPT_TORCH_THREADS": 1,
    }
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, seconds=300)
        assert process.poll() is None, (folder / "log").read_text()
        found = json.loads(ready.read_text())
        assert found["pid"] == process.pid
        yield process, found["url"]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def own_logging():
    """Serving sets up the logs of the process; they are put back afterwards."""
    loggers = [logging.getLogger(name) for name in ("rapt", "uvicorn")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


def method(epochs):
    values = {"num_virtual_tokens": 4, "n_epochs": epochs, "batch_size": 16}
    return {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": values}}


def test_a_service_that_is_killed_loses_nothing(tmp_path, backbones, training_path):
    with serving_process(tmp_path) as (process, url), ServiceClient(url) as client:
        file = client.upload(training_path)
        job = client.create_job(file_id=file.id, model="bert-tiny", method=method(20), seed=2)
        wait_until(lambda: any(event.type == "metrics" for event in client.events(job.id)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert str(training_path) not in log
    with running_service(tmp_path / "data", backbones=backbones) as url, ServiceClient(url) as client:
        seen = []
        done = client.wait(job.id, on_event=lambda event: seen.append(event.message))
        assert done.status == "succeeded"
        assert any(message.startswith("the process that ran the job died: its worker was killed") for message in seen)
        assert client.model(done.fine_tuned_model).card.plain_tokens == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_asked_to_stop_leaves_in_order(tmp_path, number, own_logging):
    answered = []

    def stop(url):
        answered.append((url, json.loads(settings.ready_file.read_text())))
        os.kill(os.getpid(), number)

    settings = load_settings(
        {"data_directory": tmp_path / "data", "port": 0, "models": "bert-tiny", "ready_file": tmp_path / "ready"}
    )
    serve(settings, on_ready=stop)  # returns: it would end the test run otherwise
    url, found = answered[0]
    assert found == {"url": url, "pid": os.getpid()}
    assert not settings.ready_file.exists()
    with open_store(settings.data_directory):
        pass  # nobody holds it any more


def test_a_port_that_is_taken_is_one_clear_line():
    with listen(load_settings({"port": 0})) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"port={port}; choose another"):
            listen(load_settings({"port": port}))


def test_an_answer_is_not_kept_back_until_its_first_half_is_confirmed():
    """Found by measuring: every answer was 40 ms late, because its body waited for the client to confirm its head."""
    with listen(load_settings({"port": 0})) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_url_has_the_port_that_was_free():
    with listen(load_settings({"port": 0})) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_two_services_do_not_share_a_data_directory(backbones, tmp_path):
    with (
        running_service(tmp_path, backbones=backbones),
        pytest.raises(UsageError, match="one service only"),
        running_service(tmp_path, backbones=backbones),
    ):
        pass
