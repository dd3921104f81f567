"""Ray clusters on this machine: one that the tests share, and some that are hurt on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from rapt.cluster import join_cluster

PLACES = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
STORE_BYTES = 80 * 2**20
# The seconds after which Ray believes that a node is gone are made few.
IMPATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "2",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "2",
}


def pytest_collection_modifyitems(items):
    if find_spec("ray") is None:
        for item in items:
            if "ray" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs Ray; run `make test-ray`"))


@pytest.fixture(scope="session")
def cluster():
    """A cluster of two cores, in processes of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PLACES)  # its workers load `hurt_tasks`, as they load rapt
        with join_cluster(cores=2, store_bytes=STORE_BYTES) as joined:
            yield joined


class Nodes:
    """Nodes of a cluster that another process holds, and kills on command."""

    def __init__(self, process):
        self._process = process
        self.address = json.loads(process.stdout.readline())["address"]

    def kill(self, which):
        """Kill the processes of "head" or of "node"; returns when they are dead."""
        print(which, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline()


@pytest.fixture
def nodes(tmp_path_factory, monkeypatch):
    """Starts clusters: `nodes(count=1, **options)` is a context manager of `Nodes`."""
    for name, value in IMPATIENT.items():
        monkeypatch.setenv(name, value)

    @contextmanager
    def start(*, count=1, version=None, system=None):
        options = {"count": count, "version": version, "system": system, "store": STORE_BYTES}
        script = Path(__file__).with_name("held_nodes.py")
        with subprocess.Popen(
            [sys.executable, script, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": PLACES},
            text=True,
        ) as process:
            try:
                yield Nodes(process)
            finally:
                process.stdin.close()
                process.wait(60)

    return start
