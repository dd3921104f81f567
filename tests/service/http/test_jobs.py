"""Jobs over HTTP: what may be asked of a run, and what is refused before it is queued."""

import json
from dataclasses import replace

import pytest

from http_requests import ENDLESS, RUN, SECRET, error_of, job_body, open_client, upload
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from running_service import running_service, save_privatized
from tuning_material import manifest_for


def test_a_job_shows_what_was_decided_for_it(http, training_path):
    file_id = upload(http, training_path).json()["id"]
    job = http.post("/v1/fine_tuning/jobs", json={"model": "bert-tiny", "training_file": file_id}).json()
    decided = job["method"]["prompt_tuning"]["hyperparameters"]
    assert decided["reconstruction"] is not None  # the file has plain tokens
    assert all(type(decided[name]) is int for name in ("num_virtual_tokens", "n_epochs", "batch_size"))
    assert type(job["seed"]) is int
    http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")  # it may have ended by now


def test_auto_is_the_same_as_left_out(http, training_path):
    file_id = upload(http, training_path).json()["id"]
    auto = job_body(file_id, **dict.fromkeys([*RUN, "learning_rate", "reconstruction"], "auto"))
    bare = {"model": "bert-tiny", "training_file": file_id}
    jobs = [http.post("/v1/fine_tuning/jobs", json=body).json() for body in (auto, bare)]
    assert jobs[0]["method"] == jobs[1]["method"]
    for job in jobs:
        http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": 5}, "model"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"suffix": SECRET}, "suffix"),
        ({"suffix": ""}, "suffix"),
        ({"suffix": "a:b"}, "suffix"),
        ({SECRET: 1}, None),
        ({"validation_file": 5}, "validation_file"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {SECRET * 10: "long"}}, "metadata"),
        ({"metadata": {str(number): "many" for number in range(17)}}, "metadata"),
        ({"rapt": {"priority": 101}}, "rapt.priority"),
        ({"method": {"type": "dpo", "dpo": {}}}, "method.type"),
        ({"method": {"type": "supervised", "supervised": {"n_epochs": 1}}}, "method.supervised.n_epochs"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": SECRET}}]}, "integrations"),
        ({"method": {"type": SECRET}}, "method.type"),
        ({"method": SECRET}, "method"),
    ],
)
def test_a_job_with_a_field_that_breaks_a_rule_is_refused(http, training_path, change, param):
    body = job_body("file-1") | change
    assert error_of(http.post("/v1/fine_tuning/jobs", json=body), 400, "invalid_request")["param"] == param


