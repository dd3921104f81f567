"""The same function on many items, wherever a Ray cluster has room: the engine of everything that outgrows one machine.

Ray is an extra, and nothing here is loaded without being asked for. Tasks are pure functions of public modules: who
retries one, because a worker or a node was killed, computes the same answer. The caller alone writes.

*A process between.* Ray ends the process that speaks with it, without a word to its caller, when the head node is
lost, and it takes over signals and logging. So a process of ours joins the cluster, and this one speaks with that by a
pipe: a lost head node is an error like any other, what was answered is kept, and the work can be asked for again.

*Trust.* What is given to tasks is pickled, by us into the pipe and by Ray between its nodes, and lies in their memory
and, when that is full, on their disks: all of them must be trusted as this machine is. Both ends are this program.
Nothing that came from outside of the cluster is ever unpickled. A cluster that is started here listens on the loopback
interface alone, to those who have a token that is drawn for it, and keeps what it writes in a folder that nobody else
can open and that is removed.
"""

from __future__ import annotations

import os
import pickle
import re
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Final

from rapt.errors import ClusterError, RaptError, UsageError
from rapt.version import __version__

# A function of a setting, which all items share, and an item.
Task = Callable[[Any, Any], Any]
# What speaks with a cluster that was joined: it is given the module `ray`, and a pipe to whoever asks.
Attendant = Callable[[Any, Connection], None]

# How often Ray tries a task again whose worker or node was killed.
_TRIES: Final = 8
# Items that wait for a core beside each that is computed.
_IN_FLIGHT: Final = 2
# How often a cluster of our own is started: Ray gives its processes 30 s, and on a busy machine one may need more.
_STARTS: Final = 3
# How long an address may take to answer, how long a cluster may take to let us in or to start, and to leave, seconds.
_ANSWERS: Final = 10.0
_JOINS: Final = 180.0
_LEAVES: Final = 30.0
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")
# For the tasks of a cluster of our own: one core each.
_ONE_THREAD: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
}
# In a cluster of our own Ray counts nothing of itself and of its tasks, because nobody reads it.
_UNCOUNTED: Final = {
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_enable_timeline": "0",
}
_LOST: Final = (
    "the head node of the Ray cluster must be there to the end of the work, and was lost; start the cluster again, and "
    "ask for the same work again: what was done is kept where that can be resumed"
)


class Cluster:
    """A Ray cluster that was joined; `join_cluster` makes one. One run at a time."""

    def __init__(self, connection: Connection, *, cores: int) -> None:
        """Take the pipe to the process that joined it, and the number of cores that it has."""
        self._connection = connection
        self._runs = 0
        self.cores = cores

    def run(
        self, task: Task, items: Iterable[Any], *, setting: object = None, in_order: bool = False
    ) -> Generator[tuple[int, Any], None, None]:
        """Yield the number of each item, from 0, and what the task makes of it, as they are done.

        Args:
            task: Function of a module, that returns the same for the same arguments: it may run more than once.
            items: Taken as cores become free, two for each core ahead.
            setting: First argument of every call, sent to each node once.
            in_order: Whether answers come in the order of the items.

        Raises:
            ClusterError: The cluster was lost, a worker was killed each time, the memory or the disk of a node is full,
                or a node lacks this version of rapt.
            RaptError: Error of a task.
        """
        self._runs += 1
        source, started, given = enumerate(items), 0, 0
        early: dict[int, Any] = {}
        try:
            self._connection.send((self._runs, task, setting))
            while True:
                while started - given < self.cores * _IN_FLIGHT and (found := next(source, None)) is not None:
                    # As bytes: the process between passes them on as they are.
                    self._connection.send((found[0], pickle.dumps(found[1])))
                    started += 1
                if given == started:
                    return
                number, answer = self._receive()
                early[number] = answer
                while (ready := given if in_order else number) in early:
                    given += 1
                    yield ready, early.pop(ready)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise ClusterError(_LOST) from None

    def _receive(self) -> tuple[int, Any]:
        """Wait for an answer of the run that goes on; those of an earlier one that was given up are dropped."""
        while True:
            run, number, answer = self._connection.recv()
            if run != self._runs:
                continue
            if isinstance(answer, RaptError):
                raise answer
            return number, pickle.loads(answer)


@contextmanager
def join_cluster(address: str | None = None, *, cores: int = 1, store_bytes: int | None = None) -> Iterator[Cluster]:
    """Join a Ray cluster, and leave it at the end of the block.

    Args:
        address: HOST:PORT of its head node; None starts one on this machine, which ends with the block.
        cores: Cores of a cluster that is started here.
        store_bytes: Size of its store of objects; None for three tenths of the free memory.

    Raises:
        UsageError: Ray is not installed, or the address is none.
        ClusterError: There is no cluster at the address, or one of another version, or it lets nobody in.
    """
    with hold_attendant(_submit, address=address, cores=cores, store_bytes=store_bytes) as (connection, found):
        yield Cluster(connection, cores=found)


