import asyncio
import json
import re
import socket
import zlib
from contextlib import contextmanager
from dataclasses import replace
from threading import Event

import httpx2
import pytest

import strange_service
from closeness import assert_close
from rapt.errors import (
    AccessError,
    BusyError,
    CorpusError,
    LimitError,
    NotFoundError,
    ServiceError,
    TuningError,
    UnavailableError,
    UsageError,
    VocabularyError,
    WireError,
)
from rapt.local.client import AsyncServiceClient, ServiceClient, answer_steps, connection, downloads, job_steps
from rapt.local.client.file_steps import UPLOAD_NAME
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord
from rapt.wire.vocabulary_bundle import write_bundle
from running_service import running_service, save_privatized
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for, separable_file

SECRET = "the patient said that it hurts"
METHOD = {
    "type": "prompt_tuning",
    "prompt_tuning": {"hyperparameters": {"num_virtual_tokens": 4, "n_epochs": 4, "batch_size": 16}},
}


ENDLESS = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 1000}}}
PATIENT = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 4, "patience": 3}}}


@pytest.fixture(scope="module")
def backbones():
    return load_backbones(load_settings({"models": "bert-tiny", "precision": "float32"}))


@pytest.fixture(scope="module")
def file(backbones):
    return separable_file(backbones["bert-tiny"], records=64, plain=4, fixed=True)


@pytest.fixture(scope="module")
def path(file, tmp_path_factory):
    return save_privatized(file, tmp_path_factory.mktemp("privatized") / "mrs-smiths-complaints.jsonl")