@pytest.mark.parametrize(
    "change",
    [
        {"n_epochs": 0},
        {"n_epochs": "many"},
        {"n_epochs": 2.0},
        {"n_epochs": 10**18},
        {"batch_size": -1},
        {"num_virtual_tokens": 257},
        {"learning_rate": 0},
        {"learning_rate": "fast"},
        {"learning_rate_multiplier": 1},
        {"reconstruction": "no"},
        {"reconstruction": {"weight": -1}},
        {"reconstruction": {"weight": 1, "more": 2}},
        {"reconstruction": {"hidden_size": 0}},
    ],
    ids=str,
)
def test_a_hyperparameter_that_breaks_a_rule_is_refused_by_name(http, change):
    error = error_of(http.post("/v1/fine_tuning/jobs", json=job_body("file-1", **change)), 400, "invalid_request")
    place = "method.prompt_tuning.hyperparameters"
    assert error["param"].startswith(place if "learning_rate_multiplier" in change else f"{place}.{next(iter(change))}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(http, number):
    body = json.dumps(job_body("file-1", learning_rate=-7)).replace("-7", number)
    response = http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    error_of(response, 400, "invalid_request")


def test_a_job_for_a_model_that_is_not_served_is_not_found(http, training_path):
    file_id = upload(http, training_path).json()["id"]
    error_of(http.post("/v1/fine_tuning/jobs", json=job_body(file_id) | {"model": SECRET}), 404, "not_found")


def test_a_run_that_cannot_fit_is_refused_before_it_is_queued(http, backbones, tmp_path):
    records = tuple(PrivatizedRecord(token_ids=(2204,) * 505, label=label) for label in (0, 1))
    file = PrivatizedFile(manifest=manifest_for(backbones["bert-tiny"]), records=records)
    file_id = upload(http, save_privatized(file, tmp_path / "long")).json()["id"]
    error = error_of(
        http.post("/v1/fine_tuning/jobs", json=job_body(file_id, num_virtual_tokens=6)), 400, "invalid_request"
    )
    assert "512 positions, got 513" in error["message"]
    asked = job_body(file_id, num_virtual_tokens=5, reconstruction={"weight": 1.0})
    assert "plain_tokens=0" in error_of(http.post("/v1/fine_tuning/jobs", json=asked), 400, "tuning_failed")["message"]
    bare = PrivatizedFile(
        manifest=manifest_for(backbones["bert-tiny"], labels=None), records=(PrivatizedRecord(token_ids=(2204,)),)
    )
    file_id = upload(http, save_privatized(bare, tmp_path / "bare")).json()["id"]
    assert (
        "labels=0"
        in error_of(http.post("/v1/fine_tuning/jobs", json=job_body(file_id)), 400, "tuning_failed")["message"]
    )


def test_a_queued_job_holds_its_file_until_it_is_cancelled(http, training_path):
    file_id = upload(http, training_path).json()["id"]
    job_id = http.post("/v1/fine_tuning/jobs", json=job_body(file_id, **ENDLESS)).json()["id"]
    error_of(http.delete(f"/v1/files/{file_id}"), 400, "invalid_request")
    assert http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    error_of(http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel"), 400, "invalid_request")
    assert http.delete(f"/v1/files/{file_id}").status_code == 200


@pytest.mark.parametrize("query_string", ["limit=0", "limit=101", f"limit={SECRET}", "after=" + "x" * 600])
def test_a_page_that_breaks_a_rule_is_refused(http, query_string):
    error_of(http.get(f"/v1/fine_tuning/jobs?{query_string}"), 400, "invalid_request")


def test_a_cursor_that_names_nothing_is_not_found(http):
    error_of(http.get("/v1/fine_tuning/jobs?after=ftjob-none"), 404, "not_found")


def test_a_job_that_would_take_the_machine_is_refused_with_what_to_lower(backbones, tmp_path, training_path):
    with (
        running_service(tmp_path, backbones=backbones, settings={"job_memory_bytes": 2**25 + 2**24}) as url,
        open_client(url) as http,
    ):
        file_id = upload(http, training_path).json()["id"]
        answer = http.post("/v1/fine_tuning/jobs", json=job_body(file_id, batch_size=1024))
        error = error_of(answer, 413, "too_large")
        assert error["param"] == "method.prompt_tuning.hyperparameters.batch_size"
        assert "lower batch_size" in error["message"]
        assert http.get("/v1/usage").json()["jobs"] == 0


@pytest.mark.parametrize(
    ("method", "asked", "words"),
    [
        ("lora", {"target_modules": ["nothing"]}, "lora_targets must name linear layers"),
        ("prompt_tuning", {"task": "label_words", "label_words": ["one"]}, "one label word for each of 2 classes"),
        ("prompt_tuning", {"task": "label_words", "label_words": ["same", "same"]}, "must differ"),
        ("prompt_tuning", {"task": "generation"}, "an encoder"),
        ("prefix_tuning", {"initialization": "text", "init_text": " "}, "words to start at"),
    ],
)
def test_what_a_run_could_not_be_made_of_is_refused_before_it_is_queued(http, training_path, method, asked, words):
    file_id = upload(http, training_path).json()["id"]
    body = job_body(file_id) | {"method": {"type": method, method: {"hyperparameters": asked}}}
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("change", ["labels", "mechanism", "plain_tokens", "length"])
def test_a_validation_file_of_another_kind_is_refused_before_its_job_is_queued(
    http, backbones, training_path, training_file, tmp_path, change
):
    records = training_file.records
    manifest = training_file.manifest
    if change == "labels":
        manifest = replace(manifest, labels=("yes", "no"))
    elif change == "mechanism":
        manifest = replace(manifest, mechanism=MechanismSetting(name="laplace", parameters={"eta": 61.0}))
    elif change == "plain_tokens":
        manifest = replace(manifest, plain_tokens=NO_PLAIN_TOKENS)
        records = tuple(replace(record, privatized_plain_tokens=()) for record in records)
    else:
        records = (replace(records[0], token_ids=(2204,) * 505), *records[1:])
    other = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
    validation = upload(http, save_privatized(other, tmp_path / "validation.jsonl")).json()["id"]
    training = upload(http, training_path).json()["id"]
    answer = http.post("/v1/fine_tuning/jobs", json=job_body(training) | {"validation_file": validation})
    assert answer.status_code == 400, answer.text
    assert ("positions" if change == "length" else "validation file") in answer.json()["error"]["message"]


def test_a_job_says_how_often_what_ran_it_died_and_that_its_model_is_gone(backbones, tmp_path, training_path):
    more = {**backbones, "bert-gone": replace(backbones["bert-tiny"], model="bert-gone")}
    for served, waits in ((more, False), (backbones, True)):
        with (
            running_service(tmp_path, backbones=served, settings={"worker_in_service": False}) as url,
            open_client(url) as http,
        ):
            if not waits:
                file_id = upload(http, training_path).json()["id"]
                job_id = http.post("/v1/fine_tuning/jobs", json=job_body(file_id) | {"model": "bert-gone"}).json()["id"]
            job = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
            assert job["rapt"]["deaths"] == 0
            assert (job["rapt"]["waits_because"] is not None) == waits
            events = http.get(f"/v1/fine_tuning/jobs/{job_id}/events").json()["data"]
            assert ("not served any more" in events[0]["message"]) == waits
