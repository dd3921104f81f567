import asyncio
import os
import re
import resource
from contextlib import ExitStack, contextmanager, suppress

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from http_requests import job_body, upload
from rapt.errors import UsageError
from rapt.service.http.http_errors import add_error_handlers
from rapt.service.http.middleware import Envelope

SECRET = "the patient said that it hurts"


def failing_app():
    app = FastAPI()
    add_error_handlers(app)
    app.add_middleware(Envelope, count=lambda method, route, status, seconds: None)

    @app.get("/before")
    def before() -> None:
        raise RuntimeError(SECRET)

    @app.get("/during")
    def during() -> StreamingResponse:
        def pieces():
            yield b"a"
            raise RuntimeError(SECRET)

        return StreamingResponse(pieces())

    @app.get("/descriptors/{way}")
    def without_descriptors(way: str) -> StreamingResponse:
        def pieces():
            with open(os.devnull):
                yield b"a"

        if way == "later":
            return StreamingResponse(pieces())
        try:
            return open(os.devnull)
        except OSError as error:
            if way == "hidden":
                raise RuntimeError(SECRET) from error
            if way == "blamed":
                raise UsageError("the file must be another") from None
            raise

    return app


@contextmanager
def no_descriptor_left():
    """Within the block this process can open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 64, before[1]))
            with suppress(OSError):
                while True:
                    stack.enter_context(open(os.devnull))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def ask(path):
    async def send():
        transport = httpx2.ASGITransport(app=failing_app(), raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get(path)

    return asyncio.run(send())


def test_an_error_that_nobody_foresaw_is_a_500_with_its_class_and_an_id(caplog):
    response = ask("/before")
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "internal_error", None)
    assert "RuntimeError" in error["message"]
    request_id = response.headers["x-request-id"]
    failed = next(line for line in caplog.messages if "failed" in line)
    assert re.match(rf"{request_id} failed: RuntimeError at (\S+/)?http/test_middleware\.py:", failed)
    assert "patient" not in response.text + caplog.text


def test_an_error_in_the_middle_of_an_answer_ends_it_unfinished_and_is_not_the_servers_to_log(caplog):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "GET",
        "path": "/during",
        "query_string": b"",
        "headers": [],
    }
    asyncio.run(failing_app()(scope, receive, send))  # does not raise: a server would log what was raised
    assert [message.get("status", message.get("body")) for message in sent] == [200, b"a"]
    assert sent[-1]["more_body"]
    assert "patient" not in caplog.text


def check_that_it_may_come_again(response):
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) >= 1
    assert "x-should-retry" not in response.headers
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("unavailable", "server_error")
    assert "patient" not in response.text


@pytest.mark.parametrize("way", ["plain", "hidden", "blamed", "later"])
def test_what_fails_for_want_of_a_descriptor_may_come_again(way, caplog):
    async def send():
        transport = httpx2.ASGITransport(app=failing_app(), raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            assert (await client.get("/before")).status_code == 500  # all that it needs is open by now
            with no_descriptor_left():
                return await client.get(f"/descriptors/{way}")

    response = asyncio.run(send())
    check_that_it_may_come_again(response)
    assert f"{response.headers['x-request-id']} found no free file descriptor" in caplog.text
    assert "patient" not in caplog.text


def test_no_answer_sends_a_client_elsewhere(http):
    """Behind a proxy that ends TLS, a redirection led to http://, and a client that follows it sends its key there."""
    for path in ("/v1/files/", "/v1/classify/", "/v1/models/"):
        for method in ("GET", "POST"):
            assert http.request(method, path, headers={"host": "localhost"}).status_code == 404


@pytest.mark.parametrize("collection", ["files", "models", "fine_tuning/jobs", "pools"])
def test_an_id_with_slashes_is_answered_as_one_that_nothing_has(http, collection):
    for id_ in ("..%2Fx", "a%2Fb%2Fc", "%2e%2e/x"):
        answer = http.get(f"/v1/{collection}/{id_}")
        assert answer.status_code == 404
        found = answer.json()["error"]
        assert found["code"] == http.get(f"/v1/{collection}/none").json()["error"]["code"]
        assert found["message"].startswith("no such object among the ")
        assert "list them" in found["message"]


@pytest.mark.parametrize("asked", ["bytes=x", "bytes=999999999-", "items=0-1", "bytes=0-0", "bytes=0-,0-,5-"])
def test_whatever_range_is_asked_for_a_vocabulary_is_whole(http, asked):
    path = "/v1/vocabularies/bert-tiny/tokenizer.json"
    whole = http.get(path)
    answer = http.get(path, headers={"range": asked})
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "bytes")
    assert answer.content == whole.content


def test_the_rest_of_a_vocabulary_is_had_as_long_as_it_is_the_same(http):
    path = "/v1/vocabularies/bert-tiny/embeddings.safetensors"
    whole = http.get(path)
    headers = {"range": "bytes=1000-", "if-range": whole.headers["etag"]}
    rest = http.get(path, headers=headers)
    assert (rest.status_code, rest.content) == (206, whole.content[1000:])
    assert rest.headers["content-range"] == f"bytes 1000-{len(whole.content) - 1}/{len(whole.content)}"
    other = http.get(path, headers=headers | {"if-range": '"another"'})
    assert (other.status_code, other.content) == (200, whole.content)


def test_a_service_without_a_free_descriptor_answers_or_says_when_to_come_again(service, http, training_path):
    file = upload(http, training_path).json()["id"]
    content = training_path.read_bytes()
    paths = (f"/v1/files/{file}/content", "/v1/vocabularies/bert-tiny/tokenizer.json", "/v1/files", "/readyz")

    def send():
        yield http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("f", content)})
        yield http.post("/v1/fine_tuning/jobs", json=job_body(file, n_epochs=1))
        yield from map(http.get, paths)

    assert http.get("/healthz").status_code == 200  # the connection is open
    with no_descriptor_left():
        answers = list(send())
    for answer in answers:
        if answer.status_code != 200:
            check_that_it_may_come_again(answer)
    assert [answer.status_code for answer in answers[:1] + answers[2:4]] == [503, 503, 503]
    assert {http.get(path).status_code for path in paths} == {200}
