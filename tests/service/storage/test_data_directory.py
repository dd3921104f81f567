"""Who may read what a service keeps: its owner, whatever the folder and what is in it were before."""

import os
import stat
from contextlib import ExitStack

import pytest

from http_requests import done_job, job_body, open_client, upload
from rapt.errors import UsageError
from rapt.service.storage import recovery
from rapt.service.storage.recovery import join_store, open_store
from running_service import running_service


def readable_by_others(folder):
    return [path.name for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]


def test_all_that_a_service_writes_is_its_owners(backbones, training_path, tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with (
        running_service(data, backbones=backbones, settings={"run_state_seconds": 0}) as url,
        open_client(url) as http,
    ):
        file = upload(http, training_path).json()["id"]
        body = {"filename": "f", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl"}
        begun = http.post("/v1/uploads", json=body).json()["id"]
        assert http.post(f"/v1/uploads/{begun}/parts", files={"data": ("blob", b"12345")}).status_code == 200
        done_job(http, job_body(file))
        assert readable_by_others(data) == []
    assert readable_by_others(data) == []


def test_what_an_earlier_version_left_open_is_closed(tmp_path, caplog):
    with open_store(tmp_path / "data"):
        pass
    for path in (tmp_path / "data", *(tmp_path / "data").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with join_store(tmp_path / "data"):
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    with open_store(tmp_path / "data"):
        assert readable_by_others(tmp_path / "data") == []
    assert "could be read by others" in caplog.text


@pytest.mark.parametrize("open_it", [open_store, join_store])
def test_a_folder_of_somebody_else_is_left_as_it_was(tmp_path, open_it):
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "home" / "letters").touch(mode=0o644)
    (tmp_path / "home").chmod(0o755)  # whatever the mask of a service in this process made of it
    (tmp_path / "home" / "letters").chmod(0o644)
    with pytest.raises(UsageError, match="readable by its owner only"), open_it(tmp_path / "home"):
        pass
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o755
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letters"]
    with open_it(tmp_path / "home" / "new"):
        assert readable_by_others(tmp_path / "home" / "new") == []


def test_the_mask_of_new_files_comes_back_when_stores_overlap(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "_MASKS", [])  # another test's service may be open in this process
    (tmp_path / "one").mkdir(mode=0o700)
    before = os.umask(0o022)
    try:
        first, second = ExitStack(), ExitStack()
        first.enter_context(open_store(tmp_path / "one"))
        second.enter_context(open_store(tmp_path / "two"))
        first.close()
        assert os.umask(0o077) == 0o077, "a store is open"
        second.close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
