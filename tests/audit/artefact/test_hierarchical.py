"""The hierarchical attack: its closed form is that of the model it states, and few shadow models are enough for it."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import polygamma

from rapt.audit.artefact.game import attack_each
from rapt.audit.artefact.hierarchical import (
    Sides,
    _inverse_trigamma,
    hierarchical,
    law_of_shifts,
    log_ratio,
    shrunk_variances,
)
from rapt.audit.artefact.lira import lira_online
from rapt.audit.artefact.membership_view import MembershipView
from significance import ALPHA

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
    mean, spread = law_of_shifts(0.7 + 0.5 * rng.standard_normal(4000) + noise, variances)
    assert mean == pytest.approx(0.7, abs=0.07)
    assert spread == pytest.approx(0.25, abs=0.12)
    mean, spread = law_of_shifts(0.7 + noise, variances)
    assert mean == pytest.approx(0.7, abs=0.06)
    assert spread < 0.06
    assert law_of_shifts(np.zeros(0), np.zeros(0)) == (0.0, 0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_shrunk_variances_are_nearer_to_the_truth_than_ones_own_or_the_common_one(seed):
    rng = np.random.default_rng(seed)
    truth, freedom = 2.0 * 6 / rng.chisquare(6, 2000), np.full(2000, 5)
    squares = truth * rng.chisquare(5, 2000)

    def missed(variances):
        return float(((np.log(variances) - np.log(truth)) ** 2).mean())

    found = shrunk_variances(squares, freedom)
    assert missed(found) < 0.8 * min(missed(squares / freedom), missed(np.full(2000, squares.sum() / freedom.sum())))


def test_many_models_leave_a_text_its_own_variance_and_one_leaves_it_everybodys():
    rng = np.random.default_rng(0)
    truth = 2.0 * 6 / rng.chisquare(6, 300)
    freedom = np.append(np.full(299, 4000), 0)
    squares = np.append(truth[:299] * rng.chisquare(4000, 299), 0.0)
    found = shrunk_variances(squares, freedom)
    np.testing.assert_allclose(found[:299], squares[:299] / 4000, rtol=0.05)
    assert np.quantile(truth, 0.1) < found[299] < np.quantile(truth, 0.9)


@pytest.mark.parametrize("value", [1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6])
def test_the_trigamma_function_is_inverted(value):
    assert float(polygamma(1, _inverse_trigamma(value))) == pytest.approx(value, rel=1e-8)


def test_equal_variances_are_not_told_apart():
    # The excess over chance is below 0 half of the time; then all share one variance.
    rng = np.random.default_rng(0)
    spreads = [np.ptp(shrunk_variances(rng.chisquare(8, 500), np.full(500, 8))) for _ in range(40)]
    assert min(spreads) == 0.0
    assert max(spreads) < 0.5
    assert stats.binomtest(sum(spread == 0 for spread in spreads), 40, 0.5).pvalue > ALPHA
