"""Distances of a table against brute force, and bounds that no pair may exceed."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from rapt.local.distances import SAMPLED_ROWS, measure_distances
from toy_vocabularies import toy_vocabulary


def brute_force(table):
    distances = cdist(table, table)
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1), distances[np.isfinite(distances)]


def test_a_small_table_is_measured_whole(rng):
    table = rng.standard_normal((60, 7)).astype(np.float32)
    found = measure_distances(toy_vocabulary(table))
    nearest, pairs = brute_force(table.astype(np.float64))
    assert (found.rows, found.tokens, found.pairs) == (60, 60, 60 * 59)
    assert found.nearest_50 == pytest.approx(np.median(nearest), rel=1e-5)
    assert found.nearest_5 == pytest.approx(np.quantile(nearest, 0.05), rel=1e-5)
    assert found.median == pytest.approx(np.median(pairs), rel=1e-5)
    assert found.largest_seen == pytest.approx(pairs.max(), rel=1e-5)


def test_special_tokens_are_no_neighbours():
    found = measure_distances(toy_vocabulary([[0.0], [0.1], [1.0], [3.0]], special=(1,)))
    assert found.tokens == 3
    assert found.nearest_50 == pytest.approx(1.0)
    assert found.largest_seen == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_no_pair_is_farther_apart_than_the_bound(seed):
    generator = np.random.default_rng(seed)
    table = (generator.standard_normal((1500, 3)) * generator.gamma(2, size=(1500, 1))).astype(np.float32)
    found = measure_distances(toy_vocabulary(table))
    _, pairs = brute_force(table.astype(np.float64))
    assert found.rows == SAMPLED_ROWS
    assert found.largest_seen * (1 - 1e-6) <= pairs.max() <= found.largest_bound <= 2 * pairs.max()


def test_neighbours_of_sampled_rows_are_exact_among_all_rows(rng):
    table = rng.standard_normal((3000, 16)).astype(np.float32)
    rows = np.unique(np.linspace(0, 2999, SAMPLED_ROWS).round().astype(int))
    nearest, _ = brute_force(table.astype(np.float64))
    found = measure_distances(toy_vocabulary(table))
    assert found.rows < found.tokens
    assert found.nearest_50 == pytest.approx(np.median(nearest[rows]), rel=1e-6)


def test_one_token_is_at_no_distance():
    found = measure_distances(toy_vocabulary([[5.0, 5.0]]))
    assert found.nearest_50 == found.median == found.largest_seen == found.largest_bound == 0


def test_equal_rows_are_at_distance_zero_and_stay_finite():
    found = measure_distances(toy_vocabulary(np.ones((4, 2))))
    assert found.nearest_95 == found.median == 0
    assert math.isfinite(found.largest_bound)
