"""Workers that privatize chunks of a corpus: processes of this machine, or tasks of a Ray cluster.

A worker process makes its stream itself, from the operating system's entropy; with an insecure seed, from the seed and
its place. No generator is ever copied into a worker, where it would repeat the noise of another. Results come in the
order of the source. A worker computes on one thread, because the workers together take the processors.

Workers draw, which is what takes time, and always have a chunk waiting. What is left for this process is to read, to
look up in the ledger, to account for what is drawn, and to write, in the order of the source.

*Shared arrays.* The workers share the large arrays of the setting. A vocabulary's table is 47 MB for MiniLM and
gigabytes for a Llama. Pickled into a pipe, every worker would hold one of its own. Arrays that are read-only, as tables
are, go into an anonymous file instead, which each worker maps: it has no name, so nothing can be left behind, and only
processes that are given it can open it. What can be written to goes by value. Where the system has no such files,
everything does.

The setting is pickled, which is right here and nowhere else: both ends are this program, and the pipe between them is
one that a parent opened to its child. Nothing that came from outside is ever unpickled.

*On a cluster* a block is what one task draws. Its stream follows from a key of the run and the position of its first
record, so a task whose worker or node was killed, before or after it had drawn, gives the same bytes wherever it is
tried again. (Nodes must compute alike: another kind of processor may round another way, and a rounded tie can fall
otherwise.) A block is released once, when its lines are written, whatever happened to its task. The key is drawn for
the run, travels to the nodes with the setting, and is written nowhere by rapt. A run that goes on after a kill has
another one: what was written stays, and the rest, which never left, is drawn anew.
"""

from __future__ import annotations

import mmap
import os
import pickle
import secrets
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import recv_handle, send_handle
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final

import numpy as np

from rapt.cluster import Cluster
from rapt.errors import CorpusError, RaptError
from rapt.local.randomness import block_stream, worker_stream
from rapt.local.records import Chunk, ChunkSetting, privatize_records
from rapt.wire.privatized_file import PrivatizedRecord

# Shorter arrays are copied: a mapping has whole pages.
_LEAST_BYTES: Final = 2**16
# Where each array begins in the file, so that numbers of any width are aligned.
_ALIGNMENT: Final = 64


@dataclass(frozen=True)
class SharedValue:
    """A value that is ready to be given to processes that this one started.

    Attributes:
        pickled: All of it but the arrays in the file.
        spans: First byte and end of each of those.
        file: Descriptor of the anonymous file; None where there is none.
    """

    pickled: bytes
    spans: tuple[tuple[int, int], ...]
    file: int | None

    def send(self, connection: Connection, *, process: int) -> None:
        """Give the value to the process with this id, at the other end of the connection."""
        connection.send((self.pickled, self.spans))
        if self.file is not None and self.spans:
            send_handle(connection, self.file, process)


@contextmanager
def shared(value: object) -> Iterator[SharedValue]:
    """The value, to be sent as often as wanted within the block; who received it keeps it.

    Raises:
        OSError: There is no memory for it.
    """
    if sys.platform != "linux":
        yield SharedValue(pickle.dumps(value, protocol=5), (), None)
        return
    file = os.memfd_create("rapt", os.MFD_CLOEXEC)
    try:
        spans: list[tuple[int, int]] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            """Write the array to the file; True leaves it among the pickled bytes."""
            with buffer.raw() as raw:
                if not raw.readonly or raw.nbytes < _LEAST_BYTES:
                    return True
                start = -(-(spans[-1][1] if spans else 0) // _ALIGNMENT) * _ALIGNMENT
                spans.append((start, start + raw.nbytes))
                written = 0
                while written < raw.nbytes:  # one call writes 2 GB at most
                    written += os.pwrite(file, raw[written:], start + written)
                return False

        pickled = pickle.dumps(value, protocol=5, buffer_callback=keep)
        yield SharedValue(pickled, tuple(spans), file)
    finally:
        os.close(file)


def receive_shared(connection: Connection) -> Any:
    """Receive what `SharedValue.send` sent; its shared arrays are read-only.

    Raises:
        EOFError: Nobody is at the other end any more.
    """
    pickled, spans = connection.recv()
    if not spans:
        return pickle.loads(pickled)
    file = recv_handle(connection)
    try:
        mapped = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))  # lives as long as an array in it
    finally:
        os.close(file)
    return pickle.loads(pickled, buffers=[mapped[start:end] for start, end in spans])


# Read by the linear algebra below numpy and by the tokenizer when they are loaded, which is before any code of ours
# runs in a worker.
_THREAD_SETTINGS: Final = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)
# Chunks that a worker has: one that it privatizes, one that waits.
_IN_FLIGHT: Final = 2
# How long a worker that was told to stop may take, in seconds.
_PATIENCE: Final = 5.0


