"""Answers of an adapter as an attacker reads them: confidences in a label, scaled to be close to normal.

The judge of membership: how well scores tell members from others.

Figures over several attacked models have intervals that hold both sources of chance, which model was attacked and
which texts were asked about: both are resampled (Owen 2007, "The pigeonhole bootstrap", which errs on the wide side).
With one model the interval holds the chance of the texts alone.

*p.* Members are drawn at random, so if a model does not depend on them, its scores do not either, and the test of Mann
and Whitney is valid for each attacked model given everything else. The smallest of the T values is multiplied by T.

The game of membership: every model is attacked once, by an attacker who has all the others as his shadow models.

That uses N tunings for N attacked models (Carlini et al. 2022, Section VI-A). Texts are asked about in clear, or, as a
user of a model that was tuned on privatized text would ask, in a fresh privatization; several answers are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.artefact.membership_attacks import MEMBERSHIP_ATTACKS, make_views
from rapt.audit.artefact.workshop import TokenTexts, TrainedModels, Workshop, privatize, release_plain_tokens
from rapt.errors import AuditError
from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.backbone import Backbone

_LEAST = 1e-30


def compute_confidences(
    backbone: Backbone,
    adapter: Adapter,
    contents: Sequence[tuple[int, ...]],
    *,
    plain: Sequence[tuple[int, ...]] | None = None,
) -> NDArray[np.float64]:
    """log(p / (1 - p)) for the probability p of each class, (n, C).

    1 - p is summed over the other classes: where p is nearly 1, a difference would have lost it.

    Args:
        backbone: Backbone that the adapter was tuned on.
        adapter: Adapter that is asked.
        contents: Token ids of each text, as they are sent.
        plain: The privatized plain tokens before each, for an adapter that was tuned with some.
    """
    before = [()] * len(contents) if plain is None else plain
    rows = [
        ClassificationRow(adapter=adapter, token_ids=content, privatized_plain_tokens=tokens)
        for content, tokens in zip(contents, before, strict=True)
    ]
    answers = np.array(classify(backbone, rows), dtype=np.float64)
    classes = answers.shape[1]
    others = answers @ (1 - np.eye(classes))
    scaled: NDArray[np.float64] = np.log(np.maximum(answers, _LEAST)) - np.log(np.maximum(others, _LEAST))
    return scaled


def select_labels(found: NDArray[np.float64], labels: Sequence[int]) -> NDArray[np.float64]:
    """The confidence in the label of each text, (n,)."""
    chosen: NDArray[np.float64] = found[np.arange(len(found)), np.asarray(labels, dtype=np.int64)]
    return chosen


Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Shares of others that may be taken for members: a success that names few members but hardly ever wrongly is a success
# (Carlini et al. 2022, Section III).
FALSE_POSITIVE_RATES: Final = (0.001, 0.01, 0.1)
REPLICATES: Final = 500


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class TruePositives:
    """Share of the members that are named when at most a stated share of the others is.

    Attributes:
        false_positive_rate: The stated share; guessing names as many members.
        rate: None where there are too few others to see it.
    """

    false_positive_rate: float
    rate: Estimate | None


@dataclass(frozen=True, kw_only=True)
class MembershipScore:
    """Success of one attack.

    Attributes:
        auc: Chance that a member scores above another text, ties counted half; guessing has 0.5.
        true_positives: One for each of `FALSE_POSITIVE_RATES`.
        members, others: Pairs of a model and a text that were scored.
        models: Models that were attacked.
        p: Probability, at most, of such a success if the models did not depend on their members.
    """

    auc: Estimate
    true_positives: tuple[TruePositives, ...]
    members: int
    others: int
    models: int
    p: float


def score_membership(scores: Floats, truth: Bools, *, seed: int = 0, replicates: int = REPLICATES) -> MembershipScore:
    """Score how well the scores of an attack tell members from others.

    Args:
        scores: Scores of T attacked models on n texts, (T, n).
        truth: True for each text that was a member, (T, n).
        seed: Seed of the resampling.
        replicates: Resamples behind an interval.

    Raises:
        AuditError: The shapes differ, or a model has no member or nobody else.
    """
    if scores.shape != truth.shape or scores.ndim != 2:
        raise AuditError(f"there must be one score for each text, got {scores.shape} for {truth.shape}")
    if truth.all(axis=1).any() or not truth.any(axis=1).all():
        raise AuditError("a score of membership needs members and others for each model; ask about other texts as well")
    models, texts = scores.shape
    curve = _Curve(scores.ravel(), truth.ravel())
    rng = np.random.default_rng([seed, 11])
    weights = (
        np.outer(_resample(rng, models) if models > 1 else np.ones(1), _resample(rng, texts)).ravel()
        for _ in range(replicates)
    )
    drawn = np.array([curve.figures(weight) for weight in weights])
    value = curve.figures(np.ones(scores.size))
    # A resample without members or others says nothing.
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    estimates = [
        Estimate(value=float(v), low=float(min(a, v)), high=float(max(b, v)))
        for v, a, b in zip(value, low, high, strict=True)
    ]
    others = int((~truth).sum())
    p = min(_compute_mann_whitney(row, member) for row, member in zip(scores, truth, strict=True))
    return MembershipScore(
        auc=estimates[0],
        true_positives=tuple(
            TruePositives(false_positive_rate=rate, rate=estimate if rate * others >= 1 else None)
            for rate, estimate in zip(FALSE_POSITIVE_RATES, estimates[1:], strict=True)
        ),
        members=int(truth.sum()),
        others=others,
        models=models,
        p=min(1.0, models * p),
    )


class _Curve:
    """Pairs in falling order of score, ready to be weighted again and again."""

    def __init__(self, scores: Floats, truth: Bools) -> None:
        order = np.argsort(-scores, kind="stable")
        self._order, self._truth = order, truth[order]
        ordered = scores[order]
        # Last place of each run of equal scores: a threshold takes all of a run or none.
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))

    def figures(self, weight: Floats) -> Floats:
        """The AUC and the rates of true positives, or nan where a side has no weight."""
        ordered = weight[self._order]
        hits = np.append(0.0, np.cumsum(ordered * self._truth)[self._ends])
        alarms = np.append(0.0, np.cumsum(ordered * ~self._truth)[self._ends])
        if hits[-1] == 0 or alarms[-1] == 0:
            return np.full(1 + len(FALSE_POSITIVE_RATES), np.nan)
        tpr, fpr = hits / hits[-1], alarms / alarms[-1]
        auc = float((np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum())
        # A billionth of room: 3 of 3,000 are 0.1 %, whatever the last bit says.
        at = [tpr[np.searchsorted(fpr, rate + 1e-9, side="right") - 1] for rate in FALSE_POSITIVE_RATES]
        return np.array([auc, *at])


def _resample(rng: np.random.Generator, size: int) -> Floats:
    return rng.multinomial(size, np.full(size, 1 / size)).astype(np.float64)


def _compute_mann_whitney(scores: Floats, members: Bools) -> float:
    if np.ptp(scores) == 0:
        return 1.0
    return float(stats.mannwhitneyu(scores[members], scores[~members], alternative="greater").pvalue)


@dataclass(frozen=True, kw_only=True)
class NamedScore:
    """An attack's name in `MEMBERSHIP_ATTACKS`, and its success."""

    attack: str
    score: MembershipScore


