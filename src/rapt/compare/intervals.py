"""Intervals that hold both sources of chance: the seed of a model, and the record it is judged on.

The rows of a table are seeds (privatization of the training text, initialization, order, privatizations of the
evaluation text), its columns are evaluation records. Both are resampled, because another experimenter would have both
anew (two-way bootstrap; Owen 2007, "The pigeonhole bootstrap", shows that it errs on the wide side).

Where seeds take turns to judge on different records (cross-validation), only rows of one turn have their columns in
common, so the records of each turn are resampled by themselves. Training texts of the turns overlap, so their models
are more alike than new ones would be, and no interval of one cross-validation can make up for that (Bengio and
Grandvalet 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

REPLICATES: Final = 4_000


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean with its 95 % interval, in points of accuracy or shares as the table was.

    Attributes:
        value: Over the whole table.
        low: Lower end.
        high: Upper end.
        each_seed: Mean of each row.
    """

    value: float
    low: float
    high: float
    each_seed: tuple[float, ...]


def mean_of(table: NDArray[np.float64], *, turns: Sequence[int] = (), seed: int = 0) -> Mean:
    """The mean of (seeds, records) with its two-way bootstrap interval.

    With one seed the interval holds the chance of the records alone.

    Args:
        table: (S, n).
        turns: Which records each row was judged on, S numbers: rows with one number were judged on the same ones, and
            no record has two numbers. Empty: all on the same.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    seeds, records = table.shape
    # A resample is a weight for every row and every column, so a replicate is one bilinear form.
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=REPLICATES) / seeds
    judged = np.zeros(seeds, dtype=np.int64) if len(turns) == 0 else np.asarray(turns)
    of_rows = np.empty((REPLICATES, seeds))
    for turn in np.unique(judged):
        columns = rng.multinomial(records, np.full(records, 1 / records), size=REPLICATES) / records
        of_rows[:, judged == turn] = columns @ table[judged == turn].T
    means = np.einsum("rs,rs->r", rows, of_rows)
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(
        value=float(table.mean()),
        low=float(low),
        high=float(high),
        each_seed=tuple(float(value) for value in table.mean(axis=1)),
    )
