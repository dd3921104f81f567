import functools

import pytest

from tiny_backbones import tiny_backbone


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Where `tiny` writes its models, each in a folder of its architecture's name."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The random backbone of an architecture, by its name; made once for all tests."""
    return functools.cache(lambda architecture: tiny_backbone(architecture, tiny_folder / architecture))
