"""The engine: answers in order, errors as one line, and what becomes of a run when workers, nodes or the head die."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

import hurt_tasks
import numpy as np
import psutil
import pytest

from rapt.cluster import compute, join_cluster
from rapt.errors import ClusterError, CorpusError, UsageError
from rapt.version import __version__

needs_ray = pytest.mark.ray


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_the_extra_is_named():
    with pytest.raises(UsageError, match=r"needs the package ray; run in the checkout: pip install -e '\.\[ray\]'"):
        join_cluster().__enter__()


@needs_ray
@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("somewhere", UsageError, "must be HOST:PORT"),
        ("ray://127.0.0.1:6379", UsageError, "must be HOST:PORT"),
        ("127.0.0.1:99999", UsageError, "must be HOST:PORT"),
        ("127.0.0.1:9", ClusterError, "nothing answers there"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address, error, message):
    with pytest.raises(error, match=message), join_cluster(address):
        pass


@needs_ray
def test_answers_come_in_the_order_of_the_items(cluster):
    assert cluster.cores == 2
    found = list(cluster.run(hurt_tasks.square, range(30), setting="shared", in_order=True))
    assert found == [(i, ("shared", i * i)) for i in range(30)]
    assert sorted(cluster.run(hurt_tasks.square, range(5))) == [(i, (None, i * i)) for i in range(5)]
    assert list(cluster.run(hurt_tasks.square, [])) == []


@needs_ray
def test_a_cluster_of_our_own_is_for_us_alone(cluster):
    (between,) = [one for one in psutil.Process().children() if one.children() and "spawn" in " ".join(one.cmdline())]
    seen = set()
    for process in [between, *between.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # workers come and go
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    assert ip_address(one.laddr.ip.removeprefix("::ffff:")).is_loopback
            if process.name() in ("raylet", "gcs_server"):  # others write their titles over their environment
                assert len(process.environ()["RAY_AUTH_TOKEN"]) == 64
            for word in process.cmdline():
                if word.startswith("--temp-dir="):
                    assert Path(word.partition("=")[2]).parent.stat().st_mode & 0o077 == 0
            seen.add(process.name())
    assert {"raylet", "gcs_server"} <= seen


@needs_ray
def test_the_error_of_a_task_is_the_error_of_the_run_and_the_cluster_serves_the_next(cluster):
    with pytest.raises(CorpusError, match="record 3 must be another"):
        list(cluster.run(hurt_tasks.refuse, range(9), in_order=True))
    assert len(list(cluster.run(hurt_tasks.square, range(9)))) == 9


@needs_ray
def test_an_unexpected_error_is_named_by_its_kind_and_quotes_nothing(cluster):
    with pytest.raises(ClusterError, match="got KeyError") as caught:
        list(cluster.run(hurt_tasks.break_down, range(1), setting="a secret text"))
    assert "secret" not in str(caught.value)


@needs_ray
def test_a_worker_that_is_killed_each_time_is_one_line(cluster):
    with pytest.raises(ClusterError, match="a task must end within 9 tries, and its worker was killed each time"):
        list(cluster.run(hurt_tasks.always_die, range(1)))


def test_a_node_with_another_version_of_rapt_is_named():
    answer = compute("0.0.1", [], hurt_tasks.square, b"")
    assert isinstance(answer, ClusterError)
    assert f"every node of the cluster must have rapt 0.0.1, got {__version__} on one" in str(answer)


def is_alive(process):
    state = Path("/proc", process, "stat")
    return state.exists() and " Z " not in state.read_text()


@needs_ray
def test_a_node_that_is_killed_loses_nothing_and_doubles_nothing(nodes, tmp_path):
    with nodes(count=2) as held, join_cluster(held.address) as joined:

        def items():
            for item in range(8):
                if item == 3:  # two are at work, one waits
                    while len(list(tmp_path.glob("begun-*"))) < 2:
                        pass
                    held.kill("node")
                    while all(map(is_alive, (path.name.split("-")[2] for path in tmp_path.glob("begun-*")))):
                        pass
                    (tmp_path / "go").touch()
                yield item

        assert joined.cores == 2
        assert sorted(joined.run(hurt_tasks.wait_for, items(), setting=str(tmp_path))) == [(i, i) for i in range(8)]
    assert len(list(tmp_path.glob("begun-*"))) == 9  # the one that died with its node was tried again


@needs_ray
def test_a_lost_head_node_is_one_line(nodes, tmp_path):
    with nodes() as held, join_cluster(held.address) as joined:

        def items():
            yield 0
            while not list(tmp_path.glob("begun-*")):
                pass
            held.kill("head")

        with pytest.raises(ClusterError, match="the head node of the Ray cluster must be there to the end of the work"):
            list(joined.run(hurt_tasks.wait_for, items(), setting=str(tmp_path)))


@needs_ray
def test_a_cluster_of_another_version_is_one_line(nodes):
    with (
        nodes(version="2.7.0") as held,
        pytest.raises(ClusterError, match="must run the Ray and the Python of this machine"),
        join_cluster(held.address),
    ):
        pass


@needs_ray
def test_a_full_object_store_is_one_line(nodes):
    full = {"local_fs_capacity_threshold": 0.0, "local_fs_monitor_interval_ms": 10}
    with (
        nodes(system=full) as held,
        join_cluster(held.address) as joined,
        pytest.raises(ClusterError, match="the object store of a node must have room, and is full, with its disk"),
    ):
        list(joined.run(hurt_tasks.square, range(2), setting=np.zeros(120 * 2**20, dtype=np.uint8)))
