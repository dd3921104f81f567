import asyncio
import re

import httpx2
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

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

    return app


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
