"""Every message is released once: in a chat that resends its history, after a restart, among hundreds at once."""

import asyncio
import json
import sqlite3
from dataclasses import replace
from threading import Event

import httpx2
import pytest

from http_requests import open_client
from rapt.errors import CorpusError
from rapt.gateway.releases import describe_queries, open_releases
from rapt.local.ledger import open_ledger
from rapt.local.records import Chunk
from running_gateway import KEY, running_gateway
from strange_service import answering

TURNS = ("it hurts in my knee since the accident", "where exactly", "on the left side", "rest", "thank you")


@pytest.fixture
def recording(reader_privatizer):
    """A service that answers every chat with one word, and the bodies that it got."""
    bodies = []
    model = {"id": "m", "rapt": {"base": "m", "max_tokens": 64, "vocabulary_hash": reader_privatizer.vocabulary_hash}}
    said = {"choices": [{"message": {"role": "assistant", "content": "well"}}]}

    def answer(path, body):
        if path.startswith("/v1/models"):
            return 200, {}, json.dumps({"data": [model]}).encode()
        bodies.append(json.loads(body))
        return 200, {}, json.dumps(said).encode()

    with answering(answer) as url:
        yield url, bodies


def chat(client, turns):
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": turn} for place, turn in enumerate(turns)]
    answer = client.post("/chat/completions", json={"model": "m", "messages": messages})
    assert answer.status_code == 200, answer.text


def client_of(url):
    return open_client(url, headers={"authorization": f"Bearer {KEY}"})


def test_a_chat_that_resends_its_history_sends_each_message_as_it_left_at_first_also_after_a_restart(
    recording, reader_privatizer, tmp_path
):
    service, bodies = recording
    ledger = tmp_path / "ledger.sqlite"
    for turns in ((1, 3), (3, 5)):  # a gateway each
        with running_gateway(service, reader_privatizer, ledger=ledger) as url, client_of(url) as client:
            for count in turns:
                chat(client, TURNS[:count])
    sent = [[message["content"][0]["token_ids"] for message in body["messages"]] for body in bodies]
    assert [len(one) for one in sent] == [1, 3, 3, 5]
    assert all(one == sent[-1][: len(one)] for one in sent)
    assert [len(body["rapt"]["earlier"]) for body in bodies] == [0, 2, 2, 4]
    with sqlite3.connect(ledger) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM entries WHERE kind = 'metric'").fetchone()
    connection.close()
    assert rows == len(TURNS)
    content = ledger.read_bytes()
    assert not [word for word in ("hurts", "knee", "accident", "exactly") if word.encode() in content]


def test_hundreds_of_requests_at_once_are_answered_and_each_text_is_released_once(service, writer_privatizer, tmp_path):
    ledger = tmp_path / "ledger.sqlite"

    async def ask_all(url):
        async with httpx2.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {KEY}"},
            limits=httpx2.Limits(max_connections=250),
            timeout=120,
            trust_env=False,
            verify=False,
        ) as client:
            asked = [{"model": "talker", "prompt": f"it {number % 50}", "max_tokens": 1} for number in range(200)]
            return await asyncio.gather(*(client.post("/completions", json=body) for body in asked))

    with running_gateway(service, writer_privatizer, ledger=ledger) as url:
        answers = asyncio.run(ask_all(url))
    assert {answer.status_code for answer in answers} == {200}
    with open_ledger(ledger) as account:
        rows, _ = account.head()
    assert rows == 50


def test_a_text_that_cannot_be_released_fails_its_own_request_and_no_other(reader_privatizer, tmp_path):
    async def release_all(releases):
        setting = describe_queries(releases, reader_privatizer)
        texts = ("it hurts", "", "in the knee")
        asked = [releases.release(Chunk(0, [text], None), setting) for text in texts]
        return await asyncio.gather(*asked, return_exceptions=True)

    with open_releases(reader_privatizer, lambda: open_ledger(tmp_path / "ledger.sqlite")) as releases:
        first, second, third = asyncio.run(release_all(releases))
    assert isinstance(second, CorpusError)
    assert (len(first), len(third)) == (1, 1)


def test_what_nobody_foresaw_ends_no_thread_on_which_later_texts_wait(reader_privatizer, tmp_path):
    class Failing:
        setting, distances = reader_privatizer.mechanism.setting, reader_privatizer.mechanism.distances

        def privatize(self, token_ids, *, rng):
            raise LookupError

    async def release_all(releases):
        setting = describe_queries(releases, replace(reader_privatizer, mechanism=Failing()))
        # The ledger is held until all of them wait, so that they are joined.
        held = Event()
        asked = [releases.ask(lambda _ledger: held.wait())]
        asked += [releases.release(Chunk(0, [text], None), setting) for text in ("it hurts", "in the knee")]
        waiting = asyncio.gather(*asked, return_exceptions=True)
        asyncio.get_running_loop().call_soon(held.set)
        found = await waiting
        return found, await asyncio.wait_for(releases.ask(lambda ledger: ledger.head()), 60)

    with open_releases(reader_privatizer, lambda: open_ledger(tmp_path / "ledger.sqlite")) as releases:
        (_, *found), (rows, _) = asyncio.run(release_all(releases))
    assert [type(error) for error in found] == [LookupError] * 2
    assert rows == 0


def test_a_ledger_that_cannot_be_opened_is_an_error_at_the_start(reader_privatizer, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"SQLite format 3\0 and no more")
    with (
        pytest.raises(Exception, match="must be a file that rapt wrote"),
        open_releases(reader_privatizer, lambda: open_ledger(tmp_path / "ledger.sqlite")),
    ):
        pass
