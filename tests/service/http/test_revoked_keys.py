"""A key that is revoked while it is being answered: the answer ends, and does not look as if it were whole."""

import asyncio
import json

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from rapt.service.http import door
from rapt.service.http.completion_schemas import Completion, CompletionChoice
from rapt.service.http.door import Door
from rapt.service.http.routes.event_stream import event_stream
from rapt.service.http.settings import load_settings
from rapt.service.storage.callers import OPERATOR
from rapt.service.storage.key_rows import create_key, revoke_key
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tenant_rows import Quotas, create_tenant

PIECE = Completion(
    id="cmpl-1", created=1, model="m", choices=[CompletionChoice(index=0, text="good", finish_reason=None)]
)
MANY = 50


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """Messages of the answer to a route, whose key is revoked after a number of pieces."""
    monkeypatch.setattr(door, "_BETWEEN_LOOKS", 0.0)
    with open_store(tmp_path) as store:
        create_tenant(store, "ada", quotas=Quotas(), caller=OPERATOR, now=1)
        key, value = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=1)

        def ask(path, revoked_after):
            ended, messages = [], []
            app = FastAPI()

            async def pieces(piece):
                for made in range(MANY):
                    if made == revoked_after:
                        revoke_key(store, key.id, caller=OPERATOR, now=2)
                    yield piece

            @app.get("/events")
            async def events():
                return event_stream(pieces(PIECE), on_end=lambda: ended.append(True))

            @app.get("/bytes")
            async def content():
                return StreamingResponse(pieces(b"0123"), headers={"content-length": str(4 * MANY)})

            async def receive():
                await asyncio.Event().wait()

            async def send(message):
                messages.append(message)

            headers = [(b"authorization", f"Bearer {value}".encode()), (b"host", b"127.0.0.1")]
            scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "http_version": "1.1", "method": "GET"}
            scope |= {
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "headers": headers,
                "scheme": "http",
            }
            asyncio.run(Door(app, settings=load_settings({}), store=store)(scope, receive, send))
            return messages, ended

        yield ask


def test_a_stream_whose_key_is_revoked_ends_with_an_event_that_says_so(answered):
    messages, ended = answered("/events", 3)
    body = b"".join(message.get("body", b"") for message in messages).decode()
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert len(events) == 3 + 2
    assert [json.loads(event)["choices"][0]["text"] for event in events[:3]] == ["good"] * 3
    assert json.loads(events[3])["error"]["code"] == "invalid_api_key"
    assert events[4] == "[DONE]"
    assert messages[-1]["more_body"] is False
    assert ended == [True]  # nothing more is computed for it


def test_bytes_whose_key_is_revoked_are_cut_off_before_their_end(answered):
    messages, _ = answered("/bytes", 3)
    assert b"".join(message.get("body", b"") for message in messages) == b"0123" * 3
    assert messages[-1]["more_body"] is True


@pytest.mark.parametrize("path", ["/events", "/bytes"])
def test_an_answer_whose_key_stays_good_is_whole(answered, path):
    messages, _ = answered(path, None)
    assert messages[-1]["more_body"] is False
    body = b"".join(message.get("body", b"") for message in messages)
    assert body.count(b"good") == MANY if path == "/events" else body == b"0123" * MANY
