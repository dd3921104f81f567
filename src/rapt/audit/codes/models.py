"""What a head that was tuned on codes tells of the texts it was tuned on: membership, and a sentence that was put in.

Both games are about *which* text somebody contributed, because that is what ε hides: that somebody contributed is no
secret. So each text that is left out has another one with the same label in its place.

*Membership.* Of each pair of texts with one label a coin says which is contributed. Every model is attacked with all
others as shadow models, and asked about the clear codes of both texts, as whoever asks at home can.
*Canary.* One text with a wrong label is contributed k times, each time as a fresh code, or another text k times in its
place. The attacker has shadow models of his own for both cases, and two statistics: the model's *confidence* in the
canary, and the whole *head*, all of its weights and biases along the linear discriminant of his models (Fisher 1936).
He takes the one that tells more of his own models apart that he has not learned from, both cases for normal, and
decides by the ratio of the likelihoods.

*Bound.* A model is computed from the codes, so no attack is right more often than e^ε / (e^ε + 1) of the time about
one code, both cases as likely before, and e^(kε) / (e^(kε) + 1) about k. The area under a curve has the same bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from rapt.audit.artefact.membership import Estimate, attack_each
from rapt.audit.codes.naming import bound_belief
from rapt.audit.codes.readers import Floats
from rapt.audit.intervals import Share, compute_independent_share
from rapt.service.tuning.head_solver import choose_penalty, solve_head, tally_labels
from rapt.wire.manifest import LabelPrivacy

MODELS: Final = 16
TRIALS: Final = 200
COPIES: Final = (1, 10, 100)
MOST_PAIRS: Final = 500
_LEAST_ODDS: Final = 1e-30
_FOLDS: Final = 5
_RIDGE: Final = 0.1  # of the variance of each number, added to it: a head may have more numbers than there are trials

Ints = NDArray[np.int64]
# Codes, (n, k), to what a head reads of a fresh release of each, (n, k), float64.
Release = Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well it is told which text of a pair a head was tuned on.

    Attributes:
        models: Heads that were attacked.
        texts: Texts that were asked about.
        attack: Name of the strongest attack in `MEMBERSHIP_ATTACKS`.
        area: Area under the curve of that attack, over texts and models.
        chance: Area without the model.
        bound: Area that no attack exceeds.
    """

    models: int
    texts: int
    attack: str
    area: Estimate
    chance: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class Canary:
    """How well it is told that a head was tuned on a certain text with a wrong label.

    Attributes:
        copies: k, times that it was contributed.
        statistic: `confidence` or `head`, which the attacker chose by his own models.
        first: Share of right answers, over independent heads.
        chance: Share without the head.
        bound: Share that no attack exceeds.
    """

    copies: int
    statistic: str
    first: Share
    chance: float
    bound: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CrowdInClear:
    """What the auditor holds of a crowd: clear codes, labels, and how both are released.

    Attributes:
        codes: Values that a head reads of the clear codes, (n, k).
        labels: Places of the labels, (n,).
        classes: Number C of classes.
        release: Draws what a head reads of fresh releases.
        label_privacy: Mechanism that randomized the labels of the file; None for true ones.
        epsilon: Stated ε of a text.
    """

    codes: Floats
    labels: Ints
    classes: int
    release: Release
    label_privacy: LabelPrivacy | None
    epsilon: float

    def tune(self, states: Floats, labels: Ints, *, penalty: float) -> tuple[Tensor, Tensor]:
        """Return the head of released states."""
        counts = tally_labels(np.arange(len(labels)), labels, (len(labels), self.classes))
        return solve_head(torch.from_numpy(states), counts, penalty=penalty, label_privacy=self.label_privacy)

    def choose_penalty(self, *, seed: int) -> float:
        """Return the penalty that the service would choose for all of them."""
        return choose_penalty(
            torch.from_numpy(self.release(self.codes)),
            np.arange(len(self.labels)),
            self.labels,
            self.classes,
            private=self.label_privacy,
            seed=seed,
        )


