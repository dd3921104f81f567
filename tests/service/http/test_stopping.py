"""SIGTERM on a real process: answers end or are 503, streams end with an event, the job keeps its state, all in 8 s."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2

from http_requests import job_body, status_of, upload
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from rapt.wire.manifest import manifest_to_json
from rapt.wire.privatized_file import PrivatizedRecord, seal
from running_service import running_service, wait_until
from tiny_backbones import write_tiny_model
from tuning_material import manifest_for

MOST_SECONDS = 8.0


def test_a_service_that_is_asked_to_stop_ends_what_is_on_its_way(tmp_path, backbones, training_path):
    folder = write_tiny_model("llama", tmp_path / "tiny-llama")
    (writer,) = load_backbones(load_settings({"models": str(folder), "precision": "float32"})).values()
    ids = [int(number) for number in writer.bundle.eligible[:4]]
    # More than is written before the service ends what is on its way.
    manifest = seal(manifest_for(writer, labels=None), 1000 * [PrivatizedRecord(token_ids=tuple(ids))])
    asked = {"model": writer.model, "prompt": 1000 * [ids], "rapt": {"manifest": manifest_to_json(manifest)}}
    environment = os.environ | {
        "RAPT_DATA_DIRECTORY": str(tmp_path / "data"),
        "RAPT_PORT": "0",
        "RAPT_MODELS": f"bert-tiny,{folder}",
        "RAPT_READY_FILE": str(tmp_path / "ready"),
        "RAPT_TORCH_THREADS": "1",
        "RAPT_API_KEY": "a-key-of-a-client-that-is-no-admin",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "rapt", "serve"], env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: (tmp_path / "ready").exists() or process.poll() is not None, seconds=300)
        url = json.loads((tmp_path / "ready").read_text())["url"]
        with httpx2.Client(base_url=url, trust_env=False, timeout=60) as http, ThreadPoolExecutor(3) as threads:
            job = http.post(
                "/v1/fine_tuning/jobs", json=job_body(upload(http, training_path).json()["id"], n_epochs=1000)
            ).json()["id"]
            wait_until(lambda: status_of(http, job) == "running")
            # A body that never ends is on its way for as long as it is waited for.
            waiting = threads.submit(lambda: http.post("/v1/classify", content=endless(process)))
            written = lines_of(http, {**asked, "stream": True, "temperature": 2, "max_tokens": 50})
            head = next(written)
            assert head.startswith("data: {")
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            gone = threads.submit(lambda: (process.wait(timeout=60), time.monotonic() - started))
            lines = [head, *written]
            answer = waiting.result()
            _, seconds = gone.result()
    finally:
        process.kill()
        process.wait()
    assert seconds < MOST_SECONDS
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "unavailable"
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["x-request-id"].startswith("req_")
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "RAPT_API_KEY is the key of a client" in said
    assert "the door is open" in said
    assert "a-key-of-a-client" not in said
    assert not (tmp_path / "ready").exists()
    settings = {"worker_in_service": False}
    with (
        running_service(tmp_path / "data", backbones=backbones, settings=settings) as url,
        httpx2.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        assert status_of(http, job) == "queued"  # to go on from its state


def endless(process):
    """A body whose first piece comes, and the next when the service has gone or its time is over."""
    yield b"{"
    try:
        process.wait(timeout=6)
    except subprocess.TimeoutExpired:
        return


def lines_of(http, asked):
    with http.stream("POST", "/v1/completions", json=asked) as stream:
        yield from filter(None, stream.iter_lines())
