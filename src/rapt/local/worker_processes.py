"""Worker processes that privatize chunks, with random streams of their own.

A worker makes its stream itself, from the operating system's entropy; with an insecure seed, from the seed and its
place. No generator is ever copied into a worker, where it would repeat the noise of another. Results come in the order
of the source. A worker computes on one thread, because the workers together take the processors.

Workers do everything that takes time, down to the lines of the file, and always have a chunk waiting. What is left for
this process is to read, to hand over and to write: it shares the processors with them.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from threading import Thread
from typing import Final

import numpy as np

from rapt.errors import CorpusError, RaptError
from rapt.local.chunks import Chunk, ChunkSetting, privatize_chunk
from rapt.local.mechanisms.interface import with_share_of_memory
from rapt.local.randomness import worker_stream
from rapt.local.shared_arrays import receive_shared, shared
from rapt.wire.privatized_file import RecordLines

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
) -> Generator[RecordLines, None, None]:
    """The lines of each chunk's records, in order, computed by `processes` workers, which take turns.

    Args:
        chunks: Taken as workers become free.
        setting: What is done to each; its manifest says where the randomness of all workers comes from.
        processes: At least 1.
        first_stream: Number of the first worker's stream under an insecure seed; another run of the same file takes
            another number.

    Raises:
        CorpusError: As `Privatizer.privatize`; or a worker ended early.
        UsageError: As `Privatizer.privatize`.
        WireError: A record contradicts the manifest.
    """
    privatizer = setting.privatizer
    own = replace(privatizer, mechanism=with_share_of_memory(privatizer.mechanism, among=processes))
    busy: deque[Connection] = deque()
    try:
        with _workers(replace(setting, privatizer=own), count=processes, first_stream=first_stream) as workers:
            for number, chunk in enumerate(chunks):
                worker = workers[number % processes]
                done = _received(busy.popleft()) if len(busy) == _IN_FLIGHT * processes else None
                worker.send(chunk)  # before the records are written, so that it does not wait for the disk
                busy.append(worker)
                if done is not None:
                    yield done
            while busy:
                yield _received(busy.popleft())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise CorpusError(
            f"a worker process must live to the end, got one of {processes} that ended early; "
            "free memory, or use fewer processes"
        ) from None


@contextmanager
def _workers(setting: ChunkSetting, *, count: int, first_stream: int) -> Iterator[list[Connection]]:
    """The pipes to so many workers; all of them are stopped at the end of the block."""
    context = get_context("spawn")  # not fork: a worker begins with nothing of this process but what it is given
    started: list[tuple[SpawnProcess, Connection]] = []
    try:
        for number in range(first_stream, first_stream + count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, number), daemon=True)
            with theirs, _one_thread():
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
    """What a worker does: chunks in, lines or the error of a chunk out, until the pipe is closed."""
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
                answer: RecordLines | RaptError = privatize_chunk(chunk, setting, stream=stream)
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


def _received(connection: Connection) -> RecordLines:
    answer: RecordLines | RaptError = connection.recv()
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
def _one_thread() -> Iterator[None]:
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
