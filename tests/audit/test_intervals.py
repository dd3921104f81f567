"""Intervals of shares: hand-worked values, coverage under clusters, and a twin that ignores clusters and must fail."""

import numpy as np
import pytest
from scipy import stats

from rapt.audit.intervals import compute_clustered_share, compute_independent_share, wilson
from significance import assert_probability


def test_wilson_equals_scipy():
    for hits, n in [(0, 10), (3, 10), (10, 10), (50, 1000)]:
        expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert wilson(hits / n, trials=n, quantile=stats.norm.ppf(0.975)) == pytest.approx(
            (expected.low, expected.high), abs=1e-12
        )


def test_a_share_of_one_token_records_has_as_many_trials_as_records(rng):
    hits = rng.random(400) < 0.3
    clustered, independent = (
        compute_clustered_share(hits, np.ones(400, dtype=np.int64)),
        compute_independent_share(hits),
    )
    assert clustered.value == independent.value
    assert clustered.high - clustered.low == pytest.approx(independent.high - independent.low, rel=0.02)


def test_copies_of_a_token_in_a_record_add_no_information():
    once = compute_clustered_share(np.arange(50) % 3 == 0, np.ones(50, dtype=np.int64))
    tenfold = compute_clustered_share(np.repeat(np.arange(50) % 3 == 0, 10), np.full(50, 10))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high), rel=0.02)


def test_nothing_recovered_is_not_certainty():
    share = compute_clustered_share(np.zeros(1000, dtype=bool), np.full(20, 50))
    assert share.value == share.low == 0
    assert 0.1 < share.high < 0.3  # 20 records without a hit, not 1,000 tokens


def test_no_tokens_have_no_share():
    assert compute_clustered_share(np.zeros(0, dtype=bool), np.zeros(3, dtype=np.int64)) is None


def test_records_without_tokens_do_not_count():
    share = compute_clustered_share(np.array([True, False, True]), np.array([0, 2, 0, 1, 0]))
    assert (share.n, share.clusters) == (3, 2)


def coverage(interval, rng, *, repeats=400):
    """How often an interval for a true share of 0.3 holds it, when records differ as beta variables do."""
    held = 0
    for _ in range(repeats):
        lengths = rng.integers(5, 30, 80)
        hits = rng.random(lengths.sum()) < np.repeat(rng.beta(1.5, 3.5, 80), lengths)
        share = interval(hits, lengths)
        held += share.low <= 0.3 <= share.high
    return held, repeats


def test_the_interval_holds_the_truth_as_often_as_it_says(rng):
    held, repeats = coverage(compute_clustered_share, rng)
    # Nominal 95 %; the ratio's variance is estimated from 80 records of unequal length, which costs about a point.
    assert held >= stats.binom.isf(1 - 1e-6, repeats, 0.94)


def test_the_coverage_test_can_fail():
    for seed in range(5):
        held, repeats = coverage(lambda hits, lengths: compute_independent_share(hits), np.random.default_rng(seed))
        assert held < stats.binom.isf(1 - 1e-6, repeats, 0.94)


def test_independent_trials_are_covered(rng):
    held = 0
    for _ in range(500):
        share = compute_independent_share(rng.random(200) < 0.4)
        held += share.low <= 0.4 <= share.high
    assert_probability(held, 500, 0.95)
