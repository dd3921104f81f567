"""Mahalanobis, Vickrey and the rank fix: channels by summation over a fine grid, and the guarantee on them."""

import numpy as np
import pytest
from scipy import stats

from channel_checks import (
    LINE,
    SPECIAL,
    TABLES,
    assert_drawn_as_stated,
    count_outputs,
    distances_to,
    euclidean,
    grid_channel,
    largest_excess,
    nearest_kernel,
)
from rapt.errors import MechanismError
from rapt.local.mechanisms import make_mechanism
from rapt.local.mechanisms.laplace import LaplaceMechanism, sample_noise
from rapt.local.mechanisms.mahalanobis import MahalanobisMechanism
from rapt.local.mechanisms.near_tokens import RankFixMechanism, VickreyMechanism, find_nearest_tokens, sample_rank
from significance import assert_counts, assert_distributed
from toy_vocabularies import toy_vocabulary

SEEDS = range(5)
ETA = 2.0


@pytest.fixture(params=TABLES)
def vocabulary(request):
    return toy_vocabulary(TABLES[request.param], special=SPECIAL)


# Oracles: what each mechanism does with a noisy vector, written down a second time.


def naive_root(vocabulary, mixing):
    """A square root of S other than Cholesky's, from the eligible rows."""
    rows = vocabulary.embeddings[vocabulary.eligible].astype(float)
    covariance = np.cov(rows.T, bias=True).reshape(rows.shape[1], rows.shape[1])
    shape = mixing * covariance / np.diag(covariance).mean() + (1 - mixing) * np.eye(rows.shape[1])
    values, vectors = np.linalg.eigh(shape)
    return vectors @ np.diag(np.sqrt(values)) @ vectors.T


def vickrey_kernel(table, ids, tuning):
    def kernel(grid):
        distances = distances_to(table, grid, ids)
        order = distances.argsort(axis=1, kind="stable")
        first, second = (np.take_along_axis(distances, order[:, i : i + 1], axis=1)[:, 0] for i in (0, 1))
        keep = (1 - tuning) * second / (tuning * first + (1 - tuning) * second)
        found, each = np.zeros(distances.shape), np.arange(len(grid))
        found[each, order[:, 0]] = keep
        found[each, order[:, 1]] += 1 - keep
        return found

    return kernel


def rank_matrix(table, ids, rate):
    """K(y|w), (C, C)."""
    distances = euclidean(np.asarray(table, dtype=float)[ids])
    ranks = distances.argsort(axis=1, kind="stable").argsort(axis=1)
    weights = np.exp(-rate * ranks)
    return weights / weights.sum(axis=1, keepdims=True)


_channels = {}


def channel_of(mechanism):
    """P(y|x) from the oracles, (V, C); each is computed once."""
    key = (mechanism.vocabulary.hash, str(mechanism.setting))
    if key not in _channels:
        _channels[key] = compute_channel(mechanism)
    return _channels[key]


def compute_channel(mechanism):
    vocabulary = mechanism.vocabulary
    table, ids = vocabulary.embeddings.astype(float), vocabulary.eligible
    if isinstance(mechanism, VickreyMechanism):
        return grid_channel(table, vickrey_kernel(table, ids, mechanism.tuning), eta=mechanism.eta)
    if isinstance(mechanism, RankFixMechanism):
        plain = grid_channel(table, nearest_kernel(table, ids), eta=mechanism.eta)
        return plain @ rank_matrix(table, ids, mechanism.decay * mechanism.eta)
    root = naive_root(vocabulary, mechanism.mixing)
    return grid_channel(table, nearest_kernel(table, ids), eta=mechanism.eta, root=root)


def metric_of(mechanism):
    table = mechanism.vocabulary.embeddings.astype(float)
    if isinstance(mechanism, MahalanobisMechanism):
        return euclidean(table @ np.linalg.inv(naive_root(mechanism.vocabulary, mechanism.mixing)).T)
    return euclidean(table)


SETTINGS = {
    "mahalanobis": {"mixing": 0.8},
    "vickrey": {"tuning": 0.6},
    "vickrey second": {"tuning": 1.0},
    "rank-fix": {"decay": 0.3},
}


def make(setting, vocabulary, eta=ETA):
    return make_mechanism(setting.split()[0], vocabulary=vocabulary, eta=eta, options=SETTINGS[setting])


