"""A client uploads files, follows jobs, and asks models, whether it waits or is awaited."""

import json
import socket
from dataclasses import replace

import httpx2
import pytest

from client_material import BOTH, METHOD, SECRET, Awaited, answering
from closeness import assert_close
from rapt.errors import (
    CorpusError,
    NotFoundError,
    ServiceError,
    TuningError,
    UsageError,
    WireError,
)
from rapt.local.client import ServiceClient, answer_steps, job_steps
from rapt.local.client.file_steps import UPLOAD_NAME
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord
from running_service import running_service
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for

ENDLESS = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 1000}}}
PATIENT = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 4, "patience": 3}}}


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
