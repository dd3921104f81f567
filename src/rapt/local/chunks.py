"""A few hundred texts at a time, privatized here or in worker processes that have random streams of their own.

A worker makes its stream itself, from the operating system's entropy; with an insecure seed, from the seed and its
place. No generator is ever copied into a worker, where it would repeat the noise of another. Results come in the order
of the source. A worker computes on one thread, because the workers together take the processors.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Final

from rapt.errors import CorpusError, RaptError
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import RandomStream, worker_stream
from rapt.local.record_parts import Part, SourceItem, check_pairs, with_other_parts
from rapt.wire.manifest import Randomness
from rapt.wire.privatized_file import PrivatizedRecord

# Texts privatized at once: thousands of tokens, enough to keep the matrix product busy, and about a second of work,
# so that progress moves.
_CHUNK: Final = 512
# Read by the linear algebra below numpy when it is loaded, which is before any code of ours runs in a worker.
_THREAD_SETTINGS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# Draws the records of texts with a setting, and with their labels, if any.
Release = Callable[[Privatizer, list[str], list[int] | None], list[PrivatizedRecord]]
# How long a worker that was told to stop may take, in seconds.
_PATIENCE: Final = 5.0


@dataclass(frozen=True)
class Chunk:
    """Texts that are privatized at once; in clear, so nothing of them shows.

    Attributes:
        position: Of the first text in its file.
        texts: In clear.
        labels: Index of each text's true label, or None where no labels are sent.
        others: The other texts of each record, by the part of the record that they become.
    """

    position: int
    texts: list[str] = field(repr=False)
    labels: list[int] | None = field(repr=False)
    others: Mapping[Part, list[str]] = field(default_factory=dict, repr=False)


def in_chunks(items: Iterator[SourceItem], *, first_position: int, labelled: bool) -> Iterator[Chunk]:
    """The texts and label indices, some hundred at a time; `first_position` is that of the first."""
    position = first_position
    while chunk := list(islice(items, _CHUNK)):
        labels = [item.label for item in chunk if item.label is not None]
        others = {part: [item.others[part] for item in chunk] for part in chunk[0].others}
        yield Chunk(position, [item.text for item in chunk], labels if labelled else None, others)
        position += len(chunk)


def privatize_chunk(
    chunk: Chunk, *, privatizer: Privatizer, response: RandomizedResponse | None, stream: RandomStream
) -> list[PrivatizedRecord]:
    """The records of one chunk; labels are randomized first where there is a response. Raises as `Privatizer`."""

    def release(setting: Privatizer, texts: list[str], labels: list[int] | None) -> list[PrivatizedRecord]:
        if response is not None and labels is not None:
            labels = response.randomize(labels, rng=stream.generator)
        return setting.privatize(texts, labels=labels, stream=stream, first_position=chunk.position)

    return release_chunk(chunk, privatizer=privatizer, release=release)


def release_chunk(chunk: Chunk, *, privatizer: Privatizer, release: Release) -> list[PrivatizedRecord]:
    """The records of one chunk, each of its texts drawn by `release`. Raises `CorpusError` for a pair too long."""
    check_pairs(privatizer, chunk.texts, chunk.others, first_position=chunk.position)
    return with_other_parts(
        release(privatizer, chunk.texts, chunk.labels),
        chunk.others,
        privatizer=privatizer,
        privatize=lambda setting, texts: release(setting, texts, None),
        first_position=chunk.position,
    )


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
