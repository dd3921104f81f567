"""Pieces of answers: tokens become text, and values become events that OpenAI's clients read."""

import asyncio
import logging
import re
from contextlib import suppress

import httpx2
import openai
import pytest
import tokenizers
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from tokenizers import decoders, models

from rapt.errors import UnavailableError
from rapt.service.answers.generation import Choice
from rapt.service.answers.writing import Written
from rapt.service.http.completion_schemas import Completion, CompletionChoice
from rapt.service.http.middleware import Envelope
from rapt.service.http.routes.pieces import Spelling, stream_events

SECRET = "the patient said that it hurts"


@pytest.fixture(scope="module")
def letters():
    """A tokenizer whose tokens are these pieces as they are."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


PIECES = ["a", "b", "ab", "aba", "abab", " ", "c"]


def pieces_of(tokenizer, words, stops, *, finish="length"):
    """What is told of an answer of these pieces, up to where the listener has enough."""
    told = []
    spelling = Spelling(tokenizer, index=3, tell=told.append, stops=stops)
    for number, word in enumerate(words):
        written = Written(
            choice=Choice(token_id=PIECES.index(word), logprob=-1.0),
            finish=finish if number == len(words) - 1 else None,
        )
        if spelling(written):
            break
    return told


def expected(text, stops):
    """The naive twin: the text before the first stop in it."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


@pytest.mark.parametrize("stops", [["c"], ["bab"], ["abc", "aa"], ["b c", "ba"], [" "], ["of-no-text"], []], ids=str)
@pytest.mark.parametrize(
    "words",
    [["a", "b", "a", "b", "c"], ["abab", "c"], ["ab", "ab", " ", "c"], ["aba", "aba", "a"], ["a", "b", "ab"]],
    ids="".join,
)
def test_an_answer_is_its_text_before_the_first_stop_however_it_is_cut(letters, words, stops):
    told = pieces_of(letters, words, stops)
    text = "".join(words)
    assert "".join(piece.text for piece in told) == expected(text, stops)
    assert told[-1].finish == ("stop" if expected(text, stops) != text else "length")
    assert [piece.finish for piece in told[:-1]] == [None] * (len(told) - 1)
    assert {piece.index for piece in told} == {3}


def test_nothing_is_told_of_a_stop_that_has_begun_and_all_of_one_that_was_none(letters):
    told = pieces_of(letters, ["a", "b", "a", "c"], ["abab"])
    assert [piece.text for piece in told] == ["", "", "", "abac"]


def test_an_error_is_told_and_ends_the_answer(letters):
    told = []
    error = RuntimeError("a pass failed")
    assert Spelling(letters, index=0, tell=told.append)(Written(error=error)) is True
    assert told == [error]


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
        return stream_events(pieces(error), on_end=lambda: None)

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
    assert re.match(rf"{answered.split()[0]} in its stream failed: ValueError at (\S+/)?http/test_pieces\.py:", failed)
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
        response = stream_events(pieces(None), on_end=lambda: ended.append(True))
        await response({"type": "http", "asgi": {"spec_version": version}}, receive, send)

    with suppress(OSError, ClientDisconnect, ExceptionGroup):
        asyncio.run(asyncio.wait_for(read(), 60))
    assert ended == [True]