def privatize_in_processes(
    chunks: Iterator[Chunk], setting: ChunkSetting, *, processes: int, first_stream: int = 0
) -> Generator[list[PrivatizedRecord], None, None]:
    """The records of each chunk, in order, drawn by `processes` workers, which take turns.

    Args:
        chunks: Taken as workers become free.
        setting: Privatization of each chunk; its manifest says where the randomness of all workers comes from.
        processes: Number of processes, 1 at least.
        first_stream: Number of the first worker's stream under an insecure seed; another run of the same file takes
            another number.

    Raises:
        CorpusError: The reasons of `Privatizer.privatize`; or a worker ended early.
        UsageError: The reasons of `Privatizer.privatize`.
    """
    own = setting.privatizer.share_memory(among=processes)
    busy: deque[Connection] = deque()
    try:
        with _start_workers(replace(setting, privatizer=own), count=processes, first_stream=first_stream) as workers:
            for number, chunk in enumerate(chunks):
                worker = workers[number % processes]
                done = _receive(busy.popleft()) if len(busy) == _IN_FLIGHT * processes else None
                worker.send(chunk)  # before the records are written, so that it does not wait for the disk
                busy.append(worker)
                if done is not None:
                    yield done
            while busy:
                yield _receive(busy.popleft())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise CorpusError(
            f"a worker process must live to the end, got one of {processes} that ended early; "
            "free memory, or use fewer processes"
        ) from None


@contextmanager
def _start_workers(setting: ChunkSetting, *, count: int, first_stream: int) -> Iterator[list[Connection]]:
    """The pipes to so many workers; all of them are stopped at the end of the block."""
    context = get_context("spawn")  # not fork: a worker begins with nothing of this process but what it is given
    started: list[tuple[SpawnProcess, Connection]] = []
    try:
        for number in range(first_stream, first_stream + count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, number), daemon=True)
            with theirs, _limit_to_one_thread():
                process.start()
            started.append((process, ours))
        with shared(setting) as given:  # while all of them load their code
            for process, connection in started:
                assert process.pid is not None
                given.send(connection, process=process.pid)
        yield [connection for _, connection in started]
    finally:
        for _, connection in started:
            connection.close()
        for process, _ in started:
            process.terminate()
            process.join(_PATIENCE)


def _work(connection: Connection, number: int) -> None:
    """Do a worker's work: chunks in, records or the error of a chunk out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted run ends by its parent's closing the pipe
    _keep_freed_memory()
    waiting: SimpleQueue[Chunk | None] = SimpleQueue()
    try:
        setting: ChunkSetting = receive_shared(connection)
        # It takes what was sent off the pipe while this thread computes: else the parent would wait for this worker to
        # read a chunk, and this worker for the parent to read its answer.
        Thread(target=_take, args=(connection, waiting), daemon=True).start()
        stream = worker_stream(setting.manifest.randomness, position=number)
        while (chunk := waiting.get()) is not None:
            try:
                answer: list[PrivatizedRecord] | RaptError = privatize_records(chunk, setting, stream=stream)
            except RaptError as error:
                answer = error
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone, killed or done


def _take(connection: Connection, waiting: SimpleQueue[Chunk | None]) -> None:
    """Chunks from the pipe as they come, at most as many as the parent has in flight; None when it is closed."""
    try:
        while True:
            waiting.put(connection.recv())
    except (EOFError, OSError):
        waiting.put(None)


def _receive(connection: Connection) -> list[PrivatizedRecord]:
    answer: list[PrivatizedRecord] | RaptError = connection.recv()
    if isinstance(answer, RaptError):
        raise answer
    return answer


def _keep_freed_memory() -> None:
    """Have glibc keep the megabytes that every batch frees and the next takes again.

    It gives the end of its heap back to the system beyond twice the largest block that was ever freed, and each batch
    then pays for the same pages again: 5 % of a worker's time. Elsewhere this does nothing.
    """
    np.empty(2**25 - 2**16, dtype=np.uint8)


@contextmanager
def _limit_to_one_thread() -> Iterator[None]:
    """The settings of a worker's environment, which it takes from this process at its start."""
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(_THREAD_SETTINGS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class BlockSetting:
    """Setting of every block, on whichever node.

    Attributes:
        chunk: Privatization of the records.
        key: Secret key of the streams, 32 bytes.
    """

    chunk: ChunkSetting
    key: bytes = field(repr=False)


def privatize_on_cluster(
    chunks: Iterator[Chunk], setting: ChunkSetting, *, cluster: Cluster, key: bytes | None = None
) -> Generator[list[PrivatizedRecord], None, None]:
    """The records of each chunk, in order, drawn by tasks of a cluster.

    Args:
        chunks: Taken as cores become free.
        setting: Privatization of each chunk.
        cluster: Cluster that was joined; every node of it must be trusted as this machine is.
        key: Key of the streams, 32 bytes, never used before; None draws one.

    Raises:
        ClusterError: The reasons of `Cluster.run`.
        CorpusError: The reasons of `privatize_records`.
        UsageError: The reasons of `privatize_records`.
    """
    given = BlockSetting(setting, secrets.token_bytes(32) if key is None else key)
    for _, records in cluster.run(draw_block, chunks, setting=given, in_order=True):
        yield records


def draw_block(setting: BlockSetting, chunk: Chunk) -> list[PrivatizedRecord]:
    """The records of one chunk: the same whenever and wherever they are drawn."""
    _keep_freed_memory()
    stream = block_stream(setting.chunk.manifest.randomness, key=setting.key, position=chunk.position)
    return privatize_records(chunk, setting.chunk, stream=stream)
