"""Membership: a model that remembers is found, one that does not is at chance, and no attack holds the answer."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from rapt.audit.artefact.game import attack_each
from rapt.audit.artefact.membership import MEMBERSHIP_ATTACKS
from rapt.audit.artefact.membership_view import MembershipView
from rapt.audit.artefact.scores import FALSE_POSITIVE_RATES, score_membership
from rapt.errors import AuditError
from significance import ALPHA

TEXTS, MODELS = 300, 8
WITH_SHADOWS = ("hierarchical", "lira_online", "lira_offline", "rmia")


def answers_of(*, memory, seed, models=MODELS, texts=TEXTS):
    """Confidences whose law is known: each text is as easy as it is, and a member is `memory` deviations easier."""
    rng = np.random.default_rng(seed)
    members = rng.random((models, texts)) < 0.5
    easy = 3 * rng.standard_normal(texts)
    return easy + memory * members + rng.standard_normal((models, texts)), members


@pytest.mark.parametrize("seed", range(5))
def test_models_that_remember_are_found_and_their_reference_attack_is_weaker(seed):
    answers, members = answers_of(memory=2.0, seed=seed)
    found = {attack.attack: attack.score for attack in attack_each(answers, members, seed=0)}
    for name in WITH_SHADOWS:
        assert found[name].p < ALPHA
        assert found[name].auc.value > found["threshold"].auc.value + 0.1


@pytest.mark.parametrize("seed", range(5))
def test_models_that_remember_nothing_are_not_accused(seed):
    answers, members = answers_of(memory=0.0, seed=seed)
    for attack in attack_each(answers, members, seed=0):
        assert attack.score.p > ALPHA
        assert attack.score.auc.low < 0.5 < attack.score.auc.high + 0.02


def test_a_member_is_told_as_well_as_the_two_laws_allow():
    # Known laws: the best test of N(0, 1) against N(m, 1) has AUC Φ(m / √2). Shadow models without end come close.
    answers, members = answers_of(memory=1.5, seed=3, models=80, texts=200)
    found = {attack.attack: attack.score for attack in attack_each(answers, members, seed=0)}
    best = stats.norm.cdf(1.5 / np.sqrt(2))
    for name in ("hierarchical", "lira_online"):
        assert found[name].auc.value == pytest.approx(best, abs=0.015)


@pytest.mark.parametrize("seed", range(5))
def test_texts_in_exactly_half_of_the_models_would_bias_the_game(seed):
    # Why texts are drawn for each model alone: with exact halves the counts of the others depend on the attacked model.
    rng = np.random.default_rng(seed)
    members = rng.random((4, 2000)).argsort(axis=0) < 2
    found = {attack.attack: attack.score for attack in attack_each(rng.standard_normal(members.shape), members, seed=0)}
    assert found["lira_online"].auc.high < 0.5


def test_an_attack_holds_no_truth_and_answers_the_same_whatever_it_is():
    answers, members = answers_of(memory=2.0, seed=1)
    names = {field.name for field in dataclasses.fields(MembershipView)}
    assert names == {"target", "shadows", "members"}
    view = MembershipView(target=answers[0], shadows=answers[1:], members=members[1:])
    before = {name: attack(view) for name, attack in MEMBERSHIP_ATTACKS.items()}
    rng = np.random.default_rng(0)
    others = members.copy()
    others[0] = rng.random(TEXTS) < 0.5
    again = MembershipView(target=answers[0], shadows=np.delete(answers, 0, axis=0), members=others[1:])
    assert all(np.array_equal(before[name], attack(again)) for name, attack in MEMBERSHIP_ATTACKS.items())


def test_a_text_that_no_shadow_model_had_is_still_scored():
    answers, members = answers_of(memory=2.0, seed=1, models=4)
    members[:, 0], members[:, 1] = True, False
    view = MembershipView(target=answers[0], shadows=answers[1:], members=members[1:])
    assert all(np.isfinite(attack(view)).all() for attack in MEMBERSHIP_ATTACKS.values())


@pytest.mark.parametrize(
    ("shadows", "members"),
    [(np.zeros((1, 3)), np.eye(1, 3)), (np.zeros((2, 3)), np.ones((2, 3))), (np.zeros((2, 2)), np.eye(2))],
)
def test_shadow_models_that_teach_nothing_are_refused(shadows, members):
    with pytest.raises(AuditError, match="shadow models"):
        MembershipView(target=np.zeros(3), shadows=shadows, members=members.astype(bool))


# The judge.


def test_the_area_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(5, size=(1, 300)).astype(float), rng.random((1, 300)) < 0.4
    scores += truth
    found = score_membership(scores, truth)
    statistic = stats.mannwhitneyu(scores[truth], scores[~truth], alternative="greater")
    assert found.auc.value == pytest.approx(statistic.statistic / (truth.sum() * (~truth).sum()))
    assert found.p == pytest.approx(statistic.pvalue)


def test_the_rate_of_true_positives_is_counted_at_the_stated_rate():
    # 1,000 others at 1 .. 1,000 and 100 members at 990.5: ten others lie above them, 1 %.
    scores = np.append(np.arange(1, 1001), np.full(100, 990.5))[None]
    truth = np.append(np.zeros(1000), np.ones(100))[None].astype(bool)
    rates = {found.false_positive_rate: found.rate.value for found in score_membership(scores, truth).true_positives}
    assert rates == {0.001: 0.0, 0.01: 1.0, 0.1: 1.0}


def test_a_rate_that_cannot_be_seen_is_not_stated():
    rng = np.random.default_rng(0)
    found = score_membership(rng.random((1, 200)), rng.random((1, 200)) < 0.5)
    assert [rate.rate is None for rate in found.true_positives] == [True, False, False]
    assert tuple(rate.false_positive_rate for rate in found.true_positives) == FALSE_POSITIVE_RATES


def test_equal_scores_are_chance():
    truth = np.arange(200)[None] % 2 == 0
    found = score_membership(np.zeros((1, 200)), truth)
    assert found.auc.value == 0.5
    assert found.p == 1.0
    assert all(rate.rate is None or rate.rate.value == 0 for rate in found.true_positives)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    # AUC of N(1, 1) against N(0, 1); 60 fresh samples, as many outside as the binomial law of 5 % allows at ALPHA.
    truth, best = np.arange(300)[None] < 150, stats.norm.cdf(1 / np.sqrt(2))
    missed = 0
    for seed in range(60):
        found = score_membership(np.random.default_rng(seed).standard_normal((1, 300)) + truth, truth).auc
        missed += not found.low <= best <= found.high
    assert missed <= stats.binom.isf(ALPHA, 60, 0.05)


def test_false_accusations_are_as_rare_as_stated():
    accused = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        members = rng.random((1, 60)) < 0.5
        accused += score_membership(rng.standard_normal((1, 60)), members, replicates=2).p < 0.05
    assert accused <= stats.binom.isf(ALPHA, 200, 0.05)


@pytest.mark.parametrize("truth", [np.ones((1, 4)), np.zeros((1, 4)), np.ones((2, 2))])
def test_a_score_without_members_or_others_is_refused(truth):
    with pytest.raises(AuditError):
        score_membership(np.zeros((1, 4)), truth.astype(bool))
