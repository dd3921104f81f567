"""Files over HTTP, whole and in parts: what comes in, what is refused at the door, and what is left of it."""

import hashlib
import os
import resource
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest
from sqlalchemy import insert

from http_requests import SECRET, done_job, error_of, job_body, open_client, upload
from rapt.service.storage.callers import DEVELOPER
from rapt.service.storage.file_rows import add_file
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tables import FILES
from running_service import running_service
from stored_material import SUMMARY


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
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": SECRET, "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
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
        open_client(url) as client,
    ):
        where = f"/v1/files/{upload(client, training_path).json()['id']}/content"
        assert client.get(where).content == training_path.read_bytes()
        (blob,) = (tmp_path / "blobs").glob("??/*")
        whole = blob.read_bytes()
        for damaged in (whole[:-1] + b"#", whole[:-1], whole + b"#"):
            blob.write_bytes(damaged)
            answer = client.get(where)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged")


def test_the_content_of_a_large_file_breaks_off_before_its_last_bytes_if_they_are_others(backbones, tmp_path):
    content = os.urandom(9 * 2**20)
    with open_store(tmp_path) as store, store.directory.stage_bytes(content) as staged:
        file = add_file(store, staged, SUMMARY, filename="f", caller=DEVELOPER, now=7, max_bytes=10**9)
        blob = store.blobs.path(file.sha256)
    with served(backbones, tmp_path) as client:
        where = f"/v1/files/{file.id}/content"
        assert client.get(where).content == content
        blob.write_bytes(b"#" + content[1:])
        got: list[int] = []
        with client.stream("GET", where) as answer, pytest.raises(httpx2.RemoteProtocolError):
            got.extend(map(len, answer.iter_raw()))
        assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(content)))
        assert sum(got) <= 8 * 2**20
        blob.write_bytes(content)
        assert client.get(where).content == content


def test_a_page_of_files_has_a_bound_and_names_the_next(backbones, tmp_path):
    """A page of 10,000 files took seconds of the one process that answers everybody."""
    with open_store(tmp_path) as store:
        content = {"tenant": "local", "filename": "f", "purpose": "fine-tune", "bytes": 1, "sha256": 64 * "a"}
        counts = dict.fromkeys(("created_at", "records", "tokens", "longest", "plain_tokens", "labels"), 1)
        how = {"vocabulary_hash": "sha256:ab", "mechanism": {}, "insecure_seed": False}
        with store.database.write() as connection:
            connection.execute(insert(FILES), [{"id": f"file-{n}", **content, **counts, **how} for n in range(1001)])
    with served(backbones, tmp_path) as http:
        page = http.get("/v1/files").json()
        assert (len(page["data"]), page["has_more"], page["last_id"]) == (1000, True, "file-1")
        rest = http.get("/v1/files", params={"after": page["last_id"], "limit": 10_000}).json()
        assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (["file-0"], False)


def test_a_tenant_has_so_many_files_and_models_however_small(backbones, tmp_path, training_path):
    with served(backbones, tmp_path, tenant_files=1, tenant_models=1) as http:
        file = upload(http, training_path).json()["id"]
        upload_id, parts = in_parts(http, training_path.read_bytes())
        done_job(http, job_body(file, n_epochs=1))
        for refused in (
            upload(http, training_path),
            http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts}),
            http.post("/v1/fine_tuning/jobs", json=job_body(file, n_epochs=1)),
        ):
            error = error_of(refused, 429, "rate_limit_exceeded")
            assert "at most 1 " in error["message"]
            assert "delete some" in error["message"]
            assert "retry-after" not in refused.headers
        assert http.delete(f"/v1/files/{file}").status_code == 200
        assert http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts}).status_code == 200


@contextmanager
def served(backbones, data, **settings):
    with (
        running_service(data, backbones=backbones, settings=settings) as url,
        open_client(url) as http,
    ):
        yield http


def begin(http, size):
    body = {"filename": "f", "purpose": "fine-tune", "bytes": size, "mime_type": "text/jsonl"}
    answer = http.post("/v1/uploads", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def add(http, upload_id, content):
    return http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("blob", content)})


def in_parts(http, content, pieces=3):
    """An upload whose parts are all there, and their ids."""
    upload_id, step = begin(http, len(content)), -(-len(content) // pieces)
    parts = [add(http, upload_id, content[at : at + step]) for at in range(0, len(content), step)]
    return upload_id, [part.json()["id"] for part in parts]


def bytes_below(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_parts_become_the_file_and_a_repeated_end_gives_the_same_one(http, training_path):
    content = training_path.read_bytes()
    upload_id, parts = in_parts(http, content)
    body = {"part_ids": parts, "md5": hashlib.md5(content).hexdigest()}
    first = http.post(f"/v1/uploads/{upload_id}/complete", json=body)
    assert first.json()["status"] == "completed"
    assert http.get(f"/v1/files/{first.json()['file']['id']}/content").content == content
    assert http.post(f"/v1/uploads/{upload_id}/complete", json=body).json() == first.json()
    error_of(http.post(f"/v1/uploads/{upload_id}/complete", json=body | {"md5": "0" * 32}), 400, "invalid_request")
    assert http.delete(f"/v1/files/{first.json()['file']['id']}").status_code == 200
    error_of(http.post(f"/v1/uploads/{upload_id}/complete", json=body), 404, "not_found")


def test_parts_that_do_not_have_the_md5_of_the_request_are_no_file_yet(http, training_path):
    content = training_path.read_bytes()
    upload_id, parts = in_parts(http, content)
    wrong = hashlib.md5(content[1:]).hexdigest()
    answer = http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts, "md5": wrong})
    assert "md5" in error_of(answer, 400, "invalid_request")["message"]
    right = hashlib.md5(content).hexdigest().upper()
    answer = http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts, "md5": right})
    assert answer.json()["status"] == "completed"
    error_of(
        http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts, "md5": "z"}), 400, "invalid_request"
    )


