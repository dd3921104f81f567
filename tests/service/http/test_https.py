"""The whole way over TLS, with a certificate that is made here."""

import os
import shutil
import ssl
import subprocess
import sys

import httpx2
import pytest

from http_requests import done_job, job_body, upload
from rapt.errors import UnavailableError, UsageError
from rapt.local.client import ServiceClient
from rapt.wire.privatized_file import query_to_json, without_labels
from running_service import running_service

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")


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
        body = {"model": model, **query_to_json(without_labels(training_file))}
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
