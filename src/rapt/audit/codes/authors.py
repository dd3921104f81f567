"""Whether two sets of codes are of one author: r codes of somebody, and r codes of him or of somebody else.

Codewords are taken for a person's own mean and noise around it, both normal; their covariances are learned from other
texts of the same people, which the attacker holds in clear and releases alike. The score of two sets is the log of the
ratio of their likelihoods with one mean and with two (probabilistic linear discriminant analysis, Ioffe 2006).

*Bound.* The other set differs in r texts, each released at ε: the two cases are told apart by no attack with more than
e^(rε) / (e^(rε) + 1) right answers, both as likely before; the area under the curve has the same bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.codes.naming import bound_belief
from rapt.audit.intervals import LEVEL, Share, compute_independent_share

CODES: Final = (1, 3, 10, 30)
LEAST_TRIALS: Final = 20
_MOST_TRIALS: Final = 2000
_RIDGE: Final = 1e-3  # of the mean variance, added to every direction


@dataclass(frozen=True, kw_only=True)
class Linking:
    """How well two sets of codes are told to be of one author or of two.

    Attributes:
        codes: r, codes in each set.
        first: Share of right answers; both cases are as likely.
        area: Chance that two sets of one author score above two of different ones, ties counted half.
        chance: Share without the file.
        bound: Neither share exceeds it, e^(rε) / (e^(rε) + 1).
    """

    codes: int
    first: Share
    area: Share
    chance: float
    bound: float


def link_authors(
    learned: tuple[NDArray[np.float64], Sequence[str]],
    judged: tuple[NDArray[np.float64], Sequence[str]],
    *,
    epsilon: float,
    codes: Sequence[int] = CODES,
    rng: np.random.Generator,
) -> tuple[Linking, ...]:
    """Play the game for growing sets, as far as there are texts for `LEAST_TRIALS`; no text is in two trials.

    Args:
        learned: Codewords, (n, k), and author of each text that the attacker holds.
        judged: The same of the texts that are asked about.
        epsilon: Stated ε of a text.
        codes: Sizes of the sets.
        rng: Source of the trials.
    """
    between, within = _learn(*learned)
    found = []
    for count in codes:
        trials = list(_draw_trials(judged[1], count, rng=rng))
        known = list(_draw_trials(learned[1], count, rng=rng))
        if min(len(trials), len(known)) < LEAST_TRIALS:
            break
        scores, truth = _score(judged[0], trials, between, within / count)
        tried, same = _score(learned[0], known, between, within / count)
        right = (scores > _choose_threshold(tried, same)) == truth
        found.append(
            Linking(
                codes=count,
                first=compute_independent_share(right),
                area=measure_area(scores, truth),
                chance=0.5,
                bound=bound_belief(0.5, epsilon=count * epsilon),
            )
        )
    return tuple(found)


def measure_area(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> Share:
    """Return the area under the curve with the interval of DeLong et al. 1988."""
    ours, others = np.sort(scores[truth]), np.sort(scores[~truth])

    def place(values: NDArray[np.float64], among: NDArray[np.float64]) -> NDArray[np.float64]:
        below, to = (np.searchsorted(among, values, side=side) for side in ("left", "right"))
        return np.asarray((below + to) / (2 * len(among)))

    wins, losses = place(ours, others), place(others, ours)
    value = float(wins.mean())
    spread = wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses)
    half = float(stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(spread))
    return Share(
        value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=len(scores), clusters=len(scores)
    )


def _learn(states: NDArray[np.float64], authors: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the covariances of authors' means and of codewords around them, (k, k), by their moments."""
    kinds, places = np.unique(np.array(authors), return_inverse=True)
    counts = np.bincount(places)
    means = np.zeros((len(kinds), states.shape[1]))
    np.add.at(means, places, states)
    means /= counts[:, None]
    rest = states - means[places]
    within = rest.T @ rest / max(1, len(states) - len(kinds))
    within += _RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    apart = means - states.mean(axis=0)
    between = (apart * counts[:, None]).T @ apart / len(states) - within * (len(kinds) - 1) / len(states)
    sizes, axes = np.linalg.eigh(between)
    return (axes * np.maximum(sizes, 0)) @ axes.T, within


def _draw_trials(
    authors: Sequence[str], count: int, *, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], bool]]:
    """Yield two sets of places and whether they are of one author, the cases in turn, as long as there are texts."""
    kinds, places = np.unique(np.array(authors), return_inverse=True)
    sets = []
    for kind in range(len(kinds)):
        own = rng.permutation(np.flatnonzero(places == kind))
        sets.append([own[start : start + count] for start in range(0, len(own) - count + 1, count)])
    for number in range(_MOST_TRIALS):
        same = number % 2 == 0
        left = np.array([len(of_one) for of_one in sets])
        # The first set is drawn alike in both cases, so that it tells nothing by itself.
        twice = np.flatnonzero(left >= 2)
        if not len(twice) or np.count_nonzero(left) < 2:
            return
        one = int(rng.choice(twice, p=left[twice] / left[twice].sum()))
        others = left * (np.arange(len(left)) != one)
        other = one if same else int(rng.choice(len(left), p=others / others.sum()))
        yield sets[one].pop(), sets[other].pop(), same


def _score(
    states: NDArray[np.float64],
    trials: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], bool]],
    between: NDArray[np.float64],
    noise: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the log of the ratio of likelihoods of each trial, but for a constant, and the truth."""
    centered = states - states.mean(axis=0)
    first, second = (np.stack([centered[trial[side]].mean(axis=0) for trial in trials]) for side in (0, 1))
    # One mean: the sum of both has covariance 4 B + 2 N and their difference 2 N; two means: 2 B + 2 N for either.
    apart = np.linalg.inv(2 * between + 2 * noise)
    total = apart - np.linalg.inv(4 * between + 2 * noise)
    gap = apart - np.linalg.inv(2 * noise)
    plus, minus = first + second, first - second
    scores = np.einsum("ij,jk,ik->i", plus, total, plus) + np.einsum("ij,jk,ik->i", minus, gap, minus)
    return np.asarray(scores), np.array([trial[2] for trial in trials])


def _choose_threshold(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the threshold with most right answers."""
    order = np.argsort(scores)
    right = np.concatenate([[truth.sum()], truth.sum() + np.cumsum(np.where(truth[order], -1, 1))])
    between = (scores[order][1:] + scores[order][:-1]) / 2
    return float(np.concatenate([[-np.inf], between, [np.inf]])[right.argmax()])
