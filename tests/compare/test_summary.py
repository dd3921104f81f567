import numpy as np
import pytest

from rapt.compare.summary import estimate_mean

RECORDS = 100


def tables(rng, *, seeds, records, between, within):
    """A table whose true mean is 0: seeds deviate by `between`, entries by `within`."""
    return rng.normal(0, between, (seeds, 1)) + rng.normal(0, within, (seeds, records))


def coverage(resample, *, rng, runs=30):
    inside = 0
    for _ in range(runs):
        low, high = resample(tables(rng, seeds=10, records=RECORDS, between=1.0, within=1.0))
        inside += low <= 0 <= high
    return inside / runs


def test_the_interval_covers_the_mean_when_seeds_differ():
    def both(table):
        mean = estimate_mean(table)
        return mean.low, mean.high

    assert coverage(both, rng=np.random.default_rng(1)) > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_a_twin_that_resamples_records_only_does_not_cover(seed):
    def records_only(table):
        rng = np.random.default_rng(0)
        means = [table[:, rng.integers(RECORDS, size=RECORDS)].mean() for _ in range(200)]
        return np.percentile(means, [2.5, 97.5])

    assert coverage(records_only, rng=np.random.default_rng(seed)) < 0.6


def test_a_mean_is_the_mean_of_its_seeds():
    table = np.arange(12.0).reshape(3, 4)
    mean = estimate_mean(table)
    assert mean.value == pytest.approx(5.5)
    assert mean.each_seed == pytest.approx((1.5, 5.5, 9.5))
    assert mean.low < mean.value < mean.high


def test_a_constant_table_has_no_width():
    mean = estimate_mean(np.full((4, 9), 0.25))
    assert (mean.low, mean.value, mean.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_is_that_of_the_plain_resampling_loop():
    rng = np.random.default_rng(3)
    table = tables(rng, seeds=6, records=50, between=0.5, within=1.0)
    slow = [table[rng.integers(6, size=6)][:, rng.integers(50, size=50)].mean() for _ in range(20_000)]
    mean = estimate_mean(table)
    assert (mean.low, mean.high) == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.03)


def test_the_interval_covers_the_mean_when_seeds_take_turns():
    def turns(table):
        mean = estimate_mean(table, turns=[row % 5 for row in range(10)])
        return mean.low, mean.high

    assert coverage(turns, rng=np.random.default_rng(1), runs=20) > 0.8


def test_records_of_each_turn_are_resampled_by_themselves():
    rng = np.random.default_rng(4)
    table, turns = tables(rng, seeds=6, records=50, between=0.5, within=1.0), [0, 1, 2, 0, 1, 2]

    def slow():
        rows, columns = rng.integers(6, size=6), rng.integers(50, size=(3, 50))
        return np.mean([table[row][columns[turns[row]]].mean() for row in rows])

    mean = estimate_mean(table, turns=turns)
    assert (mean.low, mean.high) == pytest.approx(np.percentile([slow() for _ in range(20_000)], [2.5, 97.5]), abs=0.03)


def test_chance_of_records_that_no_two_seeds_share_evens_out():
    # Five seeds that were right on the same places: of the same records they tell no more than one, of others more.
    table = np.tile(np.random.default_rng(5).normal(0, 1, 100), (5, 1))
    same, others = estimate_mean(table), estimate_mean(table, turns=range(5))
    assert others.high - others.low < 0.7 * (same.high - same.low)
