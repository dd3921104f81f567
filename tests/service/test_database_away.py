"""A service whose database is away for a while, is busy, or has no room: every answer says so, and no job is lost."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest

from http_requests import job_body, open_client, status_of, upload
from own_postgresql import own_postgresql
from running_service import running_service, wait_until

on_postgresql = pytest.mark.skipif(
    "RAPT_TEST_POSTGRESQL" not in os.environ, reason="needs a PostgreSQL server; run make test-postgres"
)


def check_that_it_says_when_to_come_again(answer):
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert "x-should-retry" not in answer.headers
    assert answer.headers["x-request-id"].startswith("req_")
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("unavailable", "server_error")


def test_a_database_that_finds_no_room_is_503_and_in_the_log(service, http, caplog):
    body = {"filename": "f", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl"}
    assert http.post("/v1/uploads", json=body).status_code == 200
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
        answer = http.post("/v1/uploads", json=body)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check_that_it_says_when_to_come_again(answer)
    assert "the database gave no answer: OperationalError" in caplog.text
    assert http.post("/v1/uploads", json=body).status_code == 200


def test_one_connection_is_enough_for_every_request(backbones, training_path, tmp_path):
    settings = {"database_connections": 1}
    with (
        running_service(tmp_path, backbones=backbones, settings=settings) as url,
        open_client(url) as http,
    ):
        file = upload(http, training_path).json()["id"]
        job = http.post("/v1/fine_tuning/jobs", json=job_body(file)).json()["id"]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: http.get(f"/v1/fine_tuning/jobs/{job}").status_code, range(64)))
        assert set(answers) == {200}
        wait_until(lambda: status_of(http, job) == "succeeded")


@on_postgresql
def test_a_database_that_stops_makes_every_answer_503_and_a_job_wait(backbones, training_path, tmp_path):
    with (
        own_postgresql() as server,
        running_service(tmp_path, backbones=backbones, settings={"database_url": server.url}) as url,
        open_client(url) as http,
    ):
        file = upload(http, training_path).json()["id"]
        job = http.post("/v1/fine_tuning/jobs", json=job_body(file, n_epochs=60)).json()["id"]
        events = f"/v1/fine_tuning/jobs/{job}/events?limit=100"
        wait_until(lambda: any(event["type"] == "metrics" for event in http.get(events).json()["data"]))
        server.stop()
        check_that_it_says_when_to_come_again(http.get("/readyz"))
        check_that_it_says_when_to_come_again(http.get(f"/v1/files/{file}"))
        check_that_it_says_when_to_come_again(http.delete(f"/v1/files/{file}"))
        # At the door, which asks whose key it is.
        check_that_it_says_when_to_come_again(http.get("/v1/files", headers={"authorization": "Bearer nobodys-key"}))
        assert http.get("/healthz").status_code == 200
        server.start()
        wait_until(lambda: http.get("/readyz").status_code == 200)
        wait_until(lambda: status_of(http, job) in ("succeeded", "failed"))
        assert status_of(http, job) == "succeeded"
        said = [event["message"] for event in http.get(events).json()["data"]]
        assert said.count("the job is running") == 1


@on_postgresql
def test_a_service_opens_no_more_connections_than_its_setting_says(backbones, training_path, tmp_path):
    # With three for the server's own and two for us, ten are one too many: 87 of 200 requests were answered 500.
    settings = {"database_connections": 8}
    with (
        own_postgresql("max_connections=14") as server,
        running_service(tmp_path, backbones=backbones, settings=settings | {"database_url": server.url}) as url,
        open_client(url) as http,
    ):
        upload(http, training_path)
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda _: http.get("/v1/files").status_code, range(200)))
        assert set(answers) == {200}


@on_postgresql
def test_a_server_without_connections_left_is_503(backbones, tmp_path):
    with (
        own_postgresql("max_connections=6") as server,
        running_service(tmp_path, backbones=backbones, settings={"database_url": server.url}) as url,
        open_client(url) as http,
        ThreadPoolExecutor(40) as pool,
    ):
        answers = list(pool.map(lambda _: http.get("/v1/files"), range(200)))
        assert {answer.status_code for answer in answers} <= {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                check_that_it_says_when_to_come_again(answer)
