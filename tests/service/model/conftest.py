import functools

import pytest

from tiny_backbones import tiny_backbone


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The random backbone of an architecture, by its name; made once for all tests."""
    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda architecture: tiny_backbone(architecture, folder / architecture))