@pytest.mark.parametrize("setting", SETTINGS)
def test_outputs_are_drawn_from_the_channel(setting, vocabulary, rng):
    mechanism = make(setting, vocabulary)
    assert_drawn_as_stated(mechanism, vocabulary, rng, channel=channel_of(mechanism), draws=10_000)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_test_of_the_draws_can_fail(setting):
    vocabulary = toy_vocabulary(LINE, special=SPECIAL)
    channel = channel_of(make(setting, vocabulary))
    for seed in SEEDS:
        counts = count_outputs(make(setting, vocabulary, 1.25 * ETA), vocabulary, 0, np.random.default_rng(seed))
        with pytest.raises(AssertionError, match="chi-square rejects"):
            assert_counts(counts, channel[0])


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_guarantee_holds_for_every_triple(setting, vocabulary):
    # On a grid that is the same for all inputs the inequality holds term by term, so nothing is lost by the sum but the
    # noise beyond the grid, of weight 1e-6.
    mechanism = make(setting, vocabulary)
    with np.errstate(divide="ignore"):
        log_channel = np.log(channel_of(mechanism))
    assert largest_excess(log_channel, metric_of(mechanism), ETA) <= 1e-4


@pytest.mark.parametrize("setting", ["mahalanobis", "vickrey", "rank-fix"])
def test_the_guarantee_test_sees_an_eta_five_percent_too_large(setting):
    # Outputs far out on the line through two tokens meet the bound.
    table = np.array([[0.0], [1.0], [-3.0], [-6.0], [4.0]])
    if setting == "rank-fix":
        table = table[[0, 1, 2, 4]]
    vocabulary = toy_vocabulary(table)
    options = {"rank-fix": {"decay": 20.0}, "vickrey": {"tuning": 0.0}}.get(setting, {})
    excess = []
    for factor in (1.0, 1.05):
        mechanism = make_mechanism(setting, vocabulary=vocabulary, eta=factor * ETA, options=options)
        with np.errstate(divide="ignore"):
            log_channel = np.log(channel_of(mechanism))
        excess.append(largest_excess(log_channel, metric_of(mechanism), ETA))
    assert -0.02 < excess[0] <= 1e-4
    assert excess[1] > 0.03 * ETA


# Mahalanobis.


def test_the_noise_is_gamma_in_the_metric_of_the_guarantee(rng):
    vocabulary = toy_vocabulary(rng.standard_normal((50, 12)) * np.linspace(0.2, 3, 12))
    mechanism = MahalanobisMechanism(vocabulary=vocabulary, eta=ETA, mixing=0.9)
    noise = sample_noise(rng, eta=ETA, dim=12, size=20_000) @ mechanism.root.T
    white = noise @ np.linalg.inv(naive_root(vocabulary, 0.9)).T
    assert_distributed(np.linalg.norm(white, axis=1), stats.gamma(a=12, scale=1 / ETA))
    cosine = white[:, 0] / np.linalg.norm(white, axis=1)
    assert_distributed(cosine, stats.beta(11 / 2, 11 / 2, loc=-1, scale=2))


def test_without_mixing_it_is_the_laplace_mechanism(vocabulary):
    ids = np.tile(np.arange(vocabulary.size), 10)
    plain = LaplaceMechanism(vocabulary=vocabulary, eta=ETA)
    mixed = MahalanobisMechanism(vocabulary=vocabulary, eta=ETA, mixing=0.0)
    assert (
        plain.privatize(ids, rng=np.random.default_rng(1)) == mixed.privatize(ids, rng=np.random.default_rng(1))
    ).all()
    assert mixed.euclidean_slope == pytest.approx(ETA)


def test_the_euclidean_slope_bounds_the_guarantee_in_euclidean_distance():
    vocabulary = toy_vocabulary(np.random.default_rng(1).standard_normal((40, 5)) * [3, 1, 1, 0.5, 0.01])
    mechanism = MahalanobisMechanism(vocabulary=vocabulary, eta=ETA, mixing=0.9)
    own, plain = metric_of(mechanism), euclidean(vocabulary.embeddings.astype(float))
    off = ~np.eye(40, dtype=bool)
    ratio = (own[off] / plain[off]).max()
    assert ETA * ratio <= mechanism.euclidean_slope <= ETA / np.sqrt(1 - 0.9) * (1 + 1e-9)
    assert mechanism.euclidean_slope > 1.5 * ETA


