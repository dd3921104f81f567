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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.compare.plan import ARMS, DIFFERENCES, ORACLE
from rapt.compare.results import AttackRow, ModelRow, Row

REPLICATES: Final = 4_000
# An arm, its η, its ε and its crowd; and its results by seed.
Setting = tuple[str, float | None, float | None, int]
Models = dict[Setting, dict[int, ModelRow]]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean with its 95 % interval, in points of accuracy or shares as the table was.

    Attributes:
        value: Over the whole table.
        low: Lower end of its interval.
        high: Upper end of its interval.
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
    judged = np.zeros(len(table), dtype=np.int64) if len(turns) == 0 else np.asarray(turns)
    rows, columns = _resample(tuple(judged.tolist()), table.shape[1], seed)
    of_rows = np.empty((REPLICATES, len(table)))
    for turn, weights in columns.items():
        of_rows[:, judged == turn] = weights @ table[judged == turn].T
    means = np.einsum("rs,rs->r", rows, of_rows)
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(
        value=float(table.mean()),
        low=float(low),
        high=float(high),
        each_seed=tuple(float(value) for value in table.mean(axis=1)),
    )


@lru_cache(maxsize=2)
def _resample(
    judged: tuple[int, ...], records: int, seed: int
) -> tuple[NDArray[np.float64], dict[int, NDArray[np.float64]]]:
    """The weights of all replicates: of rows, (R, S), and of each turn's columns, (R, n); of one shape, one draw."""
    rng, seeds = np.random.default_rng(seed), len(judged)
    # A resample is a weight for every row and every column, so a replicate is one bilinear form.
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=REPLICATES) / seeds
    columns = {
        turn: rng.multinomial(records, np.full(records, 1 / records), size=REPLICATES) / records
        for turn in sorted(set(judged))
    }
    return rows, columns


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """An arm at an η. Accuracy is a share of (record, privatization) pairs.

    `over_most_frequent` is what it is above always naming the most frequent label, in points on the same texts; None
    where nobody told. `epsilon` is that of a whole text, `crowd` the number of training texts, 0 for all.
    """

    arm: str
    eta: float | None
    epsilon: float | None = None
    crowd: int = 0
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
    epsilon: float | None = None
    crowd: int = 0
    points: Mean
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StrongestAttack:
    """The strongest attack at an η, or at an ε of a whole text; the fields are those of `AttackRow`."""

    eta: float | None
    epsilon: float | None = None
    name: str
    recovered: float
    low: float
    high: float
    tokens: int
    unchanged: float
    blind: float | None = None
    linked: float | None = None
    linked_low: float | None = None
    linked_high: float | None = None
    candidates: int = 0
    bits: float | None = None
    label_alone: float | None = None
    beyond: float | None = None
    beyond_low: float | None = None
    beyond_high: float | None = None
    policy: bool = False


