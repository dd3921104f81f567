"""A service whose files and adapters are in an object store, and one whose blobs were damaged."""

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from blob_stores import object_store
from http_requests import open_client
from rapt.errors import DamagedError
from rapt.local.client import ServiceClient
from running_service import running_service

VALUES = {"num_virtual_tokens": 2, "n_epochs": 2, "batch_size": 32}
METHOD = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": VALUES}}


@pytest.fixture
def url():
    with object_store("memory://") as found:
        yield found


@pytest.fixture
def service(backbones, tmp_path, url):
    with running_service(tmp_path / "data", backbones=backbones, settings={"blobs": url}) as address:
        yield address


@pytest.fixture
def tuned(service, training_path):
    """A file and a model."""
    with ServiceClient(service) as client:
        file = client.upload(training_path)
        job = client.create_job(file_id=file.id, model="bert-tiny", method=METHOD, seed=1)
        yield file, client.wait(job.id, seconds_between=0.05).fine_tuned_model


def objects_of(url):
    """All objects below a URL, by name."""
    memory = MemoryFileSystem()
    return {path.rpartition("/")[2]: path for path in memory.find(url.removeprefix("memory:/"))}


def test_the_whole_story_leaves_files_and_adapters_in_the_object_store_alone(
    service, tuned, url, tmp_path, training_path, training_file
):
    file, model = tuned
    with ServiceClient(service) as client, open_client(service) as http:
        # The file, two checkpoints of which the last is the result, and whose they are.
        assert len(objects_of(url)) == 1 + 2 + 1
        assert [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()] == []
        assert http.get(f"/v1/files/{file.id}/content").content == training_path.read_bytes()
        assert len(client.classify(model, training_file)) == len(training_file.records)
        assert http.get(f"/v1/models/{model}/adapter").content[:2] == b"PK"
        client.delete_model(model)
        client.delete_file(file.id)
        assert list(objects_of(url)) == ["owner"]
        assert http.get("/v1/usage").json()["bytes"] == 0


def test_what_was_damaged_there_is_an_error_and_no_answer(service, tuned, url, training_file):
    file, model = tuned
    memory = MemoryFileSystem()
    for name, path in objects_of(url).items():
        content = memory.cat_file(path)
        if name != "owner":
            memory.pipe_file(path, content[:-1] + bytes([content[-1] ^ 1]))
    with ServiceClient(service) as client, open_client(service) as http:
        for path in (f"/v1/models/{model}/adapter", f"/v1/files/{file.id}/content"):
            answer = http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (DamagedError.status, DamagedError.code)
        with pytest.raises(Exception, match="must have its digest, and was damaged"):
            client.classify(model, training_file)
        with pytest.raises(Exception, match="must have its digest, and was damaged"):
            client.create_job(file_id=file.id, model="bert-tiny", method=METHOD, seed=1)