@contextmanager
def hold_attendant(
    attendant: Attendant, *, address: str | None, cores: int, store_bytes: int | None = None, wait: float = _JOINS
) -> Iterator[tuple[Connection, int]]:
    """Start a process that joins a Ray cluster and then calls `attendant`; it ends with the block.

    Args:
        attendant: Function of a module that is called with the module `ray` and the process's end of the pipe. An
            `EOFError` ends it, and so does an error of ours, which is sent.
        address: Address of the cluster, as in `join_cluster`.
        cores: Number of cores, as in `join_cluster`.
        store_bytes: Size of the object store, as in `join_cluster`.
        wait: Longest time that the cluster may take to let the process in, s.

    Yields:
        Our end of the pipe, and the number of cores of the cluster.

    Raises:
        UsageError: The reasons of `join_cluster`.
        ClusterError: The reasons of `join_cluster`.
    """
    if find_spec("ray") is None:
        raise UsageError("a Ray cluster needs the package ray; run in the checkout: pip install -e '.[ray]'")
    if address is not None:
        _check_address(address)
    elif cores < 1:
        raise UsageError(f"a Ray cluster must have at least 1 core, got cores={cores}")
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    with TemporaryDirectory(prefix="rapt-ray-", ignore_cleanup_errors=True) as folder:
        process = context.Process(target=_attend, args=(theirs, attendant, address, cores, store_bytes, folder))
        with theirs:
            process.start()
        try:
            yield ours, _wait_until_joined(ours, address, wait)
        finally:
            ours.close()
            process.join(_LEAVES)
            if process.is_alive():
                process.terminate()
                process.join(_LEAVES)


def _check_address(address: str) -> None:
    """Refuse what is no address, or answers nothing, at once: Ray itself asks for minutes."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise UsageError("the address of a Ray cluster must be HOST:PORT of its head node, such as 10.0.0.5:6379")
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=_ANSWERS).close()
    except OSError:
        raise ClusterError(
            "the address must be that of a running Ray cluster, and nothing answers there; start one with `ray start "
            "--head`, or leave the address out to use this machine"
        ) from None


def _wait_until_joined(connection: Connection, address: str | None, wait: float) -> int:
    try:
        if not connection.poll(wait):
            raise EOFError
        answer = connection.recv()
    except (EOFError, ConnectionResetError):
        where = "on this machine" if address is None else "at the address"
        raise ClusterError(
            f"a Ray cluster {where} must let this program in within {wait:g} s, and did not; look at its logs"
        ) from None
    if isinstance(answer, RaptError):
        raise answer
    return int(answer)


def _attend(
    connection: Connection,
    attendant: Attendant,
    address: str | None,
    cores: int,
    store_bytes: int | None,
    folder: str,
) -> None:
    """Speak with the cluster for the process that started this one, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted run ends by its parent's closing the pipe
    if os.environ.get("RAPT_DEBUG") != "1":
        # What Ray says goes nowhere: it names addresses and paths, in many lines, also when all is well.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
    os.environ |= _ONE_THREAD | {"RAY_USAGE_STATS_ENABLED": "0"}
    if address is None:
        # Ray takes the address of the network for that of loopback, but where it believes that it may not.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | _UNCOUNTED
    ray = import_module("ray")
    try:
        connection.send(_join(ray, address, cores, store_bytes, folder))
        attendant(ray, connection)
    except (EOFError, OSError):
        pass  # the parent is gone, killed or done
    except RaptError as error:
        with suppress(OSError):  # likewise
            connection.send(error)
    finally:
        with suppress(Exception):  # a cluster that is lost cannot be left in order, and this process ends now
            ray.shutdown()
        if address is None:  # else it is left where the parent was killed
            shutil.rmtree(folder, ignore_errors=True)


