"""The serving process: how it begins, what it serves over TLS, and how it stops in order and in time."""

import json
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from http_requests import ENDLESS, done_job, job_body, open_client, status_of, upload
from rapt.errors import UnavailableError, UsageError
from rapt.local.client import ServiceClient
from rapt.service.http import server
from rapt.service.http.assembly import load_backbones
from rapt.service.http.server import listen, make_service_url, serve, stop_at_signals, work
from rapt.service.http.settings import load_settings
from rapt.service.storage.recovery import open_store
from rapt.wire.manifest import dump_manifest
from rapt.wire.privatized_file import PrivatizedRecord, dump_query, remove_labels, seal_manifest
from running_service import running_service, serving_process, wait_until
from tiny_backbones import write_tiny_model
from tuning_material import manifest_for

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")


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


@pytest.mark.slow  # test_crash.py kills services and workers, test_tuning_process.py the processes of jobs
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_service_that_is_asked_to_stop_leaves_in_order(tmp_path, number, own_logging):
    answered, before_hang_up = [], signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored

    def stop(url):
        answered.append((url, json.loads(settings.ready_file.read_text()), sys.getswitchinterval()))
        os.kill(os.getpid(), number)

    settings = load_settings(
        {"data_directory": tmp_path / "data", "port": 0, "models": "bert-tiny", "ready_file": tmp_path / "ready"}
    )
    before = sys.getswitchinterval()
    serve(settings, on_ready=stop)  # returns: it would end the test run otherwise
    url, found, turn = answered[0]
    assert found == {"url": url, "pid": os.getpid()}
    assert turn == pytest.approx(0.0005)  # a thread that checks a body does not hold up every answer for 5 ms
    assert sys.getswitchinterval() == before
    assert signal.signal(signal.SIGHUP, before_hang_up) is signal.SIG_DFL
    assert not settings.ready_file.exists()
    with open_store(settings.data_directory):
        pass  # nobody holds it any more


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_breaks_off_neither_the_handler_of_the_first_nor_the_end(number, monkeypatch):
    starting, before = threading.Thread.start.__code__, set(threading.enumerate())
    begun, ended = [], []

    def trace(frame, event, _argument):
        if event == "line":  # in the middle of the handler, while it starts a thread
            sys.settrace(None)
            frame.f_trace = None
            signal.raise_signal(number)
        return trace if frame.f_code is starting else None

    monkeypatch.setattr(server, "_GONE_WITHIN", 300.0)  # else a machine that is busy ends the tests themselves
    # Two starts of one thread end in a `KeyError` of `threading`, which tells nobody but this.
    monkeypatch.setattr(sys, "unraisablehook", ended.append)
    traced = sys.gettrace()
    with stop_at_signals():
        sys.settrace(trace)
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            sys.settrace(traced)
            signal.raise_signal(number)  # while the end puts things in order
            begun.extend(set(threading.enumerate()) - before)
            ended.append("in order")
    for thread in begun:
        thread.join()
    assert (len(begun), ended) == (1, ["in order"])


