"""A connection of a client: what is sent again, what is refused, and what no stranger can do to it."""

import json
import re
import socket
import zlib
from threading import Event

import httpx2
import pytest

from client_material import BOTH, METHOD, answering
from rapt.errors import (
    AccessError,
    BusyError,
    LimitError,
    NotFoundError,
    ServiceError,
    UnavailableError,
    UsageError,
)
from rapt.local.client import ServiceClient, connection, model_steps
from running_service import running_service


def busy(*, after, times):
    """A service that is busy so many times, and what it was asked."""
    asked = []

    def answer(path, body):
        asked.append(path)
        if len(asked) <= times:
            return 429, {} if after is None else {"retry-after": after}, b'{"error": {"message": "wait"}}'
        return 200, {}, b'{"object": "list", "data": []}'

    return answer, asked


def lost(*, times, after):
    """A service that answers once, then loses the connection so many times, then answers again with `after`."""
    asked = []

    def answer(path, body):
        asked.append((path, body))
        return None if 1 < len(asked) <= times + 1 else after(path, body)

    return answer, asked


def nothing(path, body):
    return 200, {}, b'{"object": "list", "data": []}'


def in_front(service, *, loses):
    """A proxy to a service that loses the answer, though not the request, of the first so many of a path."""
    seen = []

    def answer(path, body, headers, method):
        response = httpx2.request(method, service + path, content=body, headers=headers, trust_env=False, timeout=60)
        seen.append((method, path))
        if [place for _, place in seen].count(path) <= loses.get(path, 0):
            return None
        kept = {"content-type": response.headers["content-type"]}
        return response.status_code, kept, response.content

    return answer, seen


def files_of(service):
    return httpx2.get(f"{service}/v1/files", trust_env=False).json()["data"]


def jobs_of(service):
    return httpx2.get(f"{service}/v1/fine_tuning/jobs?limit=100", trust_env=False).json()["data"]


def endless(seconds=None):
    while True:
        yield b" " * 65536


@BOTH
def test_what_comes_too_early_is_sent_again(kind):
    answer, asked = busy(after="0", times=4)
    with answering(answer, kind=kind) as connected:
        assert list(connected.models()) == []
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("after", "times"),
    [("0", 5), (None, 1), ("61", 1), ("-1", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)],
)
def test_a_service_that_stays_busy_or_names_no_time_is_not_asked_for_ever(after, times):
    answer, asked = busy(after=after, times=99)
    with answering(answer) as connected, pytest.raises(BusyError, match="busy or a quota is used up: wait"):
        connected.models()
    assert len(asked) == times


@BOTH
def test_a_connection_that_was_there_and_is_lost_is_tried_again_and_a_person_is_told_once(kind):
    answer, asked = lost(times=3, after=nothing)
    told = []
    with answering(answer, patience=30.0, on_retry=told.append, kind=kind) as connected:
        connected.models()
        assert connected.models() == []
    assert len(asked) == 5
    assert told == ["the connection to the service is lost; trying again"]


@BOTH
@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_service_that_is_away_for_a_moment_is_asked_again(kind, status):
    asked = []

    def answer(path, body):
        asked.append(path)
        return (status, {}, b"away") if len(asked) < 3 else nothing(path, body)

    with answering(answer, patience=30.0, kind=kind) as connected:
        assert connected.models() == []
    assert len(asked) == 3


@BOTH
def test_patience_has_an_end(kind):
    with answering(lambda path, body: (503, {}, b""), patience=0.0, kind=kind) as connected:
        with pytest.raises(UnavailableError, match="status=503"):
            connected.models()


@BOTH
def test_what_is_not_harmless_twice_is_not_sent_twice(kind):
    answer, asked = lost(times=1, after=nothing)
    with answering(answer, patience=30.0, kind=kind) as connected:
        connected.models()
        with pytest.raises(UnavailableError):
            connected.cancel_job("ftjob-1")
    assert len(asked) == 2


