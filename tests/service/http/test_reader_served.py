"""Codes that a backbone reads behind the service: the routes of tokens, and one line for whatever does not fit."""

from dataclasses import replace

import pytest
import torch

from code_material import code_bundle, codes_file, reader_folder
from http_requests import done_job, error_of, open_client, upload
from rapt.local.client import ServiceClient
from rapt.service.backbone.opening import load_backbone, load_served
from rapt.service.http.assembly import find_precision
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.privatized_file import dump_query, remove_labels
from running_service import running_service, save_privatized
from tiny_backbones import write_tiny_model

BASE, NAME = "tiny", "tiny-reads"


@pytest.fixture(scope="module")
def code():
    return code_bundle(size=24, run=4)


@pytest.fixture(scope="module")
def served(code, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model("llama", folder / BASE)
    reader_folder(folder / BASE, folder / NAME, code=code)
    models = {BASE: str(folder / BASE), NAME: str(folder / NAME)}
    backbones = {
        name: load_served(model, name=name, precision="float32", served=models) for name, model in models.items()
    }
    assert backbones[BASE].encoder is backbones[NAME].encoder  # a backbone is loaded once
    return backbones


@pytest.fixture(scope="module")
def service(served, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones=served) as url:
        yield url


@pytest.fixture(scope="module")
def http(service):
    with open_client(service) as client:
        yield client


@pytest.fixture(scope="module")
def job(http, code, tmp_path_factory):
    path = save_privatized(codes_file(code), tmp_path_factory.mktemp("files") / "codes.jsonl")
    run = {"num_virtual_tokens": 2, "n_epochs": 2, "batch_size": 8}
    method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": run}}
    return done_job(http, {"model": NAME, "training_file": upload(http, path).json()["id"], "method": method})


def test_a_prompt_is_tuned_on_codes_with_events_checkpoints_and_predictions(http, code, job):
    events = http.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    checkpoints = http.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json()["data"]
    assert any("train_loss" in (event["data"] or {}) for event in events)
    assert len(checkpoints) == 2
    query = dump_query(remove_labels(codes_file(code, epsilon=2.0)))  # an ε of the asker's own
    for model in (job["fine_tuned_model"], checkpoints[0]["fine_tuned_model_checkpoint"]):
        answer = http.post("/v1/classify", json={"model": model, **query}).json()
        assert len(answer["predictions"]) == 24


def test_a_label_is_written_as_a_completion_and_a_bare_model_goes_on_from_a_code(http, code, job):
    query = dump_query(remove_labels(codes_file(code, records=1)))
    for model in (job["fine_tuned_model"], NAME):
        body = {"model": model, "prompt": [0], "max_tokens": 2, "rapt": {"manifest": query["manifest"]}}
        answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_codeword_costs_as_many_tokens_as_the_vectors_that_are_read(code, served, http, job, tmp_path):
    read = 24 * (1 + 2 + 2)  # a codeword, the other two of its three vectors, the prompt of two
    settings = {"tenant_tokens_per_minute": read - 1}
    with running_service(tmp_path, backbones=served, settings=settings) as url, open_client(url) as other:
        with ServiceClient(str(http.base_url)) as client:
            files = client.adapter(job["fine_tuned_model"])
        form = {"weights": "adapter_model.safetensors", "config": "adapter_config.json", "card": "rapt.json"}
        model = other.post("/v1/adapters", files={name: files[file] for name, file in form.items()}).json()["id"]
        asked = remove_labels(codes_file(code))
        query = dump_query(asked)
        error = error_of(other.post("/v1/classify", json={"model": model, **query}), 429, "rate_limit_exceeded")
        assert f"tokens of a minute, {read - 1}, got {read}" in error["message"]
        body = {"model": NAME, "prompt": [list(record.token_ids) for record in asked.records], "max_tokens": 3}
        # 96 for what is read as ids and written are there, and 48 for the other vectors are not.
        answer = other.post("/v1/completions", json=body | {"rapt": {"manifest": query["manifest"]}})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded"), answer.text


def test_jobs_have_the_precision_of_language_models_wherever_a_codebook_stands(code, served, tmp_path):
    write_code_bundle(code, tmp_path / "code")
    codebook = load_backbone(str(tmp_path / "code"))
    short = replace(served[BASE], dtype=torch.bfloat16)
    assert find_precision([codebook, short]) == "bfloat16"
    assert find_precision([codebook]) == "float32"


def test_the_model_says_its_unit_offers_every_method_and_hands_out_its_codebook(http, service, code, job, tmp_path):
    shown = http.get(f"/v1/models/{NAME}").json()["rapt"]
    assert (shown["unit"], shown["vocabulary_hash"]) == ("text", code.hash)
    assert {"prompt_tuning", "prefix_tuning", "lora", "linear_probing"} <= shown["methods"].keys()
    with ServiceClient(service) as client:
        assert client.codebook(job["fine_tuned_model"], tmp_path / "code").hash == code.hash
        assert client.model(job["fine_tuned_model"]).card.reader.startswith("sha256:")


def test_an_adapter_goes_out_and_comes_in_where_its_reader_is(http, service, job):
    with ServiceClient(service) as client:
        files = client.adapter(job["fine_tuned_model"])
    form = {"weights": files["adapter_model.safetensors"], "config": files["adapter_config.json"]}
    for card, status in ((files["rapt.json"], 200), (files["rapt.json"].replace(b'"reader"', b'"render"'), 400)):
        answer = http.post("/v1/adapters", files=form | {"card": card})
        assert answer.status_code == status, answer.text
    other = files["rapt.json"].replace(b'"reader":"sha256:', b'"reader":"sha256:0')
    error = error_of(http.post("/v1/adapters", files=form | {"card": other}), 409, "vocabulary_mismatch")
    assert "the reader it was tuned behind" in error["message"]


def test_codes_of_another_codebook_are_refused(http, job, tmp_path):
    other = codes_file(code_bundle(size=24, run=4, seed=3))
    assert "served here" in upload(http, save_privatized(other, tmp_path / "other.jsonl")).json()["error"]["message"]
    body = {"model": job["fine_tuned_model"], **dump_query(remove_labels(other))}
    error_of(http.post("/v1/classify", json=body), 409, "vocabulary_mismatch")
