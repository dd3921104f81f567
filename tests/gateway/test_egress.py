"""What leaves: every byte that the service gets is recorded, over every route, error, retry, log and header.

Words of the secrets are looked for in the bytes, as they are and encoded; their tokens in every list of numbers that
was sent. A gateway that sends one field on as it came is found.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import socket
from dataclasses import dataclass, replace

import numpy as np
import pytest

from http_requests import open_client
from rapt.demo.leak_check import search_folder
from rapt.errors import UnavailableError
from rapt.gateway import asking, holdings
from rapt.gateway.upstream import Upstream
from rapt.local.randomness import RandomStream
from rapt.wire.manifest import Randomness
from recording_proxy import Recorder
from running_gateway import KEY, running_gateway, training_setting
from strange_service import answering

TEXTS = (
    "the gastroenterologist in saskatoon said that the zeppelin hurts her stomach",
    "my mother in heidelberg cried about the kohlrabi and would not see the doctor",
)
WORDS = ("gastroenterologist", "saskatoon", "zeppelin", "stomach", "heidelberg", "kohlrabi", "mother", "doctor")
# At this η the noise decides alone where a token lands. A run of so many equal tokens has never come with the seed of
# this test, which draws from a seeded stream; a text that leaves in clear has a run of ten.
CHANCE = 3
ALL = "/v1/completions", "/v1/chat/completions", "/v1/classify", "/v1/fine_tuning/jobs"


def find_words(content: bytes) -> list[str]:
    """The words of the secrets that stand in the bytes, plain, in base64 or in hex."""
    low = content.lower()
    forms = {
        word: [word.encode(), word.encode().hex().encode(), base64.b64encode(word[:6].encode()), word[::-1].encode()]
        for word in WORDS
    }
    return [word for word, found in forms.items() if any(form in content or form in low for form in found)]


def longest_run(content: bytes, plain: list[list[int]]) -> int:
    """The longest run of tokens of the secrets, in order, in the lists of numbers that stand in the bytes."""
    longest = 0
    for listed in re.findall(rb"\[([0-9, ]+)\]", content):
        sent = [int(number) for number in listed.split(b",")]
        for secret in plain:
            before = [0] * (len(secret) + 1)
            for token in sent:
                row = [0] + [before[place] + 1 if token == own else 0 for place, own in enumerate(secret)]
                longest, before = max(longest, *row), row
    return longest


def ways_to_say(model: str):
    """Requests with a secret in each place: what is understood, what is not, and what is no request."""
    first, second = TEXTS
    record = {"messages": [{"role": "user", "content": first}, {"role": "assistant", "content": "positive"}]}
    files = {"file": (f"{first}.jsonl", json.dumps(record).encode()), "purpose": (None, "fine-tune")}
    yield "POST", "/v1/files", {"files": files}
    yield "POST", "/v1/files", {"files": {**files, "purpose": (None, second)}}
    yield "POST", "/v1/files", {"files": {**files, "note": (None, second)}}
    yield "POST", "/v1/files", {"files": {"file": ("a.jsonl", second.encode()), "purpose": (None, "fine-tune")}}
    yield "POST", "/v1/files", {"content": first.encode()}
    messages = [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": first, "name": "stomach"},
    ]
    good = {
        "/v1/completions": {"model": model, "prompt": [first, second], "max_tokens": 3},
        "/v1/chat/completions": {"model": model, "messages": messages, "user": second, "metadata": {"a": second}},
        "/v1/classify": {"model": model, "input": [second, first]},
        "/v1/fine_tuning/jobs": {
            "model": "bert-tiny",
            "training_file": "file-" + "0" * 24,
            "suffix": "zeppelin",
            "metadata": {"a": first},
        },
    }
    for path, body in good.items():
        yield "POST", path, {"json": body}
        yield "POST", path, {"json": body, "params": {"note": second}}
        yield "POST", path, {"json": {**body, "model": first}}
        for name in ("note", second, "rapt", "stop", "tools", "response_format", "logit_bias", "suffix", "n", "seed"):
            yield "POST", path, {"json": {**body, name: {"a": first}}}
            yield "POST", path, {"json": {**body, name: second}}
        yield "POST", path, {"content": first.encode()}
        yield "POST", path, {"json": [first]}
    for content in (
        [{"type": "image_url", "image_url": {"url": f"data:{first}"}}],
        [{"type": "text", "text": first, "note": second}],
        {"text": first},
        [first],
    ):
        yield "POST", ALL[1], {"json": {"model": model, "messages": [{"role": "user", "content": content}]}}
    for role in ("tool", "function", second):
        yield "POST", ALL[1], {"json": {"model": model, "messages": [{"role": role, "content": first}]}}
    hyper = {"init_text": first, "label_words": [second], "target_modules": [first], "n_epochs": second, "task": first}
    for name, value in hyper.items():
        method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {name: value}}}
        yield "POST", ALL[3], {"json": {**good[ALL[3]], "method": method}}
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models"):
        for method in ("GET", "DELETE"):
            yield method, f"{path}/{first}", {}
        yield "GET", path, {"params": {"after": second, "metadata[a]": first}}
    yield "GET", f"/{first}", {}


HEADERS = {
    "authorization": f"Bearer {KEY}",
    "user-agent": TEXTS[0],
    "openai-organization": TEXTS[1],
    "x-stainless-note": TEXTS[0],
    "cookie": f"a={WORDS[0]}",
    "idempotency-key": TEXTS[1],
    "referer": TEXTS[0],
}


@dataclass
class Sent:
    """What a service got, and what a gateway answered and kept."""

    bytes: bytes
    answers: list[bytes]
    statuses: set[int]


def send_all(url: str, model: str, only: str) -> tuple[list[bytes], set[int]]:
    with open_client(url.removesuffix("/v1"), headers=HEADERS) as client:
        found = [
            client.request(method, path, **asked) for method, path, asked in ways_to_say(model) if path.startswith(only)
        ]
    return [answer.content for answer in found], {answer.status_code for answer in found}


@pytest.fixture
def send(service, reader_privatizer, tmp_path, rng):
    """Sends the secrets in all ways through a gateway to the real service, and returns what that got."""

    def go(privatizer=reader_privatizer, only: str = "") -> Sent:
        recorder = Recorder()
        stream = RandomStream(rng, Randomness(source="a test"))
        training = training_setting(privatizer, labels=("negative", "positive"), allow_weak=True)
        ledger = tmp_path / "ledger.sqlite"
        with (
            recorder.through(service) as recorded,
            running_gateway(recorded, privatizer, ledger=ledger, training=training, stream=stream) as url,
        ):
            answers, statuses = send_all(url, "bert-tiny", only)
        return Sent(recorder.sent, answers, statuses)

    return go


def test_no_run_of_words_or_tokens_leaves_by_any_route_error_or_header(
    send, reader_privatizer, tmp_path, capfd, caplog
):
    sent = send()
    assert len(sent.bytes) > 10_000
    assert {200, 400, 404} <= sent.statuses
    assert find_words(sent.bytes) == []
    assert longest_run(sent.bytes, reader_privatizer.contents(TEXTS)) < CHANCE
    assert find_words(b"".join(sent.answers)) == []
    assert find_words((caplog.text + capfd.readouterr().err).encode()) == []
    assert search_folder(tmp_path, TEXTS).leaked == ()


class Identity:
    """A mechanism that changes nothing."""

    def __init__(self, mechanism):
        self.setting, self.distances = mechanism.setting, mechanism.distances

    def privatize(self, token_ids, *, rng):
        return np.asarray(token_ids)


def forward_a_field(monkeypatch):
    monkeypatch.setitem(asking.COMPLETION, "note", lambda value, param: value)


def forward_the_name_of_a_model(monkeypatch):
    monkeypatch.setattr(holdings, "KEPT", holdings.KEPT - {"suffix"})
    monkeypatch.setitem(holdings.JOB, "suffix", lambda value, param: value)


@pytest.mark.parametrize(
    ("broken", "path"), [(forward_a_field, "/v1/completions"), (forward_the_name_of_a_model, "/v1/fine_tuning")]
)
def test_a_gateway_that_sends_one_field_on_as_it_came_is_found(send, broken, path, monkeypatch):
    broken(monkeypatch)
    assert find_words(send(only=path).bytes)


def test_a_gateway_that_sends_tokens_in_clear_is_found(send, reader_privatizer):
    sent = send(replace(reader_privatizer, mechanism=Identity(reader_privatizer.mechanism)), only="/v1/cl")
    assert find_words(sent.bytes) == []
    assert longest_run(sent.bytes, reader_privatizer.contents(TEXTS)) >= 10


def test_a_hostile_service_learns_no_more_and_its_errors_are_one_clean_line(reader_privatizer, tmp_path, rng):
    """It fails in every way there is; a program that tries again sends what it sent at first."""
    got: list[tuple[str, bytes, dict[str, str]]] = []
    model = {"id": "bert-tiny", "rapt": {"base": "bert-tiny", "max_tokens": 64}}
    model["rapt"]["vocabulary_hash"] = reader_privatizer.vocabulary_hash
    replies = [
        (500, {}, b"<html>\n" + TEXTS[0].encode()),
        (429, {"retry-after": "600"}, json.dumps({"error": {"message": "a\nb\x1b[31m" * 400, "code": "A B"}}).encode()),
        (307, {"location": "http://127.0.0.1:9/elsewhere"}, b""),
        (200, {"content-encoding": "gzip"}, b"x"),
        *4 * (None,),  # a connection that is lost is taken again
        (429, {"retry-after": "0"}, b"{}"),  # and a service that is busy for a moment is asked again
        (200, {"content-type": "text/html"}, b"{}"),
    ]
    waiting = iter(replies)

    def answer(path, body, headers, method):
        got.append((f"{method} {path}", body, headers))
        if path.startswith("/v1/models"):
            return 200, {}, json.dumps({"data": [model]}).encode()
        return next(waiting)

    stream = RandomStream(rng, Randomness(source="a test"))
    answers = []
    with (
        answering(answer) as service,
        running_gateway(service, reader_privatizer, ledger=tmp_path / "ledger.sqlite", stream=stream) as url,
        open_client(url.removesuffix("/v1"), headers=HEADERS) as client,
    ):
        body = {"model": "bert-tiny", "prompt": TEXTS[0]}
        answers = [client.post("/v1/completions", json=body) for _ in range(6)]
    assert [found.status_code for found in answers] == [500, 429, 502, 502, 503, 200]
    assert answers[1].headers["retry-after"] == "600"
    assert answers[5].headers["content-type"] == "application/json"
    for found in answers[:5]:
        error = found.json()["error"]
        assert "\n" not in error["message"]
        assert "\x1b" not in error["message"]
        assert len(error["message"]) < 600
    sent = [json.loads(body) for path, body, _ in got if path == "POST /v1/completions"]
    assert len(sent) == len(replies)
    assert len({json.dumps(one["prompt"]) for one in sent}) == 1
    everything = json.dumps([path for path, _, _ in got] + [headers for _, _, headers in got]).encode()
    assert find_words(everything + b"".join(body for _, body, _ in got)) == []
    names = {name.lower() for _, _, headers in got for name in headers}
    assert names <= {"host", "accept", "accept-encoding", "connection", "user-agent", "content-length", "content-type"}


def test_a_stream_that_breaks_ends_with_an_event_that_says_so(reader_privatizer, tmp_path):
    model = {"id": "m", "rapt": {"base": "m", "max_tokens": 64, "vocabulary_hash": reader_privatizer.vocabulary_hash}}

    def answer(path, body):
        if path.startswith("/v1/models"):
            return 200, {}, json.dumps({"data": [model]}).encode()
        return 200, {"content-length": "1000", "content-type": "text/event-stream"}, b'data: {"choices": []}\n\n'

    with (
        answering(answer) as service,
        running_gateway(service, reader_privatizer, ledger=tmp_path / "ledger.sqlite") as url,
        open_client(url, headers=HEADERS) as client,
        contextlib.closing(
            client.send(
                client.build_request("POST", "/completions", json={"model": "m", "prompt": "it", "stream": True}),
                stream=True,
            )
        ) as response,
    ):
        events = response.read().split(b"\n\n")
    assert events[0] == b'data: {"choices": []}'
    assert b"the service must be reachable" in events[1]
    assert events[2] == b"data: [DONE]"


def test_streams_that_get_no_answer_keep_no_place_among_the_requests():
    async def ask_twice(port):
        upstream = Upstream(f"http://127.0.0.1:{port}", timeout=0.05, most_at_once=1)
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(upstream.stream("/v1/completions", json={}, change=lambda chunks: chunks), 60)
        await upstream.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(ask_twice(silent.getsockname()[1]))


def test_a_service_that_cannot_say_what_a_model_is_now_keeps_its_status(reader_privatizer, tmp_path):
    listed = {"id": "m", "rapt": {"base": "other", "max_tokens": 64, "vocabulary_hash": "sha256:" + "0" * 64}}

    def answer(path, body):
        if path == "/v1/models":
            return 200, {}, json.dumps({"data": [listed]}).encode()
        return 503, {"retry-after": "600"}, b"{}"

    with (
        answering(answer) as service,
        running_gateway(service, reader_privatizer, ledger=tmp_path / "ledger.sqlite") as url,
        open_client(url, headers=HEADERS) as client,
    ):
        found = client.post("/completions", json={"model": "m", "prompt": "it"})
    assert (found.status_code, found.headers["retry-after"]) == (503, "600")