@pytest.fixture(scope="module")
def service(backbones, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as url:
        yield url


class Awaited:
    """An `AsyncServiceClient` each answer of which is awaited in a loop of its own."""

    def __init__(self, *args, **options):
        self._loop = asyncio.Runner()
        self._client = AsyncServiceClient(*args, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()
        self._loop.close()

    def __getattr__(self, name):
        return lambda *args, **options: self._loop.run(getattr(self._client, name)(*args, **options))


BOTH = pytest.mark.parametrize("kind", [ServiceClient, Awaited])


@pytest.fixture(params=[ServiceClient, Awaited])
def client(service, request):
    with request.param(service) as connected:
        yield connected


@pytest.fixture(scope="module")
def done(service, path):
    """A job that succeeded."""
    with ServiceClient(service) as connected:
        job = connected.create_job(file_id=connected.upload(path).id, model="bert-tiny", method=METHOD, seed=1)
        return connected.wait(job.id)


@contextmanager
def answering(answer, *, kind=ServiceClient, patience=0.0, **options):
    """A client of a stranger; see `strange_service`."""
    with strange_service.answering(answer) as url, kind(url, patience=patience, **options) as connected:
        yield connected


def busy(*, after, times):
    """A service that is busy so many times, and what it was asked."""
    asked = []

    def answer(path, body):
        asked.append(path)
        if len(asked) <= times:
            return 429, {} if after is None else {"retry-after": after}, b'{"error": {"message": "wait"}}'
        return 200, {}, b'{"object": "list", "data": []}'

    return answer, asked


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


def lost(*, times, after):
    """A service that answers once, then loses the connection so many times, then answers again with `after`."""
    asked = []

    def answer(path, body):
        asked.append((path, body))
        return None if 1 < len(asked) <= times + 1 else after(path, body)

    return answer, asked


def nothing(path, body):
    return 200, {}, b'{"object": "list", "data": []}'


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


def files_of(service):
    return httpx2.get(f"{service}/v1/files", trust_env=False).json()["data"]


def jobs_of(service):
    return httpx2.get(f"{service}/v1/fine_tuning/jobs?limit=100", trust_env=False).json()["data"]


def test_a_file_is_uploaded_once(client, service, path):
    first = client.upload(path)
    count = len(files_of(service))
    assert client.upload(path) == first
    assert len(files_of(service)) == count
    client.delete_file(first.id)
    assert client.upload(path).id != first.id  # and again after it was deleted


def endless(seconds=None):
    while True:
        yield b" " * 65536


@BOTH
@pytest.mark.parametrize("status", [200, 400])
def test_an_endless_answer_is_not_read_to_its_end(kind, status, monkeypatch, tmp_path):
    monkeypatch.setattr(connection, "_MOST_JSON", 2**20)
    monkeypatch.setattr(downloads, "_MOST_OF_A_DESCRIPTION", 2**20)
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


@pytest.mark.parametrize("shape", ["[99999999999, 99999999999]", "[0, 4]", "[1.5, 2]", "4", "[true, 1]"])
def test_a_vocabulary_of_an_impossible_size_is_refused_before_it_is_fetched(shape, tmp_path):
    asked = []

    def answer(path, body):
        asked.append(path)
        return 200, {}, f'{{"hash": "sha256:{64 * "0"}", "shape": {shape}}}'.encode()

    with answering(answer) as connected, pytest.raises(WireError):
        connected.vocabulary("bert-tiny", tmp_path / "mine")
    assert len(asked) == 1


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


def test_a_file_goes_there_and_is_known_by_its_counts(client, path, file):
    info = client.upload(path)
    assert (info.records, info.tokens) == (file.manifest.records, file.manifest.tokens)
    assert (info.bytes, info.vocabulary_hash) == (path.stat().st_size, file.manifest.vocabulary_hash)
    client.delete_file(info.id)
    with pytest.raises(NotFoundError):
        client.delete_file(info.id)


def test_the_name_of_a_file_stays_here(client, service, path):
    info = client.upload(path)
    assert httpx2.get(f"{service}/v1/files/{info.id}", trust_env=False).json()["filename"] == UPLOAD_NAME


@pytest.mark.parametrize("damage", ["plain", "first line only", "one record of text", "cut off", "one id changed"])
def test_what_is_not_a_whole_privatized_file_is_refused_before_a_connection_is_made(path, tmp_path, damage):
    lines = path.read_bytes().splitlines(keepends=True)
    content = {
        "plain": f"text,label\n{SECRET},1\n".encode(),
        "first line only": lines[0],
        "one record of text": b"".join([*lines[:5], json.dumps({"text": SECRET}).encode() + b"\n", *lines[6:]]),
        "cut off": b"".join(lines)[:-30],
        "one id changed": b"".join(lines).replace(b'"token_ids":[', b'"token_ids":[2204,', 1),
    }[damage]
    (tmp_path / "file").write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with ServiceClient(f"http://127.0.0.1:{listener.getsockname()[1]}") as connected:
            with pytest.raises(WireError) as error:
                connected.upload(tmp_path / "file")
            assert "patient" not in str(error.value)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has knocked
            listener.accept()


def test_a_file_that_is_not_there_is_one_clear_line(client, tmp_path):
    with pytest.raises(CorpusError, match="must be readable"):
        client.upload(tmp_path / "none")


def test_a_job_is_followed_to_its_model(client, service, path, file):
    asked = {"suffix": "mine", "seed": 4, "priority": 7}
    job = client.create_job(file_id=client.upload(path).id, model="bert-tiny", method=METHOD, **asked)
    assert (job.status, job.ended, job.seed) == ("queued", False, 4)
    shown = httpx2.get(f"{service}/v1/fine_tuning/jobs/{job.id}", trust_env=False).json()
    assert shown["rapt"]["priority"] == 7
    seen = []
    done = client.wait(job.id, on_event=seen.append, seconds_between=0.02)
    assert (done.status, done.ended, done.error_code) == ("succeeded", True, None)
    assert done.fine_tuned_model.startswith("ft:bert-tiny:local:mine:")
    assert done.trained_tokens == 4 * file.manifest.tokens
    assert seen == client.events(job.id)  # in order, none twice, none missed
    assert [event.data["step"] for event in seen if event.type == "metrics"] == [10, 16]
    with pytest.raises(ServiceError, match="status=succeeded"):
        client.cancel_job(job.id)


def test_events_after_one_are_those_that_came_later(client, done, monkeypatch):
    monkeypatch.setattr(job_steps, "_PER_REQUEST", 2)  # several pages
    everything = client.events(done.id)
    assert everything[0].message == "the job is queued"
    for position, event in enumerate(everything):
        assert client.events(done.id, after=event.id) == everything[position + 1 :]


def test_a_job_is_cancelled(client, path):
    job = client.create_job(file_id=client.upload(path).id, model="bert-tiny", method=ENDLESS)
    assert client.cancel_job(job.id).status == "cancelled"
    assert client.wait(job.id).fine_tuned_model is None


def test_a_job_is_paused_and_goes_on_to_the_weights_of_one_that_was_not(client, path, done):
    file_id = client.upload(path).id
    blocker = client.create_job(file_id=file_id, model="bert-tiny", method=ENDLESS)
    job = client.create_job(file_id=file_id, model="bert-tiny", method=METHOD, seed=1)
    assert client.pause_job(job.id).status == "paused"
    with pytest.raises(ServiceError, match="to pause, got status=paused"):
        client.pause_job(job.id)
    assert client.resume_job(job.id).status == "queued"
    client.cancel_job(blocker.id)
    steps = []
    model = client.follow(job.id, on_step=lambda done, total, losses: steps.append((done, total))).fine_tuned_model
    assert steps == [(10, 16), (16, 16)]
    weights = [client.adapter(name)["adapter_model.safetensors"] for name in (model, done.fine_tuned_model)]
    assert weights[0] == weights[1]


def test_following_a_job_that_was_cancelled_is_an_error(client, path):
    job = client.create_job(file_id=client.upload(path).id, model="bert-tiny", method=ENDLESS)
    client.cancel_job(job.id)
    with pytest.raises(TuningError, match="status='cancelled'"):
        client.follow(job.id)


def test_the_best_epoch_is_chosen_by_a_validation_file_with_patience_and_its_checkpoints_are_listed(client, path):
    file_id = client.upload(path).id
    given = {"file_id": file_id, "model": "bert-tiny", "method": METHOD, "metadata": {"team": "a"}}
    job = client.follow(client.create_job(**given, validation_file=file_id, patience=2).id)
    assert job.validation_file == file_id
    assert job.method["prompt_tuning"]["hyperparameters"]["patience"] == 2
    checkpoints = client.checkpoints(job.id)
    assert [found.step for found in checkpoints] == [16, 12, 8, 4]
    assert all("full_valid_loss" in found.metrics for found in checkpoints)
    assert client.model(checkpoints[0].model).base == "bert-tiny"
    for wrong in ({"patience": 2}, {"patience": 2, "validation_file": file_id, "method": PATIENT}):
        with pytest.raises(UsageError, match="patience must"):
            client.create_job(**{**given, **wrong})


def test_a_program_that_was_killed_finds_its_job_again_by_the_key_that_it_kept(client, path):
    given = {"file_id": client.upload(path).id, "model": "bert-tiny", "method": ENDLESS}
    first = client.create_job(**given, idempotency_key="of my own")
    assert client.create_job(**given, idempotency_key="of my own").id == first.id
    assert client.create_job(**given).id != first.id
    for job in client.jobs():
        if not job.ended:
            client.cancel_job(job.id)


def test_a_file_is_fetched_back_whole_or_not_at_all(client, path, tmp_path):
    info = client.upload(path)
    assert client.fetch_file(info.id, tmp_path / "back.jsonl") == info
    assert (tmp_path / "back.jsonl").read_bytes() == path.read_bytes()
    with pytest.raises(UsageError):
        client.fetch_file(info.id, tmp_path / "back.jsonl")
    with pytest.raises(NotFoundError):
        client.fetch_file("file-none", tmp_path / "other.jsonl")
    assert [item.name for item in tmp_path.iterdir()] == ["back.jsonl"]


@BOTH
def test_other_bytes_than_those_of_a_file_are_not_kept(kind, service, path, tmp_path):
    with ServiceClient(service) as direct:
        info = direct.upload(path)
    changed = path.read_bytes().replace(b"1", b"2")

    def answer(route, body):
        whole = httpx2.get(service + route, trust_env=False)
        return 200, {}, changed if route.endswith("/content") else whole.content

    with answering(answer, kind=kind) as connected, pytest.raises(ServiceError, match="is it a rapt service"):
        connected.fetch_file(info.id, tmp_path / "back.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_job_says_why(backbones, path, tmp_path):
    data = tmp_path / "data"
    with running_service(data, backbones=backbones) as url, ServiceClient(url) as connected:
        blocker = connected.create_job(file_id=connected.upload(path).id, model="bert-tiny", method=ENDLESS)
        job = connected.create_job(file_id=connected.upload(path).id, model="bert-tiny", method=METHOD)
        next(data.glob("blobs/??/*")).write_bytes(b"damaged")
        connected.cancel_job(blocker.id)
        failed = connected.wait(job.id)
    assert (failed.status, failed.error_code) == ("failed", "damaged")
    assert "digest" in failed.error_message


def test_models_are_listed_and_a_tuned_one_has_its_card(client, done, file):
    listed = {model.id: model for model in client.models()}
    assert set(listed) >= {"bert-tiny", done.fine_tuned_model}
    assert client.model("bert-tiny").card is None
    model = client.model(done.fine_tuned_model)
    assert (model.base, model.vocabulary_hash) == ("bert-tiny", file.manifest.vocabulary_hash)
    assert model.card.mechanism == file.manifest.mechanism
    assert model.card.labels == ("no", "yes")
    assert replace(model, card=None) == listed[model.id]


def test_a_deleted_model_is_not_found(client, path):
    job = client.create_job(file_id=client.upload(path).id, model="bert-tiny", method=METHOD)
    model = client.wait(job.id).fine_tuned_model
    client.delete_model(model)
    with pytest.raises(NotFoundError):
        client.model(model)


def test_predictions_come_in_order_whatever_the_size_of_a_request(client, done, file, monkeypatch):
    whole = client.classify(done.fine_tuned_model, file)
    monkeypatch.setattr(answer_steps, "RECORDS_PER_REQUEST", 7)
    progress = []
    parts = client.classify(done.fine_tuned_model, file, on_progress=progress.append)
    assert progress == [*range(7, 64, 7), 64]
    assert [item.label for item in parts] == [item.label for item in whole]
    for one, other in zip(parts, whole, strict=True):
        assert_close(one.probabilities, other.probabilities, layers=3, width=128)  # of bert-tiny
    assert {item.label for item in whole} <= {"no", "yes"}


def test_texts_are_written_behind_each_record_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_steps, "TEXTS_PER_REQUEST", 2)
    writer = tiny_backbone("llama", tmp_path / "tiny-llama")
    records = [
        PrivatizedRecord(token_ids=tuple(writer.bundle.eligible[place : place + 4].tolist())) for place in range(3)
    ]
    queries = PrivatizedFile(manifest=manifest_for(writer, labels=None), records=tuple(records))
    with running_service(tmp_path / "data", backbones={writer.model: writer}) as url:
        for kind in (ServiceClient, Awaited):
            with kind(url) as connected:
                progress = []
                asked = {"max_tokens": 5, "seed": 3}
                texts = connected.generate(writer.model, queries, on_progress=progress.append, **asked)
                assert progress == [2, 3]
                assert [item.finish_reason for item in texts] == ["length"] * 3
                assert texts == connected.generate(writer.model, queries, **asked)
                assert texts[0].text not in repr(texts[0])


def test_a_model_of_classes_writes_the_label_that_it_would_predict(client, done, file):
    written = client.generate(done.fine_tuned_model, file)  # with plain tokens beside the prompts
    assert [item.text for item in written] == [item.label for item in client.classify(done.fine_tuned_model, file)]


def test_nothing_to_predict_is_no_request(client, backbones):
    empty = PrivatizedFile(manifest=manifest_for(backbones["bert-tiny"]), records=())
    assert client.classify("none", empty) == []


def test_labels_of_queries_stay_here(file):
    sent = []
    named = replace(file, manifest=replace(file.manifest, labels=("is ill", "is well")))

    def answer(path, body):
        sent.append(body)
        return 500, {}, b""

    with answering(answer) as connected, pytest.raises(ServiceError):
        connected.classify("ft:x:y:z", named)
    assert b"is ill" not in sent[0]
    assert b'"label"' not in sent[0]
    assert b'"token_ids"' in sent[0]


def test_a_vocabulary_is_fetched_with_its_hash_computed_again(client, backbones, tmp_path, done, parts):
    expected = backbones["bert-tiny"].bundle.hash
    assert client.vocabulary("bert-tiny", tmp_path / "new" / "folder").hash == expected
    assert client.vocabulary(done.fine_tuned_model, tmp_path / "new" / "folder").hash == expected  # in its place
    assert sorted(item.name for item in (tmp_path / "new" / "folder").iterdir()) == [
        "embeddings.safetensors",
        "tokenizer.json",
        "vocabulary.json",
    ]
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["folder"]


def test_a_vocabulary_takes_the_place_of_nothing_else(client, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UsageError, match="must be new"):
            client.vocabulary("bert-tiny", target)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parts"


def breaking_off(folder, *, after):
    """A service that loses the connection of the first answer with a table; it tells what was asked of each."""
    asked = []

    def answer(route, _body, headers, _method):
        name = route.rpartition("/")[2]
        content = (folder / ("vocabulary.json" if name == "bert-tiny" else name)).read_bytes()
        if name != "embeddings.safetensors":
            return 200, {}, content
        asked.append(headers.get("range"))
        begin = int(headers["range"][6:-1]) if "range" in headers else 0
        length = {"content-length": str(len(content) - begin)}
        if len(asked) == 1:
            return 200, length, iter([content[:after]])
        place = {"content-range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        return 206 if begin else 200, length | place, content[begin:]

    return answer, asked


@BOTH
def test_a_table_whose_connection_is_lost_is_fetched_from_there_on(kind, backbones, tmp_path, parts):
    write_bundle(backbones["bert-tiny"].bundle, tmp_path / "theirs")
    answer, asked = breaking_off(tmp_path / "theirs", after=5000)
    with answering(answer, patience=0, kind=kind) as connected:
        with pytest.raises(ServiceError):
            connected.vocabulary("bert-tiny", tmp_path / "mine")
        assert [path.stat().st_size for path in parts.iterdir()] == [5000]
        assert not (tmp_path / "mine").exists()
        fetched = connected.vocabulary("bert-tiny", tmp_path / "mine")
        assert fetched.hash == backbones["bert-tiny"].bundle.hash
        assert asked == [None, "bytes=5000-"]
        assert list(parts.iterdir()) == []
        assert connected.vocabulary("bert-tiny", tmp_path / "mine").hash == fetched.hash
        assert len(asked) == 2  # what stands there is not fetched again


def test_a_beginning_of_another_table_is_not_kept(backbones, tmp_path, parts):
    write_bundle(backbones["bert-tiny"].bundle, tmp_path / "theirs")
    answer, _ = breaking_off(tmp_path / "theirs", after=5000)
    with answering(answer, patience=0) as connected:
        with pytest.raises(ServiceError):
            connected.vocabulary("bert-tiny", tmp_path / "mine")
        (part,) = parts.iterdir()
        part.write_bytes(b"\0" * 5000)
        with pytest.raises(VocabularyError):
            connected.vocabulary("bert-tiny", tmp_path / "mine")
        assert list(parts.iterdir()) == []
        connected.vocabulary("bert-tiny", tmp_path / "mine")


@pytest.mark.parametrize("damaged", ["vocabulary.json", "tokenizer.json", "embeddings.safetensors"])
def test_a_vocabulary_that_is_not_the_promised_one_leaves_no_folder(backbones, tmp_path, damaged, parts):
    write_bundle(backbones["bert-tiny"].bundle, tmp_path / "theirs")
    path = tmp_path / "theirs" / damaged
    content = bytearray(path.read_bytes())
    at = content.index(b"sha256:") + 8 if damaged == "vocabulary.json" else len(content) // 2
    content[at] = content[at] ^ 1
    path.write_bytes(content)

    def answer(route, _body):
        name = route.rpartition("/")[2]
        return 200, {}, (tmp_path / "theirs" / ("vocabulary.json" if name == "bert-tiny" else name)).read_bytes()

    with answering(answer) as connected, pytest.raises((VocabularyError, WireError)):
        connected.vocabulary("bert-tiny", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert {item.name for item in tmp_path.iterdir()} <= {"theirs", "cache"}
    assert not any(parts.glob("*"))


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