@BOTH
def test_a_job_and_a_file_whose_answers_were_lost_are_made_once(kind, service, path, tmp_path):
    other = tmp_path / "other.jsonl"
    lines = path.read_bytes()
    other.write_bytes(lines.replace(b"\n", b" " * len(kind.__name__) + b"\n", 1))  # other bytes of the same records
    answer, seen = in_front(service, loses={"/v1/files": 1, "/v1/fine_tuning/jobs": 1})
    with answering(answer, patience=30.0, kind=kind) as connected, ServiceClient(service) as direct:
        connected.models()
        before = len(jobs_of(service)), len(files_of(service))
        uploaded = connected.upload(other)
        job = connected.create_job(file_id=uploaded.id, model="bert-tiny", method=METHOD)
        assert (len(jobs_of(service)), len(files_of(service))) == (before[0] + 1, before[1] + 1)
        direct.wait(job.id)  # and so leaves no work to the tests that follow
    assert seen.count(("POST", "/v1/fine_tuning/jobs")) == 2
    assert seen.count(("POST", "/v1/files")) == 2


def test_a_file_is_uploaded_once(client, service, path):
    first = client.upload(path)
    count = len(files_of(service))
    assert client.upload(path) == first
    assert len(files_of(service)) == count
    client.delete_file(first.id)
    assert client.upload(path).id != first.id  # and again after it was deleted


@BOTH
@pytest.mark.parametrize("status", [200, 400])
def test_an_endless_answer_is_not_read_to_its_end(kind, status, monkeypatch, tmp_path):
    monkeypatch.setattr(connection, "_MOST_JSON", 2**20)
    monkeypatch.setattr(model_steps, "_MOST_OF_A_DESCRIPTION", 2**20)
    with answering(lambda path, body: (status, {}, endless()), kind=kind) as connected:
        for ask in (connected.models, lambda: connected.vocabulary("bert-tiny", tmp_path / "mine")):
            with pytest.raises(ServiceError, match="at most 1,048,576 bytes"):
                ask()
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_an_answer_that_drips_is_not_waited_for_without_end(kind):
    pause = Event()

    def drip():
        while True:
            pause.wait(0.01)
            yield b" "

    with answering(lambda path, body: (200, {}, drip()), timeout=0.3, kind=kind) as connected:
        with pytest.raises(ServiceError, match="end in time"):
            connected.models()


@BOTH
def test_a_compressed_answer_is_not_unpacked(kind):
    bomb = zlib.compress(b" " * 2**20)
    with answering(lambda path, body: (200, {"content-encoding": "deflate"}, bomb), kind=kind) as connected:
        with pytest.raises(ServiceError, match="is it a rapt service"):
            connected.models()


@pytest.mark.parametrize("url", ["http://example.org", "http://192.168.1.7:8420", "http://localhost.example.org"])
def test_a_key_does_not_go_to_another_machine_in_clear(url):
    with pytest.raises(UsageError, match="`insecure=True`") as error:
        ServiceClient(url, api_key="a-key-of-a-tenant")
    assert "a-key" not in str(error.value)
    ServiceClient(url, api_key="a-key-of-a-tenant", insecure=True).close()
    ServiceClient(url).close()  # nothing to read on the way but privatized tokens
    ServiceClient(url.replace("http:", "https:"), api_key="a-key-of-a-tenant").close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"])
def test_a_key_may_stay_on_this_machine_in_clear(url):
    ServiceClient(url, api_key="a-key-of-a-tenant").close()


