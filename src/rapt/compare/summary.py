"""Intervals that hold both sources of chance: the seed of a model, and the record it is judged on.

The rows of a table are seeds (privatization of the training text, initialization, order, privatizations of the
evaluation text), its columns are evaluation records. Both are resampled, because another experimenter would have both
anew (two-way bootstrap; Owen 2007, "The pigeonhole bootstrap", shows that it errs on the wide side).

Where seeds take turns to judge on different records (cross-validation), only rows of one turn have their columns in
common, so the records of each turn are resampled by themselves. Training texts of the turns overlap, so their models
are more alike than new ones would be, and no interval of one cross-validation can make up for that (Bengio and
Grandvalet 2004).

What the results say: accuracy of every arm at every η, and differences between arms on identical files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.compare.plan import ARMS, DIFFERENCES
from rapt.compare.results import AttackRow, ModelRow, Row

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


def estimate_mean(table: NDArray[np.float64], *, turns: Sequence[int] = (), seed: int = 0) -> Mean:
    """The mean of (seeds, records) with its two-way bootstrap interval.

    With one seed the interval holds the chance of the records alone.

    Args:
        table: (S, n).
        turns: Number of the set of records that each row was judged on, (S,): rows with one number were judged on
            the same ones, and no record has two numbers. Empty: all on the same.
        seed: Seed of the resampling.
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


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """An arm at an η. Accuracy is a share of (record, privatization) pairs.

    `over_most_frequent` is what it is above always naming the most frequent label, in points on the same texts; None
    where nobody told.
    """

    arm: str
    eta: float | None
    accuracy: Mean
    seeds: tuple[int, ...]
    privatizations: int
    records: int
    seconds: float
    over_most_frequent: Mean | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One arm minus another on the same files, in points of accuracy (hundredths)."""

    arm: str
    other: str
    eta: float | None
    points: Mean
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The strongest attack at an η."""

    eta: float
    name: str
    recovered: float
    low: float
    high: float
    tokens: int
    unchanged: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All of it, ordered by η and by arm.

    Attributes:
        most_frequent_label: Accuracy of always naming the label that most training texts have, with the interval of
            the evaluation texts: what a model must be above to have learned anything. None where nobody told.
    """

    accuracies: tuple[Accuracy, ...]
    differences: tuple[Difference, ...]
    attacks: tuple[Attack, ...]
    most_frequent_label: Mean | None = None

    @property
    def etas(self) -> tuple[float, ...]:
        """Every η with a result, ascending."""
        return tuple(sorted({item.eta for item in self.accuracies if item.eta is not None}))

    def accuracy(self, arm: str, eta: float | None) -> Accuracy | None:
        """The accuracy of an arm at an η, or on clear text for None; None where it was not run."""
        return next((item for item in self.accuracies if (item.arm, item.eta) == (arm, eta)), None)


def summarize(rows: Sequence[Row], *, most_frequent_label: Sequence[Sequence[bool]] = (), turns: int = 1) -> Summary:
    """The summary of results; arms are compared over the seeds that both have.

    Args:
        rows: Results of one setting.
        most_frequent_label: Whether it is right, for each evaluation text of each turn; empty leaves it out.
        turns: How many ways the texts were split in; seeds took turns, seed s the (s mod turns)th.
    """
    models: dict[tuple[str, float | None], dict[int, ModelRow]] = {}
    for row in rows:
        if isinstance(row, ModelRow):
            models.setdefault((row.arm, row.eta), {})[row.seed] = row
    order = {name: place for place, name in enumerate(ARMS)}
    last = len(order)  # lines of an arm that is no longer run still have their accuracy
    keys = sorted(models, key=lambda key: (math.inf if key[1] is None else key[1], order.get(key[0], last)))
    attacks = [_attack(row) for row in rows if isinstance(row, AttackRow)]
    named = np.array(most_frequent_label, dtype=float) if most_frequent_label else None
    return Summary(
        accuracies=tuple(_accuracy(models[key], named, turns) for key in keys),
        differences=tuple(_differences(models, turns)),
        attacks=tuple(sorted(attacks, key=lambda attack: attack.eta)),
        most_frequent_label=None if named is None else estimate_mean(named, turns=range(len(named))),
    )


def _accuracy(runs: dict[int, ModelRow], named: NDArray[np.float64] | None, turns: int) -> Accuracy:
    first, table = runs[min(runs)], _table(runs, sorted(runs))
    judged = [seed % turns for seed in sorted(runs)]
    return Accuracy(
        arm=first.arm,
        eta=first.eta,
        accuracy=estimate_mean(table, turns=judged),
        seeds=tuple(sorted(runs)),
        privatizations=first.privatizations,
        records=len(first.right),
        seconds=float(np.mean([run.seconds for run in runs.values()])),
        over_most_frequent=None if named is None else estimate_mean(100 * (table - named[judged]), turns=judged),
    )


def _differences(models: dict[tuple[str, float | None], dict[int, ModelRow]], turns: int) -> list[Difference]:
    found = []
    for eta in sorted({eta for _, eta in models if eta is not None}):
        for arm, other in DIFFERENCES:
            ours = models.get((arm, eta), {})
            theirs = models.get((other, None if ARMS[other].clean else eta), {})
            if seeds := tuple(sorted(ours.keys() & theirs.keys())):
                points = 100 * (_table(ours, seeds) - _table(theirs, seeds))
                mean = estimate_mean(points, turns=[seed % turns for seed in seeds])
                found.append(Difference(arm=arm, other=other, eta=eta, points=mean, seeds=seeds))
    return found


def _table(runs: dict[int, ModelRow], seeds: Sequence[int]) -> NDArray[np.float64]:
    return np.stack([np.array(runs[seed].right) / runs[seed].privatizations for seed in seeds])


def _attack(row: AttackRow) -> Attack:
    return Attack(
        eta=row.eta,
        name=row.strongest,
        recovered=row.recovered,
        low=row.low,
        high=row.high,
        tokens=row.tokens,
        unchanged=row.unchanged,
    )
