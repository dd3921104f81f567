"""Streams that break off in the middle, as the official client sees them."""

import asyncio
import logging
from contextlib import suppress

import httpx2
import openai
import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect

from rapt.errors import UnavailableError
from rapt.service.http.completion_schemas import Completion, CompletionChoice
from rapt.service.http.middleware import Envelope
from rapt.service.http.routes.event_stream import event_stream

SECRET = "the patient said that it hurts"


async def pieces(error):
    choice = CompletionChoice(index=0, text="good", finish_reason=None)
    yield Completion(id="cmpl-1", created=1, model="m", choices=[choice])
    if error is not None:
        raise error


def what_the_client_reads(error):
    """The texts of a stream that ends with an error, or well, and what the official client raised."""
    app = FastAPI()
    app.add_middleware(Envelope, count=lambda **_: None)

    @app.post("/v1/completions")
    async def complete():
        return event_stream(pieces(error), on_end=lambda: None)

    async def read():
        texts = []
        transport = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), trust_env=False)
        async with openai.AsyncOpenAI(base_url="http://service/v1", api_key="k", http_client=transport) as client:
            try:
                async for chunk in await client.completions.create(model="m", prompt=[1], stream=True):
                    texts.append(chunk.choices[0].text)
            except openai.APIError as raised:
                return texts, raised
        return texts, None

    return asyncio.run(read())


def test_a_stream_that_ends_well_raises_nothing():
    assert what_the_client_reads(None) == (["good"], None)


def test_an_error_of_the_tree_is_raised_by_the_client_after_the_pieces_before_it():
    texts, raised = what_the_client_reads(UnavailableError("the service is stopping; send the request again later"))
    assert texts == ["good"]
    assert raised.message == "the service is stopping; send the request again later"
    assert (raised.code, raised.type) == (UnavailableError.code, "server_error")


def test_an_unforeseen_error_loses_its_message_on_the_wire_and_in_the_log(caplog):
    with caplog.at_level(logging.DEBUG, logger="rapt"):
        texts, raised = what_the_client_reads(ValueError(SECRET))
    assert texts == ["good"]
    assert "ValueError" in raised.message
    failed, answered = caplog.messages
    assert failed.startswith(f"{answered.split()[0]} in its stream failed: ValueError at http/test_event_stream.py:")
    assert failed.startswith("req_")
    assert "patient" not in raised.message + caplog.text


@pytest.mark.parametrize("error", [UnavailableError("no"), ValueError(SECRET)], ids=["foreseen", "unforeseen"])
def test_an_error_has_the_four_fields_of_every_error(error):
    _, raised = what_the_client_reads(error)
    assert set(raised.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("version", ["2.3", "2.4"])
@pytest.mark.parametrize("leaves", ["before", "while it is sent to"])
def test_a_stream_says_that_it_has_ended_to_a_client_that_leaves_early_too(version, leaves):
    ended = []

    async def receive():
        if leaves != "before":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if leaves != "before":
            raise OSError
        await asyncio.sleep(0)

    async def read():
        response = event_stream(pieces(None), on_end=lambda: ended.append(True))
        await response({"type": "http", "asgi": {"spec_version": version}}, receive, send)

    with suppress(OSError, ClientDisconnect, ExceptionGroup):
        asyncio.run(asyncio.wait_for(read(), 60))
    assert ended == [True]
