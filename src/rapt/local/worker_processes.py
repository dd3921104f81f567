"""Worker processes that privatize chunks, with random streams of their own.

A worker makes its stream itself, from the operating system's entropy; with an insecure seed, from the seed and its
place. No generator is ever copied into a worker, where it would repeat the noise of another. Results come in the order
of the source. A worker computes on one thread, because the workers together take the processors.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Final

from rapt.errors import CorpusError, RaptError
from rapt.local.chunks import Chunk, privatize_chunk
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import worker_stream
from rapt.wire.manifest import Randomness
from rapt.wire.privatized_file import PrivatizedRecord

# Read by the linear algebra below numpy when it is loaded, which is before any code of ours runs in a worker.
_THREAD_SETTINGS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# How long a worker that was told to stop may take, in seconds.
_PATIENCE: Final = 5.0


def privatize_in_processes(
    chunks: Iterator[Chunk],
    *,
    privatizer: Privatizer,
    response: RandomizedResponse | None,
    provenance: Randomness,
    processes: int,
    first_stream: int = 0,
) -> Generator[list[PrivatizedRecord], None, None]:
    """The records of each chunk, in order, computed by `processes` workers; each holds a copy of the table.

    Args:
        chunks: Taken as workers become free.
        privatizer: The setting.
        response: Randomizes labels; None sends them in clear.
        provenance: Of the streams of all workers.
        processes: At least 1.
        first_stream: Number of the first worker's stream under an insecure seed; another run of the same file takes
            another number.

    Raises:
        CorpusError: As `Privatizer.privatize`; or a worker ended early.
        UsageError: As `Privatizer.privatize`.
    """
    busy: deque[Connection] = deque()
    with _workers() as start:
        try:
            for number, chunk in enumerate(chunks):
                if number < processes:
                    busy.append(start(privatizer, response, provenance, first_stream + number))
                    busy[-1].send(chunk)
                    continue
                worker = busy.popleft()
                records = _received(worker)
                worker.send(chunk)  # before the records are written, so that it does not wait for the disk
                busy.append(worker)
                yield records
            while busy:
                yield _received(busy.popleft())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise CorpusError(
                f"a worker process must live to the end, got one of {processes} that ended early; "
                "free memory, or use fewer processes"
            ) from None


@contextmanager
def _workers() -> Iterator[Callable[[Privatizer, RandomizedResponse | None, Randomness, int], Connection]]:
    """A function that starts a worker and gives the pipe to it; all of them are stopped at the end of the block."""
    context = get_context("spawn")  # not fork: a worker begins with nothing of this process but what it is given
    started: list[tuple[SpawnProcess, Connection]] = []

    def start(
        privatizer: Privatizer, response: RandomizedResponse | None, provenance: Randomness, number: int
    ) -> Connection:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _one_thread():
            process.start()
        theirs.close()
        started.append((process, ours))
        ours.send((privatizer, response, provenance, number))
        return ours

    try:
        yield start
    finally:
        for _, connection in started:
            connection.close()
        for process, _ in started:
            process.terminate()
            process.join(_PATIENCE)


def _work(connection: Connection) -> None:
    """What a worker does: chunks in, records or the error of a chunk out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted run ends by its parent's closing the pipe
    try:
        privatizer, response, provenance, number = connection.recv()
        stream = worker_stream(provenance, position=number)
        while True:
            chunk: Chunk = connection.recv()
            try:
                answer: list[PrivatizedRecord] | RaptError = privatize_chunk(
                    chunk, privatizer=privatizer, response=response, stream=stream
                )
            except RaptError as error:
                answer = error
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone, killed or done


def _received(connection: Connection) -> list[PrivatizedRecord]:
    answer: list[PrivatizedRecord] | RaptError = connection.recv()
    if isinstance(answer, RaptError):
        raise answer
    return answer


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
