"""Programs of this machine with the key come in; pages, proxies, other names of this machine and others do not."""

import json
from dataclasses import replace

import pytest

from http_requests import open_client
from rapt.errors import UsageError
from rapt.gateway.door import make_program_key
from rapt.gateway.server import listen
from running_gateway import KEY, running_gateway
from strange_service import answering


@pytest.fixture(scope="module")
def url(reader_privatizer, tmp_path_factory):
    ledger = tmp_path_factory.mktemp("door") / "ledger.sqlite"
    with (
        answering(lambda path, body: (200, {}, b'{"data": []}')) as service,
        running_gateway(service, reader_privatizer, ledger=ledger) as found,
    ):
        yield found


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "same-origin"}, 200),
        ({"authorization": "Bearer " + "x" * 43}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": ""}, 401),
        ({"host": "rebound.example:{port}"}, 403),
        ({"host": "127.0.0.1.rebound.example"}, 403),
        ({"host": "localhost:{port}"}, 200),
        ({"origin": "http://rebound.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"x-forwarded-for": "10.0.0.1"}, 403),
        ({"forwarded": "for=10.0.0.1"}, 403),
        ({"cf-connecting-ip": "10.0.0.1"}, 403),
        ({"content-encoding": "gzip"}, 400),
    ],
    ids=str,
)
def test_who_may_come_in(url, headers, status):
    port = url.removesuffix("/v1").rpartition(":")[2]
    headers = {name: value.format(port=port) for name, value in headers.items()}
    with open_client(url, headers={"authorization": f"Bearer {KEY}", **headers}) as client:
        answer = client.get("/models")
    assert answer.status_code == status
    if status != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "\n" not in error["message"]
        assert "rebound" not in answer.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", 400),
        (b'"' + b"x" * (5 * 2**20) + b'"', 413),
    ],
    ids=["half", "deep", "deeper", "large"],
)
def test_a_body_is_bounded_in_size_and_depth(url, content, status):
    with open_client(url, headers={"authorization": f"Bearer {KEY}"}) as client:
        answer = client.post("/completions", content=content)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


def test_routes_that_are_not_there_are_404_and_name_nothing_of_the_request(url):
    with open_client(url.removesuffix("/v1"), headers={"authorization": f"Bearer {KEY}"}) as client:
        answers = [client.get("/v1/secret"), client.post("/v1/embeddings", json={"input": "secret"})]
        wrong = client.put("/v1/models")
    assert [answer.status_code for answer in answers] == [404, 404]
    assert wrong.status_code == 405
    assert not [answer for answer in answers if "secret" in answer.text]


class Failing:
    """A mechanism that fails as nobody foresaw."""

    def __init__(self, mechanism):
        self.setting, self.distances = mechanism.setting, mechanism.distances

    def privatize(self, token_ids, *, rng):
        raise LookupError("the patient's name is Ada")


def test_what_nobody_foresaw_is_in_the_log_by_its_class_alone(reader_privatizer, tmp_path, caplog, capfd):
    failing = replace(reader_privatizer, mechanism=Failing(reader_privatizer.mechanism))
    model = {"id": "m", "rapt": {"base": "m", "max_tokens": 64, "vocabulary_hash": failing.vocabulary_hash}}
    with (
        answering(lambda path, body: (200, {}, json.dumps({"data": [model]}).encode())) as service,
        running_gateway(service, failing, ledger=tmp_path / "ledger.sqlite") as found,
        open_client(found, headers={"authorization": f"Bearer {KEY}"}) as client,
    ):
        answer = client.post("/completions", json={"model": "m", "prompt": "Ada is ill"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    told = caplog.text + capfd.readouterr().err
    assert "unforeseen LookupError" in told
    assert "Ada" not in told + answer.text


def test_the_key_is_made_once_for_its_owner_alone_and_kept(tmp_path):
    path = tmp_path / "gateway.key"
    key = make_program_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (make_program_key(path), len(key)) == (key, 43)
    assert make_program_key(tmp_path / "other.key") != key
    path.chmod(0o644)
    with pytest.raises(UsageError, match="mode=644") as error:
        make_program_key(path)
    assert key not in str(error.value)
    path.chmod(0o600)
    path.write_text("secret\n")
    with pytest.raises(UsageError, match="one that the gateway made"):
        make_program_key(path)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "example.org", ""])
def test_nothing_but_loopback_is_listened_on(host):
    with pytest.raises(UsageError, match="this machine alone"), listen(host, 0):
        pass
