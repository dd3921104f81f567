"""How often the same words stand in several records of a file, counted without keeping any of them.

A *run* is `RUN` tokens in a row. Each release of a run adds its own privacy loss to the words in it: who lays the
releases on top of each other names them far more surely than the words of one record. Runs are kept as 64-bit digests;
two different runs share one with probability 2^-64, which a count can bear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Tokens of a run: shorter ones are phrases of the language, which every text has.
RUN: Final = 4
# Records from which a run counts as repeated.
LEAST_RECORDS: Final = 10
# Digests that are held at most, 8 bytes each. Beyond it every second run is dropped by its digest, so that a run is
# counted in all records or in none.
_MOST_HELD: Final = 8_000_000
_FACTOR: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, kw_only=True)
class RepeatedRuns:
    """The runs of a file that stand in `LEAST_RECORDS` records or more.

    Attributes:
        runs: Number of different runs, estimated where the file is so large that not all are looked at.
        most: Records that hold the one that is in most of them; 0 without any.
    """

    runs: int
    most: int

    @property
    def remark(self) -> str:
        """Remark for the person who is about to release the file; empty where nothing repeats."""
        if not self.runs:
            return ""
        return (
            f"{self.runs:,} runs of {RUN} tokens stand in {LEAST_RECORDS} records or more, one of them in "
            f"{self.most:,}; every release of a word makes it easier to name: leave out what repeats, or measure it "
            "with rapt audit"
        )


def digest_runs(tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint64]:
    """A digest of the run that begins at each token but the last `RUN` - 1, (n - RUN + 1,)."""
    values = np.asarray(tokens, dtype=np.uint64)
    count = max(0, len(values) - RUN + 1)
    found = np.zeros(count, dtype=np.uint64)
    for place in range(RUN):
        # The steps of splitmix64 (Steele, Lea and Flood 2014), which spread every bit over all others.
        found = (found + values[place : place + count] + np.uint64(1)) * np.uint64(_FACTOR)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found ^= found >> np.uint64(31)
    return found


class RunCounter:
    """Counts, over the records of a file as they come, in how many each run stands."""

    def __init__(self, *, most_held: int = _MOST_HELD) -> None:
        """Begin with no record.

        Args:
            most_held: Digests that are held at most, but for those of one call.
        """
        self._most_held = most_held
        self._parts: list[NDArray[np.uint64]] = []
        self._held = 0
        self._halvings = 0

    def add(self, records: Sequence[Sequence[Sequence[int]]]) -> None:
        """Count some records: the texts of each, and the token ids of each text."""
        texts = [text for record in records for text in record]
        record = np.repeat(np.arange(len(records)), [sum(map(len, texts)) for texts in records])
        lengths = [len(text) for text in texts]
        text = np.repeat(np.arange(len(texts)), lengths)
        digests = digest_runs(np.fromiter(chain.from_iterable(texts), dtype=np.int64, count=sum(lengths)))
        inside = np.flatnonzero(text[: len(digests)] == text[len(text) - len(digests) :])
        record, digests = record[inside], digests[inside]
        order = np.lexsort((digests, record))
        record, digests = record[order], digests[order]
        once = np.ones(len(order), dtype=bool)
        once[1:] = (record[1:] != record[:-1]) | (digests[1:] != digests[:-1])
        self._parts.append(self._keep(digests[once]))
        self._held += len(self._parts[-1])
        while self._held > self._most_held:
            self._halvings += 1
            self._parts = [self._keep(np.concatenate(self._parts))]
            self._held = len(self._parts[0])

    def count(self, *, least: int = LEAST_RECORDS) -> RepeatedRuns:
        """The runs that stand in so many records or more."""
        _, records = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *self._parts]), return_counts=True)
        repeated = records[records >= least]
        return RepeatedRuns(runs=len(repeated) << self._halvings, most=int(repeated.max(initial=0)))

    def _keep(self, digests: NDArray[np.uint64]) -> NDArray[np.uint64]:
        kept: NDArray[np.uint64] = digests[(digests & np.uint64((1 << self._halvings) - 1)) == 0]
        return kept
