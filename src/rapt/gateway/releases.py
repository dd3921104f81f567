"""Releases: one thread that holds the ledger and draws, so that every message is released once and for good.

A chat sends its whole history with every turn. Drawn anew each time, a message would be read off by a majority vote
over its draws; so what is known is answered from the ledger, which has a keyed hash of a text's tokens and the setting,
and the ids that left, and never the text. It outlives a restart: a repeated or retried message leaves as it did at
first. What waits while others are drawn is drawn and accounted for together, in one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

from rapt.local.ledger import Ledger
from rapt.local.ledger_releases import privatize_through
from rapt.local.privatizer import TextPrivatizer
from rapt.local.randomness import RandomStream, secure_stream
from rapt.local.records import Chunk, ChunkSetting
from rapt.wire.privatized_file import PrivatizedRecord

T = TypeVar("T")
# Texts that are drawn and accounted for together at most.
MOST_AT_ONCE: Final = 256


@dataclass(frozen=True)
class _Texts:
    """Texts that wait for their release."""

    chunk: Chunk
    setting: ChunkSetting
    found: Future[list[PrivatizedRecord]] = field(default_factory=Future)

    @property
    def can_be_joined(self) -> bool:
        """Whether the texts are messages, one to a record and without labels."""
        return self.chunk.labels is None and not self.chunk.others


@dataclass(frozen=True)
class _Question:
    """A question to the ledger."""

    work: Callable[[Ledger], Any]
    found: Future[Any] = field(default_factory=Future)


class Releases:
    """The way of every text that leaves; `open_releases` makes one."""

    def __init__(
        self,
        privatizer: TextPrivatizer,
        open_ledger: Callable[[], AbstractContextManager[Ledger]],
        stream: RandomStream,
    ) -> None:
        """Take the setting of the releases; nothing is opened yet."""
        self.privatizer = privatizer
        self.provenance = stream.provenance
        self._open, self._stream = open_ledger, stream
        self._waiting: SimpleQueue[_Texts | _Question | None] = SimpleQueue()
        self._ready: Future[None] = Future()
        self._thread = Thread(target=self._serve, name="releases")

    def start(self) -> None:
        """Open the ledger. Raises as `open_ledger`."""
        self._thread.start()
        self._ready.result()

    def close(self) -> None:
        """Release what waits, and close the ledger."""
        self._waiting.put(None)
        self._thread.join()

    async def release(self, chunk: Chunk, setting: ChunkSetting) -> list[PrivatizedRecord]:
        """Return the records of a chunk, every one of them accounted for. Raises as `privatize_through`."""
        job = _Texts(chunk, setting)
        self._waiting.put(job)
        return await asyncio.wrap_future(job.found)

    async def ask(self, work: Callable[[Ledger], T]) -> T:
        """Return what `work` returns of the ledger."""
        job = _Question(work)
        self._waiting.put(job)
        found: T = await asyncio.wrap_future(job.found)
        return found

    def _serve(self) -> None:
        try:
            with self._open() as ledger:
                self._ready.set_result(None)
                while jobs := self._take():
                    self._answer_all(jobs, ledger)
        except BaseException as error:  # whatever it is, it is for whoever waits for the start
            if not self._ready.done():
                self._ready.set_exception(error)
                return
            raise

    def _take(self) -> list[_Texts | _Question]:
        """Wait for the next job, and return it with those that wait behind it; none at the end."""
        jobs: list[_Texts | _Question] = []
        texts = 0
        try:
            while texts < MOST_AT_ONCE:
                job = self._waiting.get(block=not jobs)
                if job is None:
                    if jobs:
                        self._waiting.put(None)
                    break
                jobs.append(job)
                texts += len(job.chunk.texts) if isinstance(job, _Texts) else 1
        except Empty:
            pass
        return jobs

    def _answer_all(self, jobs: Sequence[_Texts | _Question], ledger: Ledger) -> None:
        jobs = [job for job in jobs if job.found.set_running_or_notify_cancel()]
        alike: dict[int, list[_Texts]] = {}
        for job in jobs:
            if isinstance(job, _Question):
                _settle(job.found, partial(job.work, ledger))
            else:
                alike.setdefault(id(job.setting if job.can_be_joined else job), []).append(job)
        for own in alike.values():
            self._answer(own, ledger)

    def _answer(self, jobs: Sequence[_Texts], ledger: Ledger) -> None:
        """Release the texts of jobs of one setting together; where one is refused, each by itself."""
        if len(jobs) > 1:
            joined = Chunk(0, [text for job in jobs for text in job.chunk.texts], None)
            try:
                records = iter(privatize_through(ledger, joined, jobs[0].setting, stream=self._stream))
            except Exception:
                # Nothing of it was released. Whose it was is found one by one; what nobody foresaw, too, because a
                # thread that ends would leave every later text waiting for ever.
                pass
            else:
                for job in jobs:
                    job.found.set_result([next(records) for _ in job.chunk.texts])
                return
        for job in jobs:
            _settle(job.found, partial(privatize_through, ledger, job.chunk, job.setting, stream=self._stream))


def _settle(found: Future[T], work: Callable[[], T]) -> None:
    try:
        found.set_result(work())
    except Exception as error:  # it is raised where somebody waits for it
        found.set_exception(error)


@contextmanager
def open_releases(
    privatizer: TextPrivatizer,
    open_ledger: Callable[[], AbstractContextManager[Ledger]],
    *,
    stream: RandomStream | None = None,
) -> Iterator[Releases]:
    """Open a ledger in a thread of its own, for releases with one setting.

    Args:
        privatizer: Setting of the releases.
        open_ledger: Opens the ledger, called in the thread.
        stream: Source of the noise; None is keyed by the operating system.

    Raises:
        LedgerError: The reasons of `open_ledger`.
        UsageError: The ledger has other caps.
    """
    releases = Releases(privatizer, open_ledger, secure_stream() if stream is None else stream)
    releases.start()
    try:
        yield releases
    finally:
        releases.close()


def describe_queries(releases: Releases, privatizer: TextPrivatizer) -> ChunkSetting:
    """Describe queries with such a setting: no labels, and releases that may have been stored."""
    manifest = privatizer.manifest(labels=None, randomness=releases.provenance)
    replayed = replace(manifest.arrangement, replayed=True)
    return ChunkSetting(privatizer, None, replace(manifest, arrangement=replayed))
