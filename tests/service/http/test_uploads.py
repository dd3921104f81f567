"""Uploads: where bytes lie on their way in, what they count against, and how parts become a file."""

import hashlib
import os
import resource
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest

from http_requests import error_of, upload
from running_service import running_service


@contextmanager
def served(backbones, data, **settings):
    with (
        running_service(data, backbones=backbones, settings=settings) as url,
        httpx2.Client(base_url=url, timeout=60, trust_env=False) as http,
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
        with httpx2.Client(base_url=http.base_url, timeout=60, trust_env=False) as client:
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
    """Of nothing a tenant could have made files on the disk without end."""
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
