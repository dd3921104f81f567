"""A T5 behind the service: the same story as any other backbone, for the two tasks that choose among classes."""

import io
import math
import zipfile

import httpx2
import pytest

from http_requests import done_job, job_body, upload
from rapt.service.model.adapter import load_adapter
from rapt.service.model.inference import ClassificationRow, classify
from rapt.wire.manifest import manifest_to_json
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import PrivatizedRecord
from rapt.wire.query import query_to_json, seal, without_labels
from running_service import running_service, save_privatized
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return tiny_backbone("t5", tmp_path_factory.mktemp("t5") / "tiny-t5")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def http(t5, data):
    with running_service(data, backbones={t5.model: t5}) as url:
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield client


@pytest.fixture(scope="module")
def training(t5):
    ids = t5.bundle.eligible
    records = tuple(
        PrivatizedRecord(
            token_ids=tuple(int(ids[(17 * number + 2 * place + number % 2) % len(ids)]) for place in range(5)),
            label=number % 2,
        )
        for number in range(24)
    )
    return PrivatizedFile(manifest=seal(manifest_for(t5), records), records=records)


def tuned(http, t5, training, folder, **hyperparameters):
    path = save_privatized(training, folder / "training.jsonl")
    body = job_body(upload(http, path).json()["id"], num_virtual_tokens=3, batch_size=8, **hyperparameters)
    return done_job(http, body | {"model": t5.model})["fine_tuned_model"]


@pytest.mark.parametrize("task", ["classification", "label_words"])
def test_a_t5_is_tuned_and_asked_over_http(http, t5, training, task, tmp_path):
    words = {"label_words": ["no", "yes"]} if task == "label_words" else {}
    model = tuned(http, t5, training, tmp_path, task=task, **words)
    with zipfile.ZipFile(io.BytesIO(http.get(f"/v1/models/{model}/adapter").content)) as archive:
        archive.extractall(tmp_path / "adapter")
    query = without_labels(training)
    answer = http.post("/v1/classify", json={"model": model, **query_to_json(query)})
    assert answer.status_code == 200, answer.text
    adapter = load_adapter(tmp_path / "adapter", backbone=t5)
    rows = [ClassificationRow(adapter=adapter, token_ids=record.token_ids) for record in query.records]
    for found, expected in zip(answer.json()["predictions"], classify(t5, rows), strict=True):
        assert found["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_the_label_of_a_t5_comes_as_a_completion(http, t5, training, tmp_path):
    model = tuned(http, t5, training, tmp_path)
    record = without_labels(training).records[0]
    manifest = manifest_to_json(seal(manifest_for(t5, labels=None), [record]))
    body = {"model": model, "prompt": list(record.token_ids), "logprobs": 2, "rapt": {"manifest": manifest}}
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] in ("no", "yes")
    assert sum(map(math.exp, choice["logprobs"]["top_logprobs"][0].values())) == pytest.approx(1.0, abs=1e-5)


def test_a_text_is_not_asked_of_a_t5_over_http(http, t5, training):
    record = without_labels(training).records[0]
    manifest = manifest_to_json(seal(manifest_for(t5, labels=None), [record]))
    body = {"model": t5.model, "prompt": list(record.token_ids), "rapt": {"manifest": manifest}}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert "text can be continued by a decoder" in answer.json()["error"]["message"]
