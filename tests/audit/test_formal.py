"""The formal side: curves that are those of the statement, slopes that are exact, and a defect that shows."""

import math
from dataclasses import replace

import numpy as np
import pytest

from audit_material import manifest_of, scattered_vocabulary
from rapt.audit.formal import DELTAS, compute_loss_curves, find_largest_slope, measure_formal_side
from rapt.local.guarantee import DELTA, state_privacy
from rapt.local.mechanisms import MECHANISMS, make_mechanism
from rapt.local.mechanisms.certificate import ROUNDING, find_largest_slopes
from rapt.wire.manifest import NO_PLAIN_TOKENS

ETA = 6.0


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=40, dim=4)


def setting_of(name, vocabulary):
    return manifest_of(vocabulary, eta=ETA, records=1, tokens=1, mechanism=name).mechanism


@pytest.mark.parametrize("name", ["laplace", "exponential", "mahalanobis"])
def test_a_curve_goes_through_the_numbers_of_the_statement(name, vocabulary):
    setting = setting_of(name, vocabulary)
    statement = state_privacy(vocabulary, setting, plain_tokens=NO_PLAIN_TOKENS, labels_sent=False)
    curves = {curve.name: curve for curve in compute_loss_curves(vocabulary, setting)}
    near = curves["a token, its nearest neighbour"]
    assert dict(near.points)[DELTA] == pytest.approx(statement.pairs[0].epsilon_at_delta)
    assert near.pure == pytest.approx(statement.pairs[0].epsilon)
    assert [epsilon for _, epsilon in near.points] == sorted((e for _, e in near.points), reverse=True)
    assert tuple(delta for delta, _ in near.points) == DELTAS


def test_a_mechanism_without_a_proof_has_no_curve(vocabulary):
    assert compute_loss_curves(vocabulary, setting_of("pct2t", vocabulary)) == ()


@pytest.mark.parametrize("name", ["exponential", "santext", "tem"])
def test_the_largest_slope_of_a_small_table_is_below_eta_and_reached_by_some_pair(name, vocabulary):
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=ETA)
    found = find_largest_slope(mechanism, vocabulary)
    assert found.whole
    assert found.pairs == 40 * 39 // 2
    assert ETA / 4 < found.value <= ETA * (1 + 1e-6)


def test_the_largest_slope_is_that_of_the_exact_search(vocabulary):
    mechanism = make_mechanism("exponential", vocabulary=vocabulary, eta=ETA)
    (expected,) = find_largest_slopes([mechanism.scores])
    assert find_largest_slope(mechanism, vocabulary).value == pytest.approx(expected.value, rel=2 * ROUNDING)


def test_a_channel_without_a_closed_form_has_no_slope(vocabulary):
    assert find_largest_slope(make_mechanism("laplace", vocabulary=vocabulary, eta=ETA), vocabulary) is None


def test_unequal_supports_have_no_slope_that_is_enough(vocabulary):
    class Broken:
        """Every token has an output of its own."""

        def log_probabilities(self, token_ids):
            table = np.full((len(token_ids), vocabulary.size), -math.inf)
            table[np.arange(len(token_ids)), token_ids] = 0.0
            return table

        def distances(self, left, right):
            return np.ones(len(left))

    assert find_largest_slope(Broken(), vocabulary).value is None


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanism_has_a_formal_side_that_accuses_it_of_nothing(name, vocabulary):
    found = measure_formal_side(vocabulary, setting_of(name, vocabulary), seed=0, runs=400)
    assert found.eta == ETA
    assert found.spent is None or 0 <= found.spent.lower <= ETA
    assert bool(found.curves) == (MECHANISMS[name].known.status == "proved")


def test_a_mechanism_from_a_file_that_is_not_here_has_its_curves_at_least(vocabulary):
    setting = setting_of("exponential", vocabulary)
    absent = replace(setting, parameters={**setting.parameters, "prior": "sha256:" + "0" * 64})
    found = measure_formal_side(vocabulary, absent, seed=0)
    assert (found.slope, found.spent) == (None, None)
