import pytest

from blob_stores import has_s3, own_s3
from stored_material import tenant


@pytest.fixture(scope="session")
def s3():
    if not has_s3():
        pytest.skip("needs a server of S3; run make test-s3")
    with own_s3():
        yield


@pytest.fixture
def ada(store):
    return tenant(store, "ada")


@pytest.fixture
def bob(store):
    return tenant(store, "bob")