@dataclass(frozen=True, kw_only=True)
class HomeWin:
    """The best arm at home of one contributor, beside the best way that sends something, of any crowd.

    Attributes:
        home: Arm at home.
        texts: Texts of the contributor; 0 for all.
        accuracy: Accuracy of the arm at home.
        other: The best arm that protects what it sends.
        other_eta: η of that arm; None on codes.
        other_epsilon: ε of that arm; None on tokens.
        other_crowd: Number of training texts of that arm; 0 for all.
        other_accuracy: Accuracy of that arm.
        points: Home minus the other, in points of accuracy.
    """

    home: str
    texts: int
    accuracy: float
    other: str
    other_eta: float | None
    other_epsilon: float | None
    other_crowd: int
    other_accuracy: float
    points: Mean


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All of it, ordered by η and by arm.

    Attributes:
        most_frequent_label: Accuracy of always naming the label that most training texts have, with the interval of
            the evaluation texts: what a model must be above to have learned anything. None where nobody told.
        home_wins: Best arm at home for each number of texts, beside the best way that sends something.
    """

    accuracies: tuple[Accuracy, ...]
    differences: tuple[Difference, ...]
    attacks: tuple[StrongestAttack, ...]
    most_frequent_label: Mean | None = None
    home_wins: tuple[HomeWin, ...] = ()

    @property
    def etas(self) -> tuple[float, ...]:
        """Every η with a result, ascending."""
        return tuple(sorted({item.eta for item in self.accuracies if item.eta is not None}))

    def accuracy(self, arm: str, eta: float | None, *, crowd: int = 0) -> Accuracy | None:
        """The accuracy of an arm on tokens at an η, or on clear text for None; None where it was not run."""
        wanted = (arm, eta, None, crowd)
        found = (item for item in self.accuracies if (item.arm, item.eta, item.epsilon, item.crowd) == wanted)
        return next(found, None)


def summarize(rows: Sequence[Row], *, most_frequent_label: Sequence[Sequence[bool]] = (), turns: int = 1) -> Summary:
    """The summary of results; arms are compared over the seeds that both have.

    Args:
        rows: Results of one setting.
        most_frequent_label: Whether it is right, for each evaluation text of each turn; empty leaves it out.
        turns: Number of ways in which the texts were split; seeds took turns, seed s the (s mod turns)th.
    """
    models: Models = {}
    for row in rows:
        if isinstance(row, ModelRow):
            models.setdefault((row.arm, row.eta, row.epsilon, row.crowd), {})[row.seed] = row
    order = {name: place for place, name in enumerate(ARMS)}
    last = len(order)  # lines of an arm that is no longer run still have their accuracy
    keys = sorted(
        models,
        key=lambda key: (
            key[3] or math.inf,
            math.inf if key[1] is None else key[1],
            math.inf if key[2] is None else key[2],
            order.get(key[0], last),
        ),
    )
    attacks = [_attack(row) for row in rows if isinstance(row, AttackRow)]
    named = np.array(most_frequent_label, dtype=float) if most_frequent_label else None
    return Summary(
        accuracies=tuple(_compute_accuracy(models[key], named, turns) for key in keys),
        differences=tuple(_list_differences(models, turns)),
        attacks=tuple(sorted(attacks, key=lambda attack: (attack.eta or 0.0, attack.epsilon or 0.0, attack.policy))),
        most_frequent_label=None if named is None else estimate_mean(named, turns=range(len(named))),
        home_wins=tuple(_list_home_wins(models, turns)),
    )


def _compute_accuracy(runs: dict[int, ModelRow], named: NDArray[np.float64] | None, turns: int) -> Accuracy:
    first, table = runs[min(runs)], _make_table(runs, sorted(runs))
    judged = [seed % turns for seed in sorted(runs)]
    return Accuracy(
        arm=first.arm,
        eta=first.eta,
        epsilon=first.epsilon,
        crowd=first.crowd,
        accuracy=estimate_mean(table, turns=judged),
        seeds=tuple(sorted(runs)),
        privatizations=first.privatizations,
        records=len(first.right),
        seconds=float(np.mean([run.seconds for run in runs.values()])),
        over_most_frequent=None if named is None else estimate_mean(100 * (table - named[judged]), turns=judged),
    )


def _list_differences(models: Models, turns: int) -> list[Difference]:
    found = []
    settings = sorted({key[1:] for key in models}, key=lambda key: (key[2] or math.inf, key[0] or 0.0, key[1] or 0.0))
    for (eta, epsilon, crowd), (arm, other) in product(settings, DIFFERENCES):
        if eta is None and epsilon is None:
            continue
        ours, theirs = (_find(models, name, eta, epsilon, crowd) for name in (arm, other))
        if seeds := tuple(sorted(ours.keys() & theirs.keys())):
            found.append(
                Difference(
                    arm=arm,
                    other=other,
                    eta=eta,
                    epsilon=epsilon,
                    crowd=crowd,
                    points=_subtract(ours, theirs, seeds, turns),
                    seeds=seeds,
                )
            )
    return found


def _find(models: Models, name: str, eta: float | None, epsilon: float | None, crowd: int) -> dict[int, ModelRow]:
    """The runs of an arm at a setting of another arm; what sends nothing has one for all settings."""
    if ARMS[name].clean or ARMS[name].unit == "home":
        return models.get((name, None, None, crowd), {})
    return models.get((name, eta, epsilon, crowd), {})


def _subtract(ours: dict[int, ModelRow], theirs: dict[int, ModelRow], seeds: Sequence[int], turns: int) -> Mean:
    points = 100 * (_make_table(ours, seeds) - _make_table(theirs, seeds))
    return estimate_mean(points, turns=[seed % turns for seed in seeds])


def _list_home_wins(models: Models, turns: int) -> Iterator[HomeWin]:
    """For each number of texts, the best arm at home and the best one that sends something protected."""

    def right(key: Setting) -> float:
        return float(_make_table(models[key], sorted(models[key])).mean())

    known = [key for key in models if key[0] in ARMS]
    home = [key for key in known if ARMS[key[0]].unit == "home"]
    sent = [key for key in known if ARMS[key[0]].unit != "home" and not ARMS[key[0]].clean and key[0] != ORACLE]
    if not home or not sent:
        return
    best = max(sent, key=right)
    for texts in sorted({key[3] for key in home}, key=lambda crowd: crowd or math.inf):
        ours = max((key for key in home if key[3] == texts), key=right)
        if seeds := sorted(models[ours].keys() & models[best].keys()):
            yield HomeWin(
                home=ours[0],
                texts=texts,
                accuracy=right(ours),
                other=best[0],
                other_eta=best[1],
                other_epsilon=best[2],
                other_crowd=best[3],
                other_accuracy=right(best),
                points=_subtract(models[ours], models[best], seeds, turns),
            )


def _make_table(runs: dict[int, ModelRow], seeds: Sequence[int]) -> NDArray[np.float64]:
    return np.stack([np.array(runs[seed].right) / runs[seed].privatizations for seed in seeds])


def _attack(row: AttackRow) -> StrongestAttack:
    same = {item.name: getattr(row, item.name) for item in fields(StrongestAttack) if item.name != "name"}
    return StrongestAttack(name=row.strongest, **same)
