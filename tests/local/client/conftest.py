"""What the tests of the client share: a real service, and a privatized file for it."""

import pytest

from client_material import METHOD, Awaited
from rapt.local.client import ServiceClient
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from running_service import running_service, save_privatized
from tuning_material import separable_file


@pytest.fixture(scope="module")
def backbones():
    return load_backbones(load_settings({"models": "bert-tiny", "precision": "float32"}))


@pytest.fixture(scope="module")
def file(backbones):
    return separable_file(backbones["bert-tiny"], records=64, plain=4, fixed=True)


@pytest.fixture(scope="module")
def path(file, tmp_path_factory):
    return save_privatized(file, tmp_path_factory.mktemp("privatized") / "mrs-smiths-complaints.jsonl")


@pytest.fixture(scope="module")
def service(backbones, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as url:
        yield url


@pytest.fixture(params=[ServiceClient, Awaited])
def client(service, request):
    with request.param(service) as connected:
        yield connected


@pytest.fixture(scope="module")
def done(service, path):
    """A job that succeeded."""
    with ServiceClient(service) as connected:
        job = connected.create_job(file_id=connected.upload(path).id, model="bert-tiny", method=METHOD, seed=1)
        return connected.wait(job.id)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parts"