def test_a_worker_in_a_folder_without_a_service_is_refused_and_makes_nothing(tmp_path, own_logging):
    settings = load_settings({"data_directory": tmp_path / "wrong", "models": "bert-tiny"})
    with pytest.raises(UsageError, match="must be that of a service; start `rapt serve` first") as refused:
        work(settings)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


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
        assert make_service_url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_two_services_do_not_share_a_data_directory(backbones, tmp_path):
    with (
        running_service(tmp_path, backbones=backbones),
        pytest.raises(UsageError, match="one service only"),
        running_service(tmp_path, backbones=backbones),
    ):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key, which nobody but who is told trusts."""
    folder = tmp_path_factory.mktemp("tls")
    key, made = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", made], check=True, capture_output=True)
    return {"tls_cert": made, "tls_key": key}


@pytest.fixture(scope="module")
def url(backbones, certificate, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones, settings=certificate) as found:
        yield found


def test_a_file_goes_in_and_a_prediction_comes_out_over_tls(url, certificate, training_path, training_file):
    assert url.startswith("https://127.0.0.1:")
    trusted = ssl.create_default_context(cafile=certificate["tls_cert"])
    with httpx2.Client(base_url=url, verify=trusted, trust_env=False, timeout=60) as http:
        file = upload(http, training_path).json()["id"]
        assert http.get(f"/v1/files/{file}/content").content == training_path.read_bytes()
        model = done_job(http, job_body(file, n_epochs=1))["fine_tuned_model"]
        body = {"model": model, **dump_query(remove_labels(training_file))}
        answer = http.post("/v1/classify", json=body)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["predictions"]) == len(training_file.records)


def test_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_sent(url, training_path):
    with ServiceClient(url) as client, pytest.raises(UnavailableError):
        client.upload(training_path)


def test_who_vouches_for_the_service_is_named_by_a_file(url, certificate, training_path):
    with ServiceClient(url, ca_file=certificate["tls_cert"]) as client:
        assert client.upload(training_path).records == 64


def test_who_vouches_for_the_service_is_named_by_the_usual_variable(url, certificate, training_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate["tls_cert"]))
    with ServiceClient(url) as client:
        assert client.upload(training_path).records == 64


def test_the_commands_take_the_file_as_an_option_and_from_the_environment(url, certificate, tmp_path):
    fetch = [sys.executable, "-m", "rapt", "vocabulary", "fetch", "--service", url, "--model", "bert-tiny"]
    named = {**os.environ, "RAPT_CA_FILE": str(certificate["tls_cert"])}
    for number, (arguments, environment, code) in enumerate(
        ([["--ca-file", certificate["tls_cert"]], None, 0], [[], named, 0], [[], None, UnavailableError.exit_code])
    ):
        done = subprocess.run([*fetch, tmp_path / str(number), *arguments], env=environment, capture_output=True)
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_vouches_for_nobody_is_one_clear_line(url, content, tmp_path):
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(UsageError, match="the CA file must hold certificates in PEM"):
        ServiceClient(url, ca_file=tmp_path / "ca.pem")


def test_plain_http_gets_no_answer_where_tls_is_served(url):
    with httpx2.Client(base_url=url.replace("https", "http"), trust_env=False) as http:
        with pytest.raises(httpx2.HTTPError):
            http.get("/healthz")


def test_a_key_that_is_not_of_the_certificate_is_one_clear_line(backbones, certificate, tmp_path):
    halves = {**certificate, "tls_key": certificate["tls_cert"]}
    with pytest.raises(UsageError, match="must be a readable certificate and its key"):
        with running_service(tmp_path, backbones=backbones, settings=halves):
            pass


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o622])
def test_a_private_key_that_others_may_read_is_refused(backbones, certificate, tmp_path, mode):
    key = tmp_path / "key.pem"
    key.write_bytes(certificate["tls_key"].read_bytes())
    key.chmod(mode)
    with (
        pytest.raises(UsageError, match="tls_key must be readable by its owner only"),
        running_service(tmp_path / "data", backbones=backbones, settings={**certificate, "tls_key": key}),
    ):
        pass


def test_a_service_that_is_asked_to_stop_ends_what_is_on_its_way(tmp_path, backbones, training_path):
    folder = write_tiny_model("llama", tmp_path / "tiny-llama")
    (writer,) = load_backbones(load_settings({"models": str(folder), "precision": "float32"})).values()
    ids = [int(number) for number in writer.bundle.eligible[:4]]
    # More than is written before the service ends what is on its way.
    manifest = seal_manifest(manifest_for(writer, labels=None), 1000 * [PrivatizedRecord(token_ids=tuple(ids))])
    asked = {"model": writer.model, "prompt": 1000 * [ids], "rapt": {"manifest": dump_manifest(manifest)}}
    variables = {"models": f"bert-tiny,{folder}", "api_key": "a-key-of-a-client-that-is-no-admin"}
    with serving_process(tmp_path, by_command=True, **variables) as (process, url):
        with open_client(url) as http, ThreadPoolExecutor(3) as threads:
            job = http.post(
                "/v1/fine_tuning/jobs", json=job_body(upload(http, training_path).json()["id"], **ENDLESS)
            ).json()["id"]
            wait_until(lambda: status_of(http, job) == "running")
            assert sys.platform != "linux" or "rapt-forks" in names_of_children(process.pid)
            # A body that never ends is on its way for as long as it is waited for.
            waiting = threads.submit(lambda: http.post("/v1/classify", content=endless(process)))
            written = lines_of(http, {**asked, "stream": True, "temperature": 2, "max_tokens": 50})
            head = next(written)
            assert head.startswith("data: {")
            process.send_signal(signal.SIGTERM)
            lines = [head, *written]
            answer = waiting.result()  # 400 from a service that waits for the end of the body
            assert process.wait(timeout=300) == 0
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "unavailable"
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["x-request-id"].startswith("req_")
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "RAPT_API_KEY is the key of a client" in said
    assert "the door is open" in said
    assert "a-key-of-a-client" not in said
    assert not (tmp_path / "ready.json").exists()
    settings = {"worker_in_service": False}
    with (
        running_service(tmp_path / "data", backbones=backbones, settings=settings) as url,
        open_client(url) as http,
    ):
        assert status_of(http, job) == "queued"  # to go on from its state


def names_of_children(pid):
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            name, _, state = place.read_text().partition("(")[2].rpartition(")")
            found += [name] if int(state.split()[1]) == pid else []
    return found


def endless(process):
    """A body whose first piece comes, and the next when the service has gone or its time is over."""
    yield b"{"
    try:
        process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        return


def lines_of(http, asked):
    with http.stream("POST", "/v1/completions", json=asked) as stream:
        yield from filter(None, stream.iter_lines())
