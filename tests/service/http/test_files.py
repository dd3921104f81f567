"""Files over HTTP: what comes in, what is refused at the door, and what is left of it."""

import hashlib
import socket

import httpx2
import pytest

from http_requests import SECRET, error_of, job_body, upload
from running_service import running_service


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
        "sha256": hashlib.sha256(training_path.read_bytes()).hexdigest(),
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


def test_the_content_of_a_damaged_blob_is_refused_before_its_first_byte(backbones, training_path, tmp_path):
    with (
        running_service(tmp_path, backbones=backbones) as url,
        httpx2.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        where = f"/v1/files/{upload(client, training_path).json()['id']}/content"
        assert client.get(where).content == training_path.read_bytes()
        (blob,) = (tmp_path / "blobs").glob("??/*")
        whole = blob.read_bytes()
        for damaged in (whole[:-1] + b"#", whole[:-1], whole + b"#"):
            blob.write_bytes(damaged)
            answer = client.get(where)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged")