def _join(ray: Any, address: str | None, cores: int, store_bytes: int | None, folder: str) -> int:
    """Join the cluster; returns how many cores it has."""
    quiet = {"log_to_driver": False, "configure_logging": False}
    own = {
        "num_cpus": cores,
        "object_store_memory": store_bytes,
        "_node_ip_address": "127.0.0.1",
        "include_dashboard": False,
    }
    try:
        if address is not None:
            ray.init(address, **quiet)
        for number in range(_STARTS if address is None else 0):
            try:
                # Ray opens its own folder to everybody, and not the one around it.
                ray.init("local", _temp_dir=f"{folder}/{number}", **own, **quiet)
                break
            except Exception:  # Ray has no one class for a failed start; the last one is explained below
                if number == _STARTS - 1:
                    raise
                ray.shutdown()
    except Exception as error:  # Ray has no one class for them; the message may hold an address or the token
        if "ersion mismatch" in str(error):
            version = ".".join(map(str, sys.version_info[:3]))
            raise ClusterError(
                f"the cluster must run the Ray and the Python of this machine, {ray.__version__} and {version}, and "
                "has another; install the same on both"
            ) from None
        raise ClusterError(
            f"the Ray cluster must let this program in, got {type(error).__name__}; look at its logs and at its token"
        ) from None
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _submit(ray: Any, connection: Connection) -> None:
    _Submitter(ray, connection).attend()


class _Submitter:
    """Hands items to the cluster, and answers back as they come."""

    def __init__(self, ray: Any, connection: Connection) -> None:
        self._ray, self._connection = ray, connection
        self._one_at_a_time = Lock()
        self._remote = ray.remote(num_cpus=1, max_retries=_TRIES)(compute)

    def attend(self) -> None:
        """Submit what comes; `EOFError` when the pipe is closed."""
        run, task, setting = 0, None, None
        while True:
            received = self._connection.recv()
            if len(received) == 3:
                run, task, value = received
                setting = self._put(value)
                continue
            number, item = received
            if isinstance(setting, RaptError):
                self._answer(run, number, setting)
                continue
            try:
                # The reference is in a list: else each task would unpickle the value anew.
                future = self._remote.remote(__version__, [setting], task, item).future()
            except Exception as error:  # also of pickling; the caller waits for an answer to each item
                self._answer(run, number, explain(self._ray, error))
                continue
            future.add_done_callback(partial(self._note_done, run, number))

    def _put(self, value: object) -> Any:
        try:
            return self._ray.put(value)
        except Exception as error:  # likewise: it is the answer to each item
            return explain(self._ray, error)

    def _note_done(self, run: int, number: int, future: Any) -> None:
        error = future.exception()
        self._answer(run, number, future.result() if error is None else explain(self._ray, error))

    def _answer(self, run: int, number: int, answer: object) -> None:
        with self._one_at_a_time, suppress(OSError):  # the parent is gone: the main thread sees that, too
            self._connection.send((run, number, answer))


def explain(ray: Any, error: BaseException) -> ClusterError:
    """Say in one line what went wrong in the cluster; the error's own words may quote an argument, and are dropped."""
    kinds = ray.exceptions
    cause = getattr(error, "cause", None)
    full = (kinds.ObjectStoreFullError, kinds.OutOfDiskError)
    if isinstance(error, full) or isinstance(cause, full):
        return ClusterError(
            "the object store of a node must have room, and is full, with its disk; give Ray more "
            "(--object-store-memory of `ray start`), or free the disk"
        )
    killed = (kinds.WorkerCrashedError, kinds.NodeDiedError, kinds.OutOfMemoryError, kinds.ObjectLostError)
    if isinstance(error, killed):
        return ClusterError(
            f"a task must end within {1 + _TRIES} tries, and its worker was killed each time; give the nodes more "
            "memory"
        )
    # Ray calls it a system error that a task's function or arguments cannot be unpickled on a node.
    if isinstance(cause or error, ImportError) or isinstance(error, kinds.RaySystemError):
        return ClusterError(
            f"every node of the cluster must have rapt {__version__} and its extras, and one lacks them; install it "
            "there"
        )
    return ClusterError(
        f"a task must end without an error of its own, got {type(cause or error).__name__}; try it without Ray"
    )


def check_version(version: str) -> None:
    """Refuse to work for another version of rapt (`ClusterError`)."""
    if version != __version__:
        raise ClusterError(
            f"every node of the cluster must have rapt {version}, got {__version__} on one; install the same there"
        )


# The setting of the run that this worker works on, under its reference: unpickling it can take longer than an item.
_AT_HAND: Final[dict[str, Any]] = {}


def compute(version: str, setting: Sequence[Any], task: Task, item: bytes) -> bytes | RaptError:
    """Run a task in a worker on a pickled item; returns the answer pickled.

    Errors are answers, because Ray would write a raised one to its logs, with arguments.
    """
    try:
        check_version(version)
        ray = import_module("ray")
        name = setting[0].hex()
        if name not in _AT_HAND:
            _AT_HAND.clear()
            _AT_HAND[name] = ray.get(setting[0])
        return pickle.dumps(task(_AT_HAND[name], pickle.loads(item)))
    except RaptError as error:
        return error
    except Exception as error:  # an answer, as the docstring says
        return explain(import_module("ray"), error)