def test_probabilities_that_are_none_are_not_taken(file):
    for wrong in ("NaN", "1e999", "-1", "2", "9" * 400):
        item = f'{{"label": "a", "label_index": 0, "probabilities": [{wrong}]}}'
        body = f'{{"predictions": [{",".join([item] * len(file.records))}]}}'.encode()
        with answering(lambda path, content, body=body: (200, {}, body)) as connected, pytest.raises(ServiceError):
            connected.classify("ft:x:y:z", file)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, ServiceError),
        (400, ServiceError),
        (401, AccessError),
        (404, NotFoundError),
        (409, ServiceError),
        (413, LimitError),
        (500, ServiceError),
        (503, UnavailableError),
    ],
)
def test_a_refusal_is_an_error_of_the_tree_with_the_reason(status, kind):
    body = json.dumps({"error": {"message": "a rule", "type": "x", "param": None, "code": "y"}}).encode()
    headers = {"location": "http://example.org/"} if status == 302 else {}
    with answering(lambda path, content: (status, headers, body)) as connected:
        with pytest.raises(kind, match=f"status={status}: a rule") as error:
            connected.models()
        assert type(error.value) is kind


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"[]", b"{}", b'{"data": 5}', b'{"data": [5]}', b'{"data": [{"id": 5}]}', b"\xff", b"[" * 100_000],
    ids=lambda content: repr(content[:20]),
)
def test_an_answer_that_is_not_one_of_ours_is_one_clear_line(content):
    with answering(lambda path, body: (200, {}, content)) as connected:
        with pytest.raises(ServiceError, match="is it a rapt service"):
            connected.models()


def test_a_strangers_message_cannot_drive_the_terminal():
    body = json.dumps({"error": {"message": "\x1b[2J\r\n" + "x" * 10_000}}).encode()
    with answering(lambda path, content: (400, {}, body)) as connected, pytest.raises(ServiceError) as error:
        connected.models()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_fewer_predictions_than_records_are_not_taken(file):
    body = json.dumps({"predictions": [{"label": "a", "label_index": 0, "probabilities": [1]}]}).encode()
    with answering(lambda path, content: (200, {}, body)) as connected, pytest.raises(ServiceError):
        connected.classify("ft:x:y:z", file)


def test_a_service_that_is_not_there_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with ServiceClient(f"http://127.0.0.1:{port}") as connected, pytest.raises(UnavailableError, match="is it running"):
        connected.models()


@pytest.mark.parametrize("host", ["[", "a" * 70])
def test_a_host_that_cannot_be_is_unavailable(host):
    with ServiceClient(f"http://{host}:1") as connected, pytest.raises(UnavailableError):
        connected.models()


def test_a_service_that_says_nothing_is_unavailable(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with ServiceClient(url, timeout=0.05) as connected:
            with pytest.raises(UnavailableError, match="ReadTimeout"):
                connected.models()
            with pytest.raises(UnavailableError, match="ReadTimeout"):
                connected.vocabulary("bert-tiny", tmp_path / "mine")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8420", "ftp://host", "http://", "file:///etc/passwd", "\x00"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match=re.escape("such as http://127.0.0.1:8420")):
        ServiceClient(url)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(key):
    with pytest.raises(UsageError, match="API key") as error:
        ServiceClient("http://127.0.0.1:1", api_key=key)
    assert not key or key not in str(error.value)


def test_the_key_opens_the_door(backbones, tmp_path):
    key = "a-key-of-the-provider-for-its-tenant"
    with running_service(tmp_path, backbones=backbones, settings={"admin_key": key}) as url:
        with ServiceClient(url, api_key=key) as connected:
            assert connected.model("bert-tiny").base == "bert-tiny"
        with ServiceClient(url) as connected, pytest.raises(AccessError):
            connected.models()


def test_a_proxy_of_the_environment_does_not_see_what_stays_on_this_machine(service, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with ServiceClient(service) as connected:
            assert connected.model("bert-tiny").id == "bert-tiny"
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_name_cannot_leave_its_place_in_the_path(client):
    for name in ("../files", "a/b", "?x=1", "#", "%2e%2e", "naïve"):
        with pytest.raises(NotFoundError):
            client.model(name)
