"""Requests to a service that several tests send, and what every answer that is an error must be."""

import json
from pathlib import Path

import httpx2

from running_service import wait_until

SECRET = "the patient said that it hurts"
RUN = {"num_virtual_tokens": 4, "n_epochs": 2, "batch_size": 16}
ENDLESS = {"n_epochs": 1000, "batch_size": 1}  # minutes on any machine, for jobs that are stopped


def open_client(url, **options):
    """A bare HTTP client. It trusts no certificate: to read those of the system takes longer than most tests do."""
    return httpx2.Client(base_url=url, **{"timeout": 60, "trust_env": False, "verify": False, **options})


def upload(http, path, **changes):
    """The answer to the upload of a file."""
    form = {"purpose": "fine-tune", **changes}
    with path.open("rb") as stream:
        return http.post("/v1/files", data=form, files={"file": ("mine.jsonl", stream)})


def job_body(file_id, **hyperparameters):
    """What asks for a short run."""
    method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": RUN | hyperparameters}}
    return {"model": "bert-tiny", "training_file": file_id, "method": method, "seed": 5}


def status_of(http, job_id):
    """How a job stands."""
    return http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"]


def done_job(http, body):
    """A job that was asked for, once it has succeeded."""
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    where = f"/v1/fine_tuning/jobs/{answer.json()['id']}"
    wait_until(lambda: http.get(where).json()["status"] not in ("queued", "running"))
    job = http.get(where).json()
    assert job["status"] == "succeeded", job["error"]
    return job


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


def send(http, path, body):
    """The answer to a JSON body."""
    return http.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})


def status_bytes(pid, name):
    """A figure of the memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
