"""Randomized response: exact probabilities, the inequality on them, and the draws against them."""

import math
from fractions import Fraction

import numpy as np
import pytest

from channel_checks import power_of_e
from rapt.errors import MechanismError, UsageError
from rapt.local.label_privacy import RandomizedResponse
from significance import assert_counts

WORD = 2**64
GRID = [(2, 1.0), (2, 1e-6), (2, 0.1), (3, 0.5), (10, 2.0), (256, 1e-6), (256, 5.0), (2, 40.0), (7, 700.0), (2, 1e308)]


def exact_matrix(response):
    """P(y|x) as fractions, as the code draws it."""
    keep, others = Fraction(response.threshold, WORD), response.classes - 1
    return [[keep if x == y else (1 - keep) / others for y in range(response.classes)] for x in range(response.classes)]


@pytest.mark.parametrize(("classes", "epsilon"), [case for case in GRID if case[1] <= 40])
def test_no_ratio_of_the_exact_probabilities_exceeds_e_to_the_epsilon(classes, epsilon):
    rows = exact_matrix(RandomizedResponse(classes=classes, epsilon=epsilon))
    limit = power_of_e(epsilon)
    for y in range(min(classes, 4)):
        column = [row[y] for row in rows]
        assert max(column) <= limit * min(column)


@pytest.mark.parametrize(("classes", "epsilon"), [case for case in GRID if case[1] <= 40])
def test_a_threshold_two_higher_would_break_the_guarantee(classes, epsilon):
    response = RandomizedResponse(classes=classes, epsilon=epsilon)
    keep = Fraction(response.threshold + 2, WORD)
    above = power_of_e(epsilon) * (1 + Fraction(1, 10**40))
    assert keep * (classes - 1) > above * (1 - keep)


@pytest.mark.parametrize(("classes", "epsilon"), GRID)
def test_a_label_is_never_certain_and_never_less_likely_than_another(classes, epsilon):
    response = RandomizedResponse(classes=classes, epsilon=epsilon)
    assert WORD <= response.threshold * classes
    assert response.threshold < WORD


def test_a_case_worked_by_hand():
    # e^ε = 3, K = 4: kept with 3/6, each other label with 1/6.
    response = RandomizedResponse(classes=4, epsilon=math.log(3))
    assert response.keep_probability == pytest.approx(1 / 2, rel=1e-15)


def joint_counts(response, rng, *, size=100_000):
    true = rng.integers(response.classes, size=size)
    released = np.array(response.randomize(true.tolist(), rng=rng))
    return np.bincount(true * response.classes + released, minlength=response.classes**2)


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 1.0), (3, 0.5), (5, 2.0), (10, 0.1)])
def test_draws_follow_the_matrix(classes, epsilon, rng):
    response = RandomizedResponse(classes=classes, epsilon=epsilon)
    law = np.array(exact_matrix(response), dtype=float) / classes
    assert_counts(joint_counts(response, rng), law.ravel())


@pytest.mark.parametrize("seed", range(5))
def test_the_test_of_draws_rejects_other_labels_drawn_with_the_true_one_among_them(seed):
    # The usual slip: with probability 1 - p any label is drawn, the true one too.
    rng = np.random.default_rng(seed)
    response = RandomizedResponse(classes=3, epsilon=0.5)
    true = rng.integers(3, size=100_000)
    released = np.where(rng.random(len(true)) < response.keep_probability, true, rng.integers(3, size=len(true)))
    law = np.array(exact_matrix(response), dtype=float) / 3
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(np.bincount(true * 3 + released, minlength=9), law.ravel())


def test_labels_of_one_call_are_drawn_independently(rng):
    response = RandomizedResponse(classes=2, epsilon=1.0)
    flipped = np.array(response.randomize([0] * 100_000, rng=rng)).reshape(-1, 2)
    flip = 1 - response.keep_probability
    pairs = np.bincount(flipped[:, 0] * 2 + flipped[:, 1], minlength=4)
    assert_counts(pairs, np.outer([1 - flip, flip], [1 - flip, flip]).ravel())


def test_the_number_of_draws_does_not_depend_on_the_labels():
    response = RandomizedResponse(classes=5, epsilon=1.0)
    states = []
    for labels in ([0] * 50, [4] * 50):
        rng = np.random.default_rng(3)
        response.randomize(labels, rng=rng)
        states.append(rng.bit_generator.state["state"])
    assert states[0] == states[1]


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1]])
def test_a_label_outside_is_refused_by_its_position(labels, rng):
    with pytest.raises(UsageError, match=f"at position {len(labels) - 1} of {len(labels)}"):
        RandomizedResponse(classes=2, epsilon=1.0).randomize(labels, rng=rng)


@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_labels_are_refused(classes):
    with pytest.raises(UsageError, match="at least 2 different ones"):
        RandomizedResponse(classes=classes, epsilon=1.0)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_an_epsilon_outside_its_domain_is_refused(epsilon):
    with pytest.raises(MechanismError, match="the epsilon of labels"):
        RandomizedResponse(classes=2, epsilon=epsilon)


def test_no_label_gives_no_label(rng):
    assert RandomizedResponse(classes=2, epsilon=1.0).randomize([], rng=rng) == []
