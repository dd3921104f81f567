"""Intervals that hold both sources of chance: the seed of a model, and the record it is judged on.

The rows of a table are seeds (privatization of the training text, initialization, order, privatizations of the
evaluation text), its columns are evaluation records. Both are resampled, because another experimenter would have both
anew (two-way bootstrap; Owen 2007, "The pigeonhole bootstrap", shows that it errs on the wide side).
"""

from __future__ import annotations

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


def mean_of(table: NDArray[np.float64], *, seed: int = 0) -> Mean:
    """The mean of (seeds, records) with its two-way bootstrap interval.

    With one seed the interval holds the chance of the records alone.

    Args:
        table: (S, n).
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    seeds, records = table.shape
    # A resample is a weight for every row and every column, so a replicate is one bilinear form.
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=REPLICATES) / seeds
    columns = rng.multinomial(records, np.full(records, 1 / records), size=REPLICATES) / records
    means = np.einsum("rs,rs->r", rows, columns @ table.T)
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(
        value=float(table.mean()),
        low=float(low),
        high=float(high),
        each_seed=tuple(float(value) for value in table.mean(axis=1)),
    )
