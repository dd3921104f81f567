"""Jobs over HTTP: what may be asked of a run, and what is refused before it is queued."""

import json

import pytest

from http_requests import RUN, SECRET, error_of, job_body, upload
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import PrivatizedRecord
from running_service import save_privatized
from tuning_material import manifest_for


def test_a_job_shows_what_was_decided_for_it(http, training_path):
    file_id = upload(http, training_path).json()["id"]
    job = http.post("/v1/fine_tuning/jobs", json={"model": "bert-tiny", "training_file": file_id}).json()
    decided = job["method"]["prompt_tuning"]["hyperparameters"]
    assert decided["reconstruction"] is not None  # the file has plain tokens
    assert all(type(decided[name]) is int for name in ("num_virtual_tokens", "n_epochs", "batch_size"))
    assert type(job["seed"]) is int
    assert http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()["status"] == "cancelled"


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
        ({"method": {"type": "supervised"}}, "method.type"),
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
        {"n_epochs": 10**30},
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
    job_id = http.post("/v1/fine_tuning/jobs", json=job_body(file_id, n_epochs=1000)).json()["id"]
    error_of(http.delete(f"/v1/files/{file_id}"), 400, "invalid_request")
    assert http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    error_of(http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel"), 400, "invalid_request")
    assert http.delete(f"/v1/files/{file_id}").status_code == 200


@pytest.mark.parametrize("query_string", ["limit=0", "limit=101", f"limit={SECRET}", "after=" + "x" * 600])
def test_a_page_that_breaks_a_rule_is_refused(http, query_string):
    error_of(http.get(f"/v1/fine_tuning/jobs?{query_string}"), 400, "invalid_request")


def test_a_cursor_that_names_nothing_is_not_found(http):
    error_of(http.get("/v1/fine_tuning/jobs?after=ftjob-none"), 404, "not_found")
