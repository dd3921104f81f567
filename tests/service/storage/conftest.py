import pytest

from rapt.service.storage.recovery import open_store
from stored_material import tenant


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def ada(store):
    return tenant(store, "ada")


@pytest.fixture
def bob(store):
    return tenant(store, "bob")
