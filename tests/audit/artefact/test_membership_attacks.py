"""Membership: a model that remembers is found, one that does not is at chance, and no attack holds the answer.

The hierarchical attack: its closed form is that of the model it states, and few shadow models are enough for it.

RMIA against its definition, text by text.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, polygamma

from rapt.audit.artefact.membership import FALSE_POSITIVE_RATES, attack_each, score_membership
from rapt.audit.artefact.membership_attacks import (
    MEMBERSHIP_ATTACKS,
    MembershipView,
    Sides,
    _invert_trigamma,
    estimate_shifts,
    hierarchical,
    lira_online,
    log_ratio,
    rmia,
    shrink_variances,
)
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


SEEDS = range(5)


def one_by_one(target, inside, outside, *, variance, shift, spread):
    """The same ratio from the joint normal law of all answers on one text, μ being as good as unknown."""
    vague, answers = 1e8, np.array([*inside, *outside])
    had = np.array([1.0] * len(inside) + [0.0] * len(outside))
    density = []
    for member in (1.0, 0.0):
        marks = np.append(had, member)
        mean = shift * marks
        covariance = vague + spread * np.outer(marks, marks) + variance * np.eye(len(marks))
        solved = np.linalg.solve(covariance[:-1, :-1], np.column_stack([answers - mean[:-1], covariance[:-1, -1]]))
        expected = mean[-1] + covariance[-1, :-1] @ solved[:, 0]
        deviation = np.sqrt(covariance[-1, -1] - covariance[-1, :-1] @ solved[:, 1])
        density.append(stats.norm.logpdf(target, expected, deviation))
    return density[0] - density[1]


@pytest.mark.parametrize(("with_it", "without"), [(1, 1), (3, 5), (6, 1), (0, 4), (4, 0)])
@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
def test_the_closed_form_is_that_of_the_stated_law(with_it, without, spread):
    rng = np.random.default_rng(with_it)
    inside, outside = rng.standard_normal(with_it) + 1, rng.standard_normal(without)
    sides = Sides(
        inside=np.array([inside.mean() if with_it else 7.0]),
        with_it=np.array([with_it]),
        outside=np.array([outside.mean() if without else 7.0]),
        without=np.array([without]),
    )
    found = log_ratio(np.array([0.8]), sides, variance=np.array([0.5]), shift=0.9, spread=spread)
    expected = one_by_one(0.8, inside, outside, variance=0.5, shift=0.9, spread=spread)
    assert found[0] == pytest.approx(expected, abs=1e-5)


def game(*, seed, models=9, texts=600, memory=1.0, temper=0.0):
    """Confidences of a known law; `temper` is how much surer of everything one model is than another."""
    rng = np.random.default_rng(seed)
    members = rng.random((models, texts)) < 0.5
    scale = np.sqrt(5 / rng.chisquare(5, texts))
    shifts = memory * (1 + 0.3 * rng.standard_normal(texts))
    answers = 2 * rng.standard_normal(texts) + shifts * members + scale * rng.standard_normal((models, texts))
    return answers + temper * rng.standard_normal((models, 1)), members


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temper", [0.0, 1.0])
def test_with_few_shadow_models_it_finds_more_than_lira(seed, temper):
    answers, members = game(seed=seed, temper=temper)
    found = {attack.attack: attack.score.auc for attack in attack_each(answers, members, seed=0)}
    assert found["hierarchical"].value > found["lira_online"].value + (0.05 if temper else 0.015)


def test_how_sure_a_model_is_of_everything_changes_nothing_for_it_and_much_for_lira():
    answers, members = game(seed=0)
    louder = answers * np.linspace(0.5, 2.0, len(answers))[:, None] + np.linspace(-3.0, 3.0, len(answers))[:, None]
    plain, moved = (
        MembershipView(target=values[0], shadows=values[1:], members=members[1:]) for values in (answers, louder)
    )
    np.testing.assert_allclose(hierarchical(plain), hierarchical(moved), atol=1e-9)
    assert not np.allclose(lira_online(plain), lira_online(moved), atol=1.0)


def test_answers_that_are_all_the_same_are_no_evidence():
    members = np.array([[True, False], [False, True], [True, True]])
    view = MembershipView(target=np.ones(2), shadows=np.ones((3, 2)), members=members)
    assert np.array_equal(hierarchical(view), np.zeros(2))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_law_of_shifts_is_found_and_no_spread_where_there_is_none(seed):
    rng = np.random.default_rng(seed)
    variances = rng.uniform(0.2, 1.0, 4000)
    noise = np.sqrt(variances) * rng.standard_normal(4000)
    mean, spread = estimate_shifts(0.7 + 0.5 * rng.standard_normal(4000) + noise, variances)
    assert mean == pytest.approx(0.7, abs=0.07)
    assert spread == pytest.approx(0.25, abs=0.12)
    mean, spread = estimate_shifts(0.7 + noise, variances)
    assert mean == pytest.approx(0.7, abs=0.06)
    assert spread < 0.06
    assert estimate_shifts(np.zeros(0), np.zeros(0)) == (0.0, 0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_shrunk_variances_are_nearer_to_the_truth_than_ones_own_or_the_common_one(seed):
    rng = np.random.default_rng(seed)
    truth, freedom = 2.0 * 6 / rng.chisquare(6, 2000), np.full(2000, 5)
    squares = truth * rng.chisquare(5, 2000)

    def missed(variances):
        return float(((np.log(variances) - np.log(truth)) ** 2).mean())

    found = shrink_variances(squares, freedom)
    assert missed(found) < 0.8 * min(missed(squares / freedom), missed(np.full(2000, squares.sum() / freedom.sum())))


def test_many_models_leave_a_text_its_own_variance_and_one_leaves_it_everybodys():
    rng = np.random.default_rng(0)
    truth = 2.0 * 6 / rng.chisquare(6, 300)
    freedom = np.append(np.full(299, 4000), 0)
    squares = np.append(truth[:299] * rng.chisquare(4000, 299), 0.0)
    found = shrink_variances(squares, freedom)
    np.testing.assert_allclose(found[:299], squares[:299] / 4000, rtol=0.05)
    assert np.quantile(truth, 0.1) < found[299] < np.quantile(truth, 0.9)


@pytest.mark.parametrize("value", [1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6])
def test_the_trigamma_function_is_inverted(value):
    assert float(polygamma(1, _invert_trigamma(value))) == pytest.approx(value, rel=1e-8)


def test_equal_variances_are_not_told_apart():
    # The excess over chance is below 0 half of the time; then all share one variance.
    rng = np.random.default_rng(0)
    spreads = [np.ptp(shrink_variances(rng.chisquare(8, 500), np.full(500, 8))) for _ in range(40)]
    assert min(spreads) == 0.0
    assert max(spreads) < 0.5
    assert stats.binomtest(sum(spread == 0 for spread in spreads), 40, 0.5).pvalue > ALPHA


def by_definition(view, *, gamma):
    """Share of the other texts z with [p(x | model) / p(x)] / [p(z | model) / p(z)] of at least γ."""
    ratios = []
    for text, confidence in enumerate(view.target):
        inside = [expit(row[text]) for row, had in zip(view.shadows, view.members[:, text], strict=True) if had]
        outside = [expit(row[text]) for row, had in zip(view.shadows, view.members[:, text], strict=True) if not had]
        ratios.append(expit(confidence) / ((np.mean(inside) + np.mean(outside)) / 2))
    return np.array(
        [
            np.mean([ratio / other >= gamma for at, other in enumerate(ratios) if at != text])
            for text, ratio in enumerate(ratios)
        ]
    )


@pytest.fixture
def view():
    rng = np.random.default_rng(0)
    members = np.stack([np.ones(50), np.zeros(50), rng.random(50) < 0.5, rng.random(50) < 0.5]).astype(bool)
    return MembershipView(target=2 * rng.standard_normal(50), shadows=2 * rng.standard_normal((4, 50)), members=members)


def test_it_is_the_share_of_texts_that_it_is_surer_than(view):
    np.testing.assert_allclose(rmia(view), by_definition(view, gamma=1.0))


def test_another_gamma_orders_texts_alike_with_more_ties(view):
    one, two = rmia(view), by_definition(view, gamma=2.0)
    order = np.argsort(one)
    assert (np.diff(two[order]) >= 0).all()
    assert len(set(two)) < len(set(one))
