"""What holds for every route: the shape of errors, the log, the door, the limits, and the OpenAPI document."""

import logging
import re

import pytest

from http_requests import SECRET, error_of, open_client, upload
from rapt.service.http.schemas import JobRequest
from rapt.version import __version__
from running_service import running_service, wait_until


def test_the_service_says_that_it_answers(http):
    response = http.get("/healthz")
    assert response.json() == {"status": "ok", "version": __version__}
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", SECRET.encode(), b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut off", "text", "list", "string", "not utf-8", "nested", "endless number"],
)
@pytest.mark.parametrize("route", ["/v1/fine_tuning/jobs", "/v1/classify"])
def test_a_body_that_is_no_request_is_refused(http, route, body):
    response = http.post(route, content=body, headers={"content-type": "application/json"})
    error_of(response, 400, "invalid_request")


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
        "GET /v1/codes/{model}",
        "GET /v1/codes/{model}/code.safetensors",
        "GET /v1/pools",
        "POST /v1/pools",
        "GET /v1/pools/{pool_id}",
        "DELETE /v1/pools/{pool_id}",
        "POST /v1/pools/{pool_id}/keys",
        "POST /v1/pools/{pool_id}/contributions",
        "POST /v1/pools/{pool_id}/contributions/packed",
        "POST /v1/pools/{pool_id}/contributions/take-back",
        "POST /v1/pools/{pool_id}/close",
        "POST /v1/pools/{pool_id}/advance",
        "GET /v1/vocabularies/{model}",
        "GET /v1/vocabularies/{model}/tokenizer.json",
        "GET /v1/vocabularies/{model}/embeddings.safetensors",
        "GET /v1/keys",
        "POST /v1/keys/{key_id}/rotate",
        "POST /v1/keys/{key_id}/revoke",
        "GET /v1/usage",
        "GET /v1/audit",
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
        running_service(tmp_path, backbones=backbones, settings={"admin_key": key}) as url,
        open_client(url) as http,
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
    limits = {"max_file_bytes": 1000, "max_json_bytes": 2000, "max_records_per_request": 2}
    with (
        running_service(tmp_path / "data", backbones=backbones, settings=limits) as url,
        open_client(url) as http,
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