def test_only_eligible_rows_count_for_the_covariance():
    table = np.random.default_rng(1).standard_normal((30, 3))
    moved = table.copy()
    moved[4] += 100
    here, there = (toy_vocabulary(rows, special=(4,)) for rows in (table, moved))
    assert np.allclose(
        MahalanobisMechanism(vocabulary=here, eta=1.0).shape_matrix,
        MahalanobisMechanism(vocabulary=there, eta=1.0).shape_matrix,
    )


@pytest.mark.parametrize("mixing", [-0.1, 1.0])
def test_a_mixing_outside_its_domain_is_refused(mixing, vocabulary):
    with pytest.raises(MechanismError, match="mixing must be between"):
        MahalanobisMechanism(vocabulary=vocabulary, eta=1.0, mixing=mixing)


# Vickrey.


def test_without_tuning_it_is_the_laplace_mechanism_and_with_all_of_it_the_second_nearest(vocabulary):
    ids = np.repeat(vocabulary.eligible, 50)
    nearest = VickreyMechanism(vocabulary=vocabulary, eta=1e7, tuning=0.0).privatize(ids, rng=np.random.default_rng(1))
    assert (nearest == ids).all()
    second = VickreyMechanism(vocabulary=vocabulary, eta=1e7, tuning=1.0).privatize(ids, rng=np.random.default_rng(1))
    distances = euclidean(vocabulary.embeddings[vocabulary.eligible].astype(float))
    np.fill_diagonal(distances, np.inf)
    assert (
        distances[np.searchsorted(vocabulary.eligible, ids), np.searchsorted(vocabulary.eligible, second)]
    ).tolist() == (pytest.approx(np.repeat(distances.min(axis=1), 50)))


@pytest.mark.parametrize("tuning", [-0.1, 1.1])
def test_a_tuning_outside_its_domain_is_refused(tuning, vocabulary):
    with pytest.raises(MechanismError, match="tuning must be between"):
        VickreyMechanism(vocabulary=vocabulary, eta=1.0, tuning=tuning)


# Ranks.


@pytest.mark.parametrize("rate", [1e-6, 0.3, 2.0, 50.0])
def test_ranks_are_geometric_and_end_at_the_largest(rate, rng):
    ranks = sample_rank(rng, rate=rate, largest=9, size=50_000)
    weights = np.exp(-rate * np.arange(10))
    assert_counts(np.bincount(ranks, minlength=10), weights / weights.sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_test_of_ranks_can_fail(seed):
    ranks = sample_rank(np.random.default_rng(seed), rate=0.33, largest=9, size=50_000)
    weights = np.exp(-0.3 * np.arange(10))
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(np.bincount(ranks, minlength=10), weights / weights.sum())


@pytest.mark.parametrize("decay", [0.0, -1.0])
def test_a_decay_outside_its_domain_is_refused(decay, vocabulary):
    with pytest.raises(MechanismError, match="decay must be above 0"):
        RankFixMechanism(vocabulary=vocabulary, eta=1.0, decay=decay)


# Neighbours.


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_the_nearest_tokens_are_those_of_brute_force(count, rng):
    table = rng.standard_normal((300, 6)).astype(np.float32)
    table[10] = table[200]  # a tie
    table[11] = table[201]
    eligible = np.delete(np.arange(300), [3, 5])
    vectors = np.concatenate([rng.standard_normal((150, 6)) * 3, table[[10, 11, 200]].astype(float)])
    ids, distances = find_nearest_tokens(vectors, embeddings=table, eligible=eligible, count=count)
    for vector, found, lengths in zip(vectors, ids, distances, strict=True):
        exact = np.linalg.norm(vector - table[eligible].astype(float), axis=1)
        expected = np.argsort(exact, kind="stable")[:count]
        assert (found == eligible[expected]).all()
        assert lengths == pytest.approx(exact[expected])


def test_no_more_neighbours_than_tokens():
    ids, _ = find_nearest_tokens(
        np.zeros((3, 1)), embeddings=np.array([[2.0], [1.0]], dtype=np.float32), eligible=np.arange(2), count=9
    )
    assert ids.tolist() == [[1, 0]] * 3
