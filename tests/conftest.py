"""Options and seeds for every test.

Statistical tests draw from `rng`, which is fixed by `--seed` and the test's name: the same in every run, other numbers
in every test, and fresh everywhere with another `--seed`, as the nightly run does.
"""

import os
import zlib

import numpy as np
import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("rapt", deadline=None)
settings.load_profile("rapt")

DEFAULT_SEED = 2305_06212


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--network", action="store_true", help="run the tests marked network as well")
    parser.addoption("--seed", type=int, default=DEFAULT_SEED, help="seed of all statistical tests")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Half as many processes more than cores: tests wait for disks, clocks and processes of their own."""
    return (3 * (os.cpu_count() or 1) + 1) // 2


def pytest_report_header(config):
    return f"seed of the statistical tests: {config.getoption('--seed')} (change it with --seed)"


def pytest_collection_modifyitems(config, items):
    for marker in ("slow", "network"):
        if not config.getoption(f"--{marker}"):
            skip = pytest.mark.skip(reason=f"marked {marker}; run with --{marker}")
            for item in items:
                if marker in item.keywords:
                    item.add_marker(skip)


@pytest.fixture
def rng(request):
    """A generator of this test's own."""
    name = zlib.crc32(request.node.nodeid.encode())
    return np.random.default_rng([request.config.getoption("--seed"), name])
