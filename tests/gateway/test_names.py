"""Names under a policy: they do not leave, and stand in the answer again, whole or streamed, as ids and as words."""

import asyncio
import json
from contextlib import contextmanager
from queue import Queue
from threading import Thread

import pytest

from http_requests import open_client
from rapt.errors import UsageError
from rapt.gateway.answers import Answers
from rapt.gateway.releases import open_releases
from rapt.gateway.server import create_word_gateway, listen, name_address, serve_on
from rapt.gateway.upstream import Upstream
from rapt.gateway.words import rewrite_by_policy, rewrite_by_releases
from rapt.local.ledger import open_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.policy.policy import Policy
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.privatizer import Privatizer
from rapt.wire.manifest import NO_PLAIN_TOKENS
from running_gateway import KEY, running_gateway
from strange_service import answering
from toy_vocabularies import toy_vocabulary, toy_word

TEXT = "Ann Lee (ann@example.org) asked for the bill"


@pytest.fixture
def policy(tmp_path):
    return Policy.make(
        {"email": "mask", "client": "pseudonym"}, patterns={"client": "Ann Lee"}, pseudonyms=tmp_path / "names.map"
    )


@contextmanager
def echoing(*, vocabulary_hash: str = "sha256:" + "0" * 64):
    """A model that repeats the last message, whole or two letters at a time; and what it was sent."""
    got = []
    model = {"id": "m", "rapt": {"base": "m", "max_tokens": 64, "vocabulary_hash": vocabulary_hash}}

    def answer(path, body):
        if path.startswith("/v1/models"):
            return 200, {}, json.dumps({"data": [model]}).encode()
        asked = json.loads(body)
        got.append(asked)
        said = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            return 200, {}, json.dumps({"choices": [choice]}).encode()
        pieces = [said[place : place + 2] for place in range(0, len(said), 2)]
        events = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        written = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return 200, {"content-type": "text/event-stream"}, written.encode()

    with answering(answer) as url:
        yield url, got


@contextmanager
def words_to(service: str, rewrite, *, policy):
    """A client of a gateway that sends words."""
    ready: Queue = Queue()
    with listen("127.0.0.1", 0) as listener:
        app = create_word_gateway(Upstream(service), rewrite, policy=policy, key=KEY)
        thread = Thread(target=serve_on, args=(listener, app), kwargs={"on_ready": ready.put})
        thread.start()
        server = ready.get(timeout=60)
        try:
            with open_client(name_address(listener), headers={"authorization": f"Bearer {KEY}"}) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def read_stream(answer) -> str:
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert answer.text.endswith("data: [DONE]\n\n")
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


def test_a_name_leaves_as_a_pseudonym_and_comes_back_whole_and_in_pieces(policy):
    messages = [{"role": "system", "content": "Ann Lee is a guest"}, {"role": "user", "content": TEXT}]
    with echoing() as (service, got), words_to(service, rewrite_by_policy(policy), policy=policy) as client:
        whole = client.post("/chat/completions", json={"model": "m", "messages": messages})
        pieces = client.post("/chat/completions", json={"model": "m", "messages": messages, "stream": True})
        refused = client.post("/chat/completions", json={"model": "m", "messages": messages, "tools": [{"a": TEXT}]})
        assert [model["id"] for model in client.get("/models").json()["data"]] == ["m"]
        assert client.post("/files", files={"file": ("a", TEXT.encode())}).status_code == 404
    said = "Ann Lee ([EMAIL]) asked for the bill"
    assert whole.json()["choices"][0]["message"]["content"] == said
    assert read_stream(pieces) == said
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
    sent = json.dumps(got)
    assert len(got) == 2
    assert got[0]["messages"] == got[1]["messages"]
    assert "Client-" in sent
    assert not [secret for secret in ("Ann", "Lee", "example.org") if secret in sent]
    restored = Policy.make({"client": "pseudonym"}, patterns={"client": "Ann Lee"}, pseudonyms=policy.names.files[0])
    assert restored.restorer().restore(got[0]["messages"][0]["content"]) == "Ann Lee is a guest"  # after a restart


def test_under_a_policy_ids_leave_of_the_rewritten_text(policy, reader_privatizer, tmp_path):
    privatizer = PolicyPrivatizer(reader_privatizer, policy)
    with (
        echoing(vocabulary_hash=privatizer.vocabulary_hash) as (service, got),
        running_gateway(service, privatizer, ledger=tmp_path / "ledger.sqlite") as url,
        open_client(url, headers={"authorization": f"Bearer {KEY}"}) as client,
    ):
        assert client.post("/completions", json={"model": "m", "prompt": TEXT}).status_code == 200
    (asked,) = got
    assert len(asked["prompt"][0]) == len(privatizer.contents([TEXT])[0]) != len(reader_privatizer.contents([TEXT])[0])
    assert set(asked["rapt"]["manifest"]["policy"]) == {"email", "client"}
    assert policy.names.files[0].exists()


def test_each_word_is_replaced_once_by_a_whole_word_and_pieces_are_refused(rng, reader_privatizer, tmp_path):
    table = rng.standard_normal((40, 4))
    vocabulary = toy_vocabulary(table, special=(0,))
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=0.5)
    privatizer = Privatizer(vocabulary=vocabulary, mechanism=mechanism, plain_tokens=NO_PLAIN_TOKENS)
    said = " ".join(toy_word(row) for row in range(1, 31))
    body = {"model": "m", "messages": [{"role": "user", "content": said}]}
    with (
        echoing() as (service, got),
        open_releases(privatizer, lambda: open_ledger(tmp_path / "ledger.sqlite")) as releases,
        words_to(service, rewrite_by_releases(releases), policy=None) as client,
    ):
        for _ in range(2):
            assert client.post("/chat/completions", json=body).status_code == 200
    first, second = (asked["messages"][0]["content"] for asked in got)
    assert first == second
    words = {toy_word(row) for row in range(1, 40)}
    assert len(first.split()) == 30
    assert set(first.split()) <= words
    # Thirty of thirty words stay with a probability below 1e-6: at this η each stays in fewer than six of ten draws.
    assert first != said
    with (
        open_releases(reader_privatizer, lambda: open_ledger(tmp_path / "other.sqlite")) as releases,
        pytest.raises(UsageError, match="whole words"),
    ):
        rewrite_by_releases(releases)


def test_the_rest_of_a_text_that_no_event_ends_is_said_before_the_end(policy):
    (asked,) = policy.rewrite(["Ann Lee"])

    async def read(*pieces: str) -> str:
        async def chunks():
            for piece in pieces:
                event = {"choices": [{"index": 0, "text": piece}]}
                for byte in f"data: {json.dumps(event)}\r\n\r\n".encode():  # a line end may be cut, too
                    yield bytes([byte])
            yield b": a comment\n\ndata: not json\n\ndata: [DONE]\n\n"

        found = b"".join([part async for part in Answers(policy).restore_events(chunks())]).decode()
        events = [json.loads(line[6:]) for line in found.splitlines() if line.startswith("data: {")]
        assert ": a comment\n\ndata: not json\n\n" in found
        assert found.endswith("data: [DONE]\n\n")
        return "".join(event["choices"][0]["text"] for event in events)

    for cut in range(1, len(asked)):
        assert asyncio.run(read(asked[:cut], asked[cut:])) == "Ann Lee"
    assert asyncio.run(read("It was ", asked[:4])) == "It was " + asked[:4]
