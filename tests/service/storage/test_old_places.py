"""Data of an earlier version, and of a service that moves its blobs: brought along, whatever is killed on the way."""

import subprocess
import sys

import pytest

import old_data
from blob_stores import object_store
from old_data import ADAPTERS, FILE, write_old_data
from rapt.errors import DamagedError, UsageError
from rapt.service.storage.blob_owner import own_blobs
from rapt.service.storage.callers import DEVELOPER, LOCAL
from rapt.service.storage.file_rows import get_file, open_file
from rapt.service.storage.model_rows import adapter_archive, delete_model, get_model
from rapt.service.storage.recovery import join_store, open_store
from rapt.service.storage.tenant_rows import usage_of
from rapt.wire.adapter_files import unpack_adapter
from stored_material import kept_bytes


def check(store):
    """All of the old data is there, in the new form, and nothing else."""
    file = get_file(store, "file-old", tenant=LOCAL)
    with open_file(store, file) as stream:
        assert stream.read() == FILE
    models = {name: get_model(store, f"ft:{name}", tenant=LOCAL) for name in ADAPTERS}
    for name, model in models.items():
        archive = adapter_archive(store, model)
        assert model.adapter == name
        assert model.bytes == len(archive)
        assert unpack_adapter(archive) == {"rapt.json": b"{}", "adapter_model.safetensors": ADAPTERS[name]}
    digests = {model.sha256 for model in models.values()}
    assert len(digests) == 2
    assert set(kept_bytes(store)) == {file.sha256, *digests}
    assert usage_of(store, LOCAL).bytes == file.bytes + sum(model.bytes for model in models.values())
    assert not store.directory.old_adapters.exists()
    assert not (store.directory.root / "files").exists()
    assert list(store.directory.incoming.iterdir()) == []


def test_data_of_an_earlier_version_is_brought_along_with_its_true_size(opening):
    write_old_data(opening.data, url=opening.url)
    for _ in range(2):
        with open_store(opening.data, url=opening.url) as store:
            check(store)


def test_whatever_moment_of_it_is_killed_the_next_start_ends_right(tmp_path):
    """Of both at once: adapters of an earlier version, and blobs that go to another folder from now on."""
    write_old_data(tmp_path / "old")
    blobs, copies = f"file://{tmp_path}/elsewhere", tmp_path / "copies"
    copies.mkdir()
    command = [sys.executable, old_data.__file__, str(tmp_path / "old"), str(copies), blobs]
    subprocess.run(command, check=True, timeout=300)
    assert len(list(copies.iterdir())) > 10
    for copy in copies.iterdir():
        with open_store(copy, blobs=f"{blobs}/{copy.name}") as store:
            check(store)
            assert list(store.directory.blobs.glob("*/*")) == []


def test_a_model_whose_adapter_is_lost_does_not_stop_the_others(tmp_path, caplog):
    write_old_data(tmp_path)
    for path in (tmp_path / "adapters" / "aa").iterdir():
        path.unlink()
    with open_store(tmp_path) as store:
        with pytest.raises(DamagedError):
            adapter_archive(store, get_model(store, "ft:aa", tenant=LOCAL))
        assert adapter_archive(store, get_model(store, "ft:bb", tenant=LOCAL))
        delete_model(store, "ft:aa", caller=DEVELOPER)
    assert "the adapter of model number 1 is missing" in caplog.text


def test_a_service_takes_its_blobs_along_to_an_object_store(tmp_path):
    write_old_data(tmp_path)
    with object_store("memory://") as url:
        for _ in range(2):
            with open_store(tmp_path, blobs=url) as store:
                check(store)
                assert [path for path in store.directory.blobs.rglob("*") if path.is_file()] == []
        # Who forgets where they are gets none, and loses none.
        with pytest.raises(UsageError, match="none of them is there"), open_store(tmp_path):
            pass
        with join_store(tmp_path) as worker, pytest.raises(UsageError, match="the same to `rapt serve`"):
            own_blobs(worker)
        with open_store(tmp_path, blobs=url) as store:
            check(store)


def test_blobs_of_another_service_are_refused_and_left_alone(tmp_path):
    with object_store("memory://") as url:
        write_old_data(tmp_path / "mine")
        with open_store(tmp_path / "mine", blobs=url):
            pass
        write_old_data(tmp_path / "other")
        with pytest.raises(UsageError, match="of this service only"), open_store(tmp_path / "other", blobs=url):
            pass
        with open_store(tmp_path / "other") as store:
            check(store)
        with open_store(tmp_path / "mine", blobs=url) as store:
            check(store)


def test_what_is_missing_is_said_and_does_not_stop_the_rest(tmp_path, caplog):
    digest = write_old_data(tmp_path)
    with open_store(tmp_path) as store:
        store.blobs.delete(digest)
    with open_store(tmp_path) as store, pytest.raises(DamagedError):
        open_file(store, get_file(store, "file-old", tenant=LOCAL))
    assert "1 of the 3 blobs that files and models name are missing" in caplog.text
