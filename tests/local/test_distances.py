"""Distances of a table against brute force, and bounds that no pair may exceed."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from rapt.local.distances import _LEAST_KEPT, _measure_isolation, measure_distances, measure_isolation
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
    assert found.rows == 1500
    assert found.largest_seen * (1 - 1e-6) <= pairs.max() <= found.largest_bound <= 2 * pairs.max()


def test_the_neighbours_of_all_rows_are_exact(rng):
    table = rng.standard_normal((1000, 16)).astype(np.float32)
    table[900] = table[3]
    nearest, _ = brute_force(table.astype(np.float64))
    assert np.allclose(measure_isolation(toy_vocabulary(table, special=(7,))), np.delete(nearest, 7), rtol=1e-6)


def test_a_large_table_keeps_its_distances_in_the_cache_and_reads_no_other(rng, tmp_path, monkeypatch):
    vocabulary = toy_vocabulary(rng.standard_normal((_LEAST_KEPT, 4)))
    nearest, _ = brute_force(vocabulary.embeddings.astype(np.float64))
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path))
    for damage in (None, b"", b"not an array", "none"):
        if isinstance(damage, bytes):
            next(tmp_path.iterdir()).write_bytes(damage)
        assert np.allclose(_measure_isolation.__wrapped__(vocabulary), nearest, rtol=1e-6)
        assert [path.name for path in tmp_path.iterdir()] == [f"isolation-{vocabulary.hash[7:]}.npy"]


def test_a_row_that_is_an_input_only_counts_among_the_farthest():
    found = measure_distances(toy_vocabulary([[0.0], [1.0], [50.0]], special=(2,)))
    assert found.largest_seen == pytest.approx(50.0, rel=1e-6)
    assert found.largest_bound >= 50.0


def test_one_token_is_at_no_distance():
    found = measure_distances(toy_vocabulary([[5.0, 5.0]]))
    assert found.nearest_50 == found.median == found.largest_seen == found.largest_bound == 0


def test_equal_rows_are_at_distance_zero_and_stay_finite():
    found = measure_distances(toy_vocabulary(np.ones((4, 2))))
    assert found.nearest_95 == found.median == 0
    assert math.isfinite(found.largest_bound)
