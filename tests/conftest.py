"""Options and seeds for every test.

Statistical tests draw from `rng`, which is fixed by `--seed` and the test's name: the same in every run, other numbers
in every test, and fresh everywhere with another `--seed`, as the nightly run does.
"""

import gc
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("rapt", deadline=None)
settings.load_profile("rapt")

DEFAULT_SEED = 2305_06212

# The files that take longest come first: with `--dist loadfile` one that came last would be waited for by all.
LONGEST_FIRST = (
    "service/jobs/test_tuning_process.py",
    "test_docs.py",
    "service/test_hostile_tenant.py",
    "compare/test_bench.py",
    "demo/test_demo_run.py",
    "cli/test_cli_streams.py",
    "service/test_crash.py",
    "service/answers/test_general_backbones.py",
    "local/test_nearest.py",
    "local/test_guarantee.py",
    "cli/test_cli_tune_predict.py",
    "local/test_calibration.py",
    "local/test_corpus.py",
    "audit/test_program_audit.py",
    "service/jobs/test_worker.py",
    "service/http/test_connections.py",
    "service/http/test_server.py",
)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--network", action="store_true", help="run the tests marked network as well")
    parser.addoption("--seed", type=int, default=DEFAULT_SEED, help="seed of all statistical tests")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Look for no garbage in the million objects that are imported and collected, now or later: they stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# What one run leaves in its folders is below 2 GB.
ROOM_IN_MEMORY = 8 * 2**30


def pytest_configure(config):
    """Put the folders of tests into memory where there is room: databases wait for a disk at every commit."""
    memory = Path("/dev/shm")
    if memory.is_dir() and "PYTEST_DEBUG_TEMPROOT" not in os.environ:
        found = os.statvfs(memory)
        if found.f_bavail * found.f_frsize > ROOM_IN_MEMORY and not found.f_flag & os.ST_NOEXEC:
            os.environ["PYTEST_DEBUG_TEMPROOT"] = str(memory)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Half as many processes more than cores: tests wait for disks, clocks and processes of their own."""
    return (3 * (os.cpu_count() or 1) + 1) // 2


def pytest_report_header(config):
    return f"seed of the statistical tests: {config.getoption('--seed')} (change it with --seed)"


def pytest_collection_modifyitems(config, items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    for marker in ("slow", "network"):
        if not config.getoption(f"--{marker}"):
            skip = pytest.mark.skip(reason=f"marked {marker}; run with --{marker}")
            for item in items:
                if marker in item.keywords:
                    item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def hub_cache(tmp_path_factory):
    """The hub's cache of the tests, which holds the model `few-words` and nothing that this machine has downloaded."""
    from few_words import write_few_words

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(write_few_words(tmp_path_factory.mktemp("hub"))))
        yield


@pytest.fixture
def rng(request):
    """A generator of this test's own."""
    name = zlib.crc32(request.node.nodeid.encode())
    return np.random.default_rng([request.config.getoption("--seed"), name])
