import functools

import pytest

from http_requests import open_client
from rapt.service.backbone.opening import load_backbone
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from rapt.service.storage.recovery import open_store
from running_service import begin_data_directory, running_service, save_privatized
from tiny_backbones import tiny_backbone
from tuning_material import separable_file


@pytest.fixture(scope="session")
def backbones():
    """One real, tiny, frozen BERT under the name that it is served by."""
    return load_backbones(load_settings({"models": "bert-tiny", "precision": "float32"}))


@pytest.fixture(scope="session")
def backbone():
    """The same by itself; a module that needs another has its own."""
    return load_backbone("bert-tiny", precision="float32", device="cpu")


@pytest.fixture
def store(tmp_path):
    with open_store(begin_data_directory(tmp_path / "data")) as opened:
        yield opened


@pytest.fixture(scope="session")
def training_file(backbones):
    """Two classes that are easy to tell apart, with four plain tokens fixed for the file."""
    return separable_file(backbones["bert-tiny"], records=64, plain=4, fixed=True)


@pytest.fixture(scope="session")
def training_path(training_file, tmp_path_factory):
    return save_privatized(training_file, tmp_path_factory.mktemp("privatized") / "training.jsonl")


@pytest.fixture(scope="module")
def service(backbones, tmp_path_factory):
    """The URL of a service that the tests of one module share."""
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as url:
        yield url


@pytest.fixture
def http(service):
    """A bare HTTP client, to send what no well-behaved client would."""
    with open_client(service) as client:
        yield client


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Where `tiny` writes its models, each in a folder of its architecture's name."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The random backbone of an architecture, by its name; made once for all tests."""
    return functools.cache(lambda architecture: tiny_backbone(architecture, tiny_folder / architecture))