@dataclass(frozen=True, kw_only=True)
class MembershipResult:
    """Membership inference in one setting.

    Attributes:
        tuned_on: `clear` or `privatized` text.
        asked_with: The same of the queries.
        texts: Texts that were asked about.
        shadows: Shadow models of each attacker.
        attacks: Scores of the attacks, in the order of `MEMBERSHIP_ATTACKS`.
    """

    tuned_on: str
    asked_with: str
    texts: int
    shadows: int
    attacks: tuple[NamedScore, ...]

    @property
    def strongest(self) -> NamedScore:
        """The attack of largest AUC."""
        return max(self.attacks, key=lambda found: found.score.auc.value)


def ask(
    workshop: Workshop,
    adapters: Sequence[Adapter],
    texts: TokenTexts,
    *,
    privatized: bool,
    queries: int,
    seed: int,
) -> NDArray[np.float64]:
    """The confidence of each model in each text's label, (N, n).

    Args:
        workshop: Workshop that tuned the models, or would have.
        adapters: Asked, N of them.
        texts: Texts that are asked about.
        privatized: Whether texts are asked about in fresh privatizations.
        queries: Privatizations of each text, averaged.
        seed: Seed of the noise; every model gets the same queries.
    """
    rng, mechanism = np.random.default_rng([seed, 9]), workshop.mechanism
    asked = []
    for _ in range(queries if privatized and mechanism is not None else 1):
        contents = texts.contents
        if privatized and mechanism is not None:
            contents = privatize(contents, mechanism=mechanism, rng=rng)
        before = release_plain_tokens(workshop.plain_tokens, len(texts), mechanism=mechanism, rng=rng)
        asked.append((contents, [released for _, released in before]))
    return np.stack(
        [
            np.mean(
                [
                    select_labels(compute_confidences(workshop.backbone, adapter, contents, plain=plain), texts.labels)
                    for contents, plain in asked
                ],
                axis=0,
            )
            for adapter in adapters
        ]
    )


def attack_each(answers: NDArray[np.float64], members: NDArray[np.bool_], *, seed: int) -> tuple[NamedScore, ...]:
    """Every attack on every model, the others being the attacker's own.

    Args:
        answers: Confidences of all models, (N, n).
        members: True for each text that a model was tuned on, (N, n); of the attacked model only the score reads it.
        seed: Seed of the intervals.
    """
    views = list(make_views(answers, members))
    return tuple(
        NamedScore(attack=name, score=score_membership(np.stack([attack(view) for view in views]), members, seed=seed))
        for name, attack in MEMBERSHIP_ATTACKS.items()
    )


def play_membership(
    workshop: Workshop, models: TrainedModels, texts: TokenTexts, *, privatized: bool, queries: int = 4, seed: int = 0
) -> MembershipResult:
    """The game on models that were tuned already; see `ask` for the arguments."""
    privatized = privatized and workshop.mechanism is not None
    answers = ask(workshop, models.adapters, texts, privatized=privatized, queries=queries, seed=seed)
    return MembershipResult(
        tuned_on=workshop.tuned_on,
        asked_with="privatized" if privatized else "clear",
        texts=len(texts),
        shadows=len(models.adapters) - 1,
        attacks=attack_each(answers, models.members, seed=seed),
    )
