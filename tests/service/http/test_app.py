import json
import logging
import re
import socket

import httpx2
import pytest

from rapt.service.http.schemas import JobRequest
from rapt.version import __version__
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord
from rapt.wire.query import query_to_json, without_labels
from running_service import running_service, save_privatized, wait_until
from tuning_material import manifest_for

SECRET = "the patient said that it hurts"
RUN = {"num_virtual_tokens": 4, "n_epochs": 2, "batch_size": 16}


def upload(http, path, **changes):
    form = {"purpose": "fine-tune", **changes}
    with path.open("rb") as stream:
        return http.post("/v1/files", data=form, files={"file": ("mine.jsonl", stream)})


def job_body(file_id, **hyperparameters):
    method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": RUN | hyperparameters}}
    return {"model": "bert-tiny", "training_file": file_id, "method": method, "seed": 5}


def status_of(http, job_id):
    return http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"]


def error_of(response, status, code):
    """The error of an answer, after what every error answer must be was checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    assert "\n" not in error["message"]
    assert not error["message"].endswith(".")
    assert "patient" not in response.text
    return error


@pytest.fixture(scope="module")
def tuned(service, training_path):
    """The name of a model that was tuned over HTTP."""
    with httpx2.Client(base_url=service, timeout=60, trust_env=False) as http:
        file = upload(http, training_path).json()
        job = http.post("/v1/fine_tuning/jobs", json=job_body(file["id"])).json()
        wait_until(lambda: status_of(http, job["id"]) not in ("queued", "running"))
        return http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["fine_tuned_model"]


@pytest.fixture(scope="module")
def query(training_file):
    return query_to_json(without_labels(training_file))


def test_the_service_says_that_it_answers(http):
    response = http.get("/healthz")
    assert response.json() == {"status": "ok", "version": __version__}
    assert response.headers["x-request-id"].startswith("req_")


def test_an_uploaded_file_is_what_its_manifest_says(http, training_path, training_file):
    answer = upload(http, training_path).json()
    manifest = training_file.manifest
    assert answer["object"] == "file"
    assert answer["bytes"] == training_path.stat().st_size
    assert answer["rapt"] == {
        "vocabulary_hash": manifest.vocabulary_hash,
        "mechanism": {"name": "laplace", "parameters": {"eta": 60.0}},
        "insecure_seed": True,
        "records": manifest.records,
        "tokens": manifest.tokens,
        "plain_tokens": 4,
        "labels": 2,
    }
    assert http.get(f"/v1/files/{answer['id']}").json() == answer
    assert http.get(f"/v1/files/{answer['id']}/content").content == training_path.read_bytes()


def test_a_deleted_file_is_not_found_any_more(http, training_path):
    file_id = upload(http, training_path).json()["id"]
    assert http.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    for response in (
        http.get(f"/v1/files/{file_id}"),
        http.get(f"/v1/files/{file_id}/content"),
        http.delete(f"/v1/files/{file_id}"),
        http.post("/v1/fine_tuning/jobs", json=job_body(file_id)),
    ):
        error_of(response, 404, "not_found")


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a\\b\\c.jsonl", "x" * 1000, 'quo"te\r\nx-evil: 1', "naïve 文.jsonl", "%2e%2e%2f"],
)
def test_a_file_name_is_shown_and_names_nothing(http, training_path, name):
    with training_path.open("rb") as stream:
        response = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, stream)})
    shown = response.json()["filename"]
    assert "/" not in shown
    assert "\\" not in shown
    assert shown.isprintable()
    assert len(shown) <= 255
    assert "x-evil" not in http.get(f"/v1/files/{response.json()['id']}/content").headers


def test_a_plain_text_file_is_refused_without_a_word_of_it(http, tmp_path):
    (tmp_path / "plain.csv").write_text(f"text,label\n{SECRET},1\n")
    error_of(upload(http, tmp_path / "plain.csv"), 400, "invalid_wire_format")


def test_a_file_for_another_vocabulary_is_a_conflict(http, training_path, training_file, tmp_path):
    content = training_path.read_text().replace(training_file.manifest.vocabulary_hash, "sha256:" + "0" * 64)
    (tmp_path / "other").write_text(content)
    error_of(upload(http, tmp_path / "other"), 409, "vocabulary_mismatch")


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "batch"}, "purpose"),
        ({"purpose": SECRET}, "purpose"),
        ({"expires_after[seconds]": "3600"}, None),
        ({SECRET: SECRET}, None),
    ],
)
def test_a_form_that_says_what_is_not_offered_is_refused(http, training_path, form, param):
    assert error_of(upload(http, training_path, **form), 400, "invalid_request")["param"] == param


def test_an_upload_without_a_file_is_refused(http):
    assert error_of(http.post("/v1/files", data={"purpose": "fine-tune"}), 400, "invalid_request")["param"] == "file"
    error_of(http.post("/v1/files", json={"purpose": "fine-tune"}), 400, "invalid_request")


def test_a_broken_form_is_refused(http):
    headers = {"content-type": "multipart/form-data; boundary=x"}
    error_of(http.post("/v1/files", content=SECRET.encode(), headers=headers), 400, "invalid_request")


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


@pytest.mark.parametrize(
    "body",
    [b"", b"{", SECRET.encode(), b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut off", "text", "list", "string", "not utf-8", "nested", "endless number"],
)
@pytest.mark.parametrize("route", ["/v1/fine_tuning/jobs", "/v1/classify"])
def test_a_body_that_is_no_request_is_refused(http, route, body):
    response = http.post(route, content=body, headers={"content-type": "application/json"})
    error_of(response, 400, "invalid_request")


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


@pytest.mark.parametrize("query_string", ["limit=0", "limit=101", f"limit={SECRET}", "after=" + "x" * 100])
def test_a_page_that_breaks_a_rule_is_refused(http, query_string):
    error_of(http.get(f"/v1/fine_tuning/jobs?{query_string}"), 400, "invalid_request")


def test_a_cursor_that_names_nothing_is_not_found(http):
    error_of(http.get("/v1/fine_tuning/jobs?after=ftjob-none"), 404, "not_found")


def test_a_tuned_model_shows_its_card_and_a_base_model_does_not(http, tuned):
    base = http.get("/v1/models/bert-tiny").json()
    assert base["rapt"]["card"] is None
    model = http.get(f"/v1/models/{tuned}").json()
    assert (model["id"], model["object"]) == (tuned, "model")
    assert model["rapt"]["base"] == "bert-tiny"
    assert model["rapt"]["card"]["mechanism"] == {"name": "laplace", "parameters": {"eta": 60.0}}
    assert [item["id"] for item in http.get("/v1/models").json()["data"]][:1] == ["bert-tiny"]


def test_a_prediction_is_a_label_and_its_probabilities(http, tuned, query):
    answer = http.post("/v1/classify", json={"model": tuned, **query}).json()
    assert (answer["object"], answer["model"], answer["labels"]) == ("classification", tuned, ["no", "yes"])
    assert len(answer["predictions"]) == len(query["records"])
    for item in answer["predictions"]:
        assert sum(item["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert item["label_index"] == item["probabilities"].index(max(item["probabilities"]))
        assert item["label"] == answer["labels"][item["label_index"]]


def test_labels_of_queries_are_not_looked_at(http, tuned, query, training_file):
    labelled = query_to_json(training_file)
    answers = [http.post("/v1/classify", json={"model": tuned, **value}).json() for value in (query, labelled)]
    assert answers[0] == answers[1]


def test_a_query_that_was_privatized_otherwise_is_refused(http, tuned, query):
    manifest = query["manifest"]
    mechanism = {"name": "laplace", "parameters": {"eta": 59.0}}
    for change, status, code in (
        ({"mechanism": mechanism}, 400, "invalid_request"),
        ({"vocabulary_hash": "sha256:" + "0" * 64}, 409, "vocabulary_mismatch"),
        ({"mechanism": {"name": SECRET, "parameters": {"eta": 60.0}}}, 400, "invalid_mechanism"),
        ({"mechanism": {"name": "laplace", "parameters": {"eta": 0}}}, 400, "invalid_mechanism"),
        ({"schema": SECRET}, 400, "invalid_wire_format"),
        ({"records": 1}, 400, "invalid_wire_format"),
        ({"records_sha256": "0" * 64}, 400, "invalid_wire_format"),
        ({SECRET: SECRET}, 400, "invalid_wire_format"),
    ):
        body = {"model": tuned, "manifest": manifest | change, "records": query["records"]}
        error_of(http.post("/v1/classify", json=body), status, code)


@pytest.mark.parametrize(
    "records",
    [
        [{"text": SECRET}],
        [{"token_ids": SECRET}],
        [{"token_ids": [SECRET]}],
        [{"token_ids": [1], SECRET: 1}],
        [[1]],
        [],
    ],
    ids=["text", "string", "strings", "more", "list", "none"],
)
def test_a_text_in_place_of_ids_is_refused_without_a_word_of_it(http, tuned, query, records):
    response = http.post("/v1/classify", json={"model": tuned, "manifest": query["manifest"], "records": records})
    error_of(response, 400, response.json()["error"]["code"])


def test_only_a_tuned_model_classifies(http, query):
    error_of(http.post("/v1/classify", json={"model": "bert-tiny", **query}), 400, "invalid_request")
    error_of(http.post("/v1/classify", json={"model": "ft:bert-tiny:rapt:none", **query}), 404, "not_found")


def test_a_deleted_model_is_not_found_any_more(http, training_path, query):
    file_id = upload(http, training_path).json()["id"]
    job = http.post("/v1/fine_tuning/jobs", json=job_body(file_id) | {"suffix": "mine"}).json()
    wait_until(lambda: status_of(http, job["id"]) == "succeeded")
    model = http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["fine_tuned_model"]
    assert model.startswith("ft:bert-tiny:local:mine:")
    assert http.post("/v1/classify", json={"model": model, **query}).status_code == 200
    assert http.delete(f"/v1/models/{model}").json() == {"id": model, "object": "model", "deleted": True}
    error_of(http.post("/v1/classify", json={"model": model, **query}), 404, "not_found")
    error_of(http.get(f"/v1/models/{model}"), 404, "not_found")
    error_of(http.delete("/v1/models/bert-tiny"), 400, "invalid_request")


@pytest.mark.parametrize("file", ["", "/tokenizer.json", "/embeddings.safetensors"])
def test_a_vocabulary_is_fetched_once_and_then_only_asked_for(http, backbones, file):
    bundle = backbones["bert-tiny"].bundle
    answer = http.get(f"/v1/vocabularies/bert-tiny{file}")
    assert answer.status_code == 200
    assert answer.headers["etag"] == f'"{bundle.hash}"'
    again = http.get(f"/v1/vocabularies/bert-tiny{file}", headers={"if-none-match": f'"old", {answer.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get(f"/v1/vocabularies/bert-tiny{file}", headers={"if-none-match": '"old"'}).status_code == 200
    error_of(http.get(f"/v1/vocabularies/none{file}"), 404, "not_found")


def test_a_tuned_model_stands_for_the_vocabulary_of_its_base(http, tuned):
    assert http.get(f"/v1/vocabularies/{tuned}").json() == http.get("/v1/vocabularies/bert-tiny").json()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/v1/{SECRET}", 404, "not_found"),
        ("GET", "/v1/files/../../etc/passwd", 404, "not_found"),
        ("GET", "/v1/files/%2e%2e%2fdatabase", 404, "not_found"),
        ("PUT", "/v1/files", 405, "method_not_allowed"),
        ("GET", f"/v1/files/{SECRET}", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_an_error_in_the_same_shape(http, method, path, status, code):
    error_of(http.request(method, path), status, code)


def test_the_openapi_document_knows_every_route(http):
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert routes == {
        "POST /v1/files",
        "GET /v1/files",
        "GET /v1/files/{file_id}",
        "DELETE /v1/files/{file_id}",
        "GET /v1/files/{file_id}/content",
        "POST /v1/fine_tuning/jobs",
        "GET /v1/fine_tuning/jobs",
        "GET /v1/fine_tuning/jobs/{job_id}",
        "POST /v1/fine_tuning/jobs/{job_id}/cancel",
        "POST /v1/fine_tuning/jobs/{job_id}/pause",
        "POST /v1/fine_tuning/jobs/{job_id}/resume",
        "GET /v1/fine_tuning/jobs/{job_id}/checkpoints",
        "POST /v1/uploads",
        "POST /v1/uploads/{upload_id}/parts",
        "POST /v1/uploads/{upload_id}/complete",
        "POST /v1/uploads/{upload_id}/cancel",
        "GET /v1/models/{model_id}/adapter",
        "POST /v1/adapters",
        "GET /readyz",
        "GET /metrics",
        "GET /v1/fine_tuning/jobs/{job_id}/events",
        "GET /v1/models",
        "GET /v1/models/{model_id}",
        "DELETE /v1/models/{model_id}",
        "POST /v1/classify",
        "POST /v1/completions",
        "POST /v1/chat/completions",
        "GET /v1/vocabularies/{model}",
        "GET /v1/vocabularies/{model}/tokenizer.json",
        "GET /v1/vocabularies/{model}/embeddings.safetensors",
        "GET /v1/keys",
        "POST /v1/keys/{key_id}/rotate",
        "POST /v1/keys/{key_id}/revoke",
        "GET /v1/usage",
        "POST /v1/admin/tenants",
        "GET /v1/admin/tenants",
        "GET /v1/admin/tenants/{tenant}",
        "POST /v1/admin/tenants/{tenant}",
        "DELETE /v1/admin/tenants/{tenant}",
        "GET /v1/admin/tenants/{tenant}/usage",
        "POST /v1/admin/tenants/{tenant}/keys",
        "GET /v1/admin/keys",
        "POST /v1/admin/keys/{key_id}/rotate",
        "POST /v1/admin/keys/{key_id}/revoke",
        "GET /v1/admin/audit",
        "GET /healthz",
    }
    assert "multipart/form-data" in document["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    assert set(JobRequest.model_fields) == set(document["components"]["schemas"]["JobRequest"]["properties"])


def test_a_web_page_cannot_reach_a_service_without_a_key(http, training_path):
    error_of(http.get("/v1/files", headers={"origin": "https://example.org"}), 401, "invalid_api_key")
    error_of(http.get("/v1/files", headers={"host": "rebound.example.org"}), 401, "invalid_api_key")
    assert http.get("/v1/files", headers={"host": "localhost:1"}).status_code == 200
    assert http.get("/v1/files", headers={"host": "[::1]"}).status_code == 200


def test_the_log_has_patterns_and_counts_and_nothing_that_came_in(http, caplog, tmp_path):
    (tmp_path / "plain.csv").write_text(SECRET)
    with caplog.at_level(logging.DEBUG, logger="rapt"):
        upload(http, tmp_path / "plain.csv")
        http.get(f"/v1/files/{SECRET}?note={SECRET}", headers={"x-note": SECRET})
        http.get(f"/{SECRET}")
        wait_until(lambda: len(caplog.messages) == 3)
    assert "patient" not in caplog.text
    assert [re.sub(r"req_\w+|[\d.]+ ms", "*", line) for line in caplog.messages] == [
        "* POST /v1/files 400 *",
        "* GET /v1/files/{file_id} 404 *",
        "* GET - 404 *",
    ]


def test_with_a_key_only_its_holder_comes_in(backbones, tmp_path):
    key = "correct-horse-battery-staple"
    with (
        running_service(tmp_path, backbones=backbones, settings={"api_key": key}) as url,
        httpx2.Client(base_url=url, trust_env=False) as http,
    ):
        for headers in (
            {},
            {"authorization": "Bearer"},
            {"authorization": f"Bearer {key[:-1]}"},
            {"authorization": f"Bearer {key}x"},
            {"authorization": key},
            {"authorization": f"Basic {key}"},
        ):
            error_of(http.get("/v1/files", headers=headers), 401, "invalid_api_key")
        assert http.get("/v1/files", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert http.get("/v1/files", headers={"authorization": f"bearer {key}"}).status_code == 200
        assert http.get("/healthz").status_code == 200


def test_a_body_that_is_too_large_is_refused_announced_or_not(backbones, tmp_path, training_path):
    limits = {"max_file_bytes": 1000, "max_request_bytes": 2000, "max_records_per_request": 2}
    with (
        running_service(tmp_path / "data", backbones=backbones, settings=limits) as url,
        httpx2.Client(base_url=url, trust_env=False) as http,
    ):
        assert training_path.stat().st_size > 1000
        error_of(upload(http, training_path), 413, "too_large")
        error_of(http.post("/v1/classify", json={"model": "x" * 3000}), 413, "too_large")
        pieces = iter([b'{"model": "', *[b"x" * 500] * 10, b'"}'])
        headers = {"content-type": "application/json"}
        error_of(http.post("/v1/classify", content=pieces, headers=headers), 413, "too_large")
        body = {"model": "bert-tiny", "manifest": {}, "records": [{}] * 3}
        error_of(http.post("/v1/classify", json=body), 413, "too_large")
        assert list((tmp_path / "data" / "incoming").iterdir()) == []


def test_a_client_that_leaves_in_the_middle_leaves_nothing(service, http, training_path):
    before = len(http.get("/v1/files").json()["data"])
    host, port = service.removeprefix("http://").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5000\r\n"
        "content-type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + training_path.read_bytes()[:500])
    assert len(http.get("/v1/files").json()["data"]) == before