def test_an_upload_may_have_all_the_bytes_of_its_tenant(backbones, tmp_path, training_path):
    content = training_path.read_bytes()
    with served(backbones, tmp_path, tenant_bytes=len(content)) as http:
        upload_id, parts = in_parts(http, content)
        assert http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts}).status_code == 200
        assert http.get("/v1/usage").json()["bytes"] == len(content)


def test_bytes_on_their_way_in_stay_within_the_quota(backbones, tmp_path):
    most = 3 * 1024 * 1024

    def pieces():
        for _ in range(100):
            yield b"0" * (1024 * 1024)
            seen.append(bytes_below(tmp_path / "data" / "incoming"))

    def send(_):
        head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        headers = {"content-type": "multipart/form-data; boundary=x"}
        with open_client(http.base_url) as client:
            try:
                return client.post("/v1/files", content=(p for p in (head, *pieces())), headers=headers).status_code
            except httpx2.TransportError:  # the service has answered and closed, in the middle of what is sent
                return None

    seen = []
    with served(backbones, tmp_path / "data", tenant_bytes=most) as http:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(send, range(8))) <= {429, None}
        assert max(seen) <= most
        assert http.get("/v1/usage").json()["bytes"] == 0
        assert bytes_below(tmp_path / "data" / "incoming") == 0


def test_a_tenant_with_little_room_is_refused_whatever_the_size_of_the_part(backbones, tmp_path, training_path):
    with served(backbones, tmp_path, tenant_bytes=1000) as http:
        error_of(upload(http, training_path), 429, "rate_limit_exceeded")
        error_of(add(http, begin(http, 5000), b"0" * 1001), 429, "rate_limit_exceeded")
        assert add(http, begin(http, 5000), b"0" * 1000).status_code == 200


def test_nothing_that_comes_in_lies_in_the_temporary_folder_of_the_system(
    backbones, tmp_path, training_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there is no such folder"))
    with served(backbones, tmp_path / "data") as http:
        assert upload(http, training_path).status_code == 200
        assert add(http, begin(http, 9_000_000), b"0" * 3_000_000).status_code == 200
        upload_id, parts = in_parts(http, training_path.read_bytes())
        assert http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts}).status_code == 200


def test_a_disk_without_room_is_503_and_in_the_log_and_keeps_nothing(backbones, tmp_path, caplog):
    with served(backbones, tmp_path) as http:
        upload_id = begin(http, 9_000_000)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
            answer = add(http, upload_id, b"0" * 3_000_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "the service could not store a file: File too large" in caplog.text
        assert bytes_below(tmp_path / "incoming") == bytes_below(tmp_path / "parts") == 0
        assert add(http, upload_id, b"0" * 3_000_000).status_code == 200


def test_a_full_disk_is_503_and_in_the_log_and_keeps_nothing(backbones, tmp_path, caplog):
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "rapt", tmp_path]).returncode:
        pytest.skip("only root may mount a file system, and not everywhere")
    try:
        with served(backbones, tmp_path / "data") as http:
            upload_id = begin(http, 20_000_000)
            answer = add(http, upload_id, b"0" * 20_000_000)
            assert answer.status_code == 503
            assert "the service could not store a file: No space left on device" in caplog.text
            assert bytes_below(tmp_path / "data" / "incoming") == bytes_below(tmp_path / "data" / "parts") == 0
            assert add(http, upload_id, b"0" * 1_000_000).status_code == 200
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_part_has_at_least_one_byte(http):
    """With empty parts a tenant could have made files on the disk without end."""
    error_of(add(http, begin(http, 10), b""), 400, "invalid_request")


@pytest.mark.parametrize("charset", ["undefined", "idna", "utf-16", "unicode_escape", "hex", "none"])
def test_whatever_charset_a_form_names_it_is_read_or_refused(http, training_path, charset):
    """Python's `undefined` raises an error of its own, and that was 500."""
    content = b"".join(
        b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n' % part
        for part in ((b"purpose", b"fine-tune"), (b'file"; filename="\\ud800\xff--..', training_path.read_bytes()))
    )
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    answer = http.post("/v1/files", content=content + b"--b--\r\n", headers=headers)
    assert answer.status_code in (200, 400)
    assert http.get("/v1/files").status_code == 200


def test_a_file_and_what_becomes_of_an_upload_say_when_they_go(http, training_path):
    form = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    found = upload(http, training_path, **form).json()
    assert found["expires_at"] == found["created_at"] + 3600
    assert http.get(f"/v1/files/{found['id']}").json() == found
    assert upload(http, training_path).json()["expires_at"] is None
    content = training_path.read_bytes()
    start = {"filename": "f", "purpose": "fine-tune", "bytes": len(content), "mime_type": "text/plain"}
    start["expires_after"] = {"anchor": "created_at", "seconds": 7200}
    begun = http.post("/v1/uploads", json=start).json()
    part = http.post(f"/v1/uploads/{begun['id']}/parts", files={"data": content}).json()
    ended = http.post(f"/v1/uploads/{begun['id']}/complete", json={"part_ids": [part["id"]]}).json()
    assert ended["file"]["expires_at"] == ended["file"]["created_at"] + 7200