def pair_texts(labels: Ints, *, rng: np.random.Generator) -> Ints:
    """Return random pairs of places with one label, (p, 2), at most `MOST_PAIRS`; no place is in two."""
    found = []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        found.append(own[: len(own) // 2 * 2].reshape(-1, 2))
    return rng.permutation(np.concatenate(found))[:MOST_PAIRS]


def play_membership(crowd: CrowdInClear, *, models: int = MODELS, seed: int = 0) -> Membership:
    """Tune heads on one text of each pair, and attack each with the others."""
    rng = np.random.default_rng([seed, 41])
    pairs = pair_texts(crowd.labels, rng=rng)
    penalty = crowd.choose_penalty(seed=seed)
    answers, members = [], []
    places = pairs.T.ravel()  # all first ones, then all second ones
    for _ in range(models):
        side = rng.integers(2, size=len(pairs))
        chosen = pairs[np.arange(len(pairs)), side]
        head = crowd.tune(crowd.release(crowd.codes[chosen]), crowd.labels[chosen], penalty=penalty)
        answers.append(_compute_confidences(head, crowd.codes[places], crowd.labels[places]))
        members.append(np.concatenate([side == 0, side == 1]))
    named = attack_each(np.stack(answers), np.stack(members), seed=seed)
    strongest = max(named, key=lambda found: found.score.auc.value)
    return Membership(
        models=models,
        texts=len(places),
        attack=strongest.attack,
        area=strongest.score.auc,
        chance=0.5,
        bound=bound_belief(0.5, epsilon=crowd.epsilon),
    )


def find_canary(
    crowd: CrowdInClear, *, copies: tuple[int, ...] = COPIES, trials: int = TRIALS, seed: int = 0
) -> tuple[Canary, ...]:
    """Tune heads with a canary and without it, and tell them apart; the canary is the text whose code is farthest."""
    rng = np.random.default_rng([seed, 43])
    penalty = crowd.choose_penalty(seed=seed)
    center = crowd.codes.mean(axis=0)
    canary = int(np.linalg.norm(crowd.codes - center, axis=1).argmax())
    wrong = np.array([(crowd.labels[canary] + 1) % crowd.classes])
    others = np.delete(np.arange(len(crowd.labels)), canary)
    found = []
    for count in copies:
        said, truth = np.empty(trials), np.arange(trials) % 2 == 0
        heads = np.empty((trials, crowd.classes * (crowd.codes.shape[1] + 1)))
        for trial in range(trials):
            put = canary if truth[trial] else int(rng.choice(others))
            crowd_of = rng.choice(others, size=len(others) // 2, replace=False)
            chosen = np.concatenate([crowd_of, np.full(count, put)])
            labels = np.concatenate([crowd.labels[crowd_of], np.repeat(wrong, count)])
            head = crowd.tune(crowd.release(crowd.codes[chosen]), labels, penalty=penalty)
            said[trial] = _compute_confidences(head, crowd.codes[[canary]], wrong)[0]
            heads[trial] = np.concatenate([part.numpy().ravel() for part in head])
        half = trials // 2  # the attacker's own
        statistic, answers = decide({"confidence": said[:, None], "head": heads}, truth[:half])
        found.append(
            Canary(
                copies=count,
                statistic=statistic,
                first=compute_independent_share(answers == truth[half:]),
                chance=0.5,
                bound=bound_belief(0.5, epsilon=count * crowd.epsilon),
            )
        )
    return tuple(found)


def decide(statistics: Mapping[str, Floats], truth: NDArray[np.bool_]) -> tuple[str, NDArray[np.bool_]]:
    """Return the statistic that tells the attacker's own trials apart best, and his answers about the other trials.

    Args:
        statistics: Numbers of every trial by the name of the statistic, (n, d) each; his own trials are the first.
        truth: Whether the canary was in, of his own trials, (m,).
    """
    own, folds = len(truth), np.arange(len(truth)) // 2 % _FOLDS  # each has both cases

    def judge(values: Floats) -> float:
        right = [
            _answer(values[:own][folds != fold], truth[folds != fold], values[:own][folds == fold])
            == truth[folds == fold]
            for fold in range(_FOLDS)
        ]
        return float(np.concatenate(right).mean())

    best = max(statistics, key=lambda name: judge(statistics[name]))
    return best, _answer(statistics[best][:own], truth, statistics[best][own:])


def _answer(values: Floats, truth: NDArray[np.bool_], asked: Floats) -> NDArray[np.bool_]:
    """Return whether the canary is in, (n,), by the likelihoods along the discriminant of labelled trials, (m, d)."""
    sides = [values[truth == side] for side in (True, False)]
    within = np.cov(np.concatenate([side - side.mean(axis=0) for side in sides]), rowvar=False).reshape(
        values.shape[1], -1
    )
    within += _RIDGE * np.diag(np.diag(within)) + 1e-12 * np.eye(len(within))
    along = np.linalg.solve(within, sides[0].mean(axis=0) - sides[1].mean(axis=0))
    laws = [stats.norm(*_fit(side @ along)) for side in sides]
    return np.asarray(laws[0].logpdf(asked @ along) > laws[1].logpdf(asked @ along))


def _fit(values: Floats) -> tuple[float, float]:
    return float(values.mean()), float(max(values.std(ddof=1), 1e-9))


def _compute_confidences(head: tuple[Tensor, Tensor], states: Floats, labels: Ints) -> Floats:
    """Return log(p / (1 - p)) of the label of each text, (n,)."""
    weight, bias = head
    odds = (torch.from_numpy(states) @ weight.T + bias).softmax(dim=1).numpy()
    own = odds[np.arange(len(labels)), labels]
    rest = odds.sum(axis=1) - own
    return np.asarray(np.log(np.maximum(own, _LEAST_ODDS)) - np.log(np.maximum(rest, _LEAST_ODDS)))
