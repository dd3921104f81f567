"""The multivariate Laplace mechanism: its law, its channel at d = 1, its guarantee, and twins with known defects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from broken_twins import gamma_per_coordinate, uniform_in_the_ball
from channel_checks import (
    SPECIAL,
    assert_drawn_as_stated,
    euclidean,
    grid_channel,
    largest_excess,
    nearest_kernel,
)
from rapt.errors import MechanismError, VocabularyError
from rapt.local.calibration_search import UnchangedCurve, find_crossing
from rapt.local.guarantee import state_privacy
from rapt.local.mechanisms import make_mechanism
from rapt.local.mechanisms.laplace import LaplaceMechanism, sample_noise, scale_rows
from rapt.local.randomness import insecure_stream, secure_stream, worker_stream
from rapt.local.retention import measure_kinds
from rapt.local.vocabulary import load_vocabulary
from rapt.local.weighting import weigh_running_text
from rapt.wire.manifest import NO_PLAIN_TOKENS
from significance import assert_counts, assert_distributed, assert_probability
from toy_vocabularies import toy_vocabulary, toy_word

ETA = 2.0
DIMENSIONS = [1, 2, 50, 384]
SEEDS = range(5)


def size_of(dim):
    """Enough to tell Gamma(d) from Gamma(d + 1), whose means differ by 1/sqrt(d) of a standard deviation."""
    return 100_000 if dim > 50 else 20_000


def draw(sampler, rng, *, dim, size, at_once=10_000):
    for start in range(0, size, at_once):
        yield sampler(rng, eta=ETA, dim=dim, size=min(at_once, size - start))


def radii(sampler, rng, *, dim):
    return np.concatenate([np.linalg.norm(z, axis=1) for z in draw(sampler, rng, dim=dim, size=size_of(dim))])


def cosines(sampler, rng, *, dim, along):
    """Cosine between each noise vector and a fixed direction."""
    parts = []
    for z in draw(sampler, rng, dim=dim, size=20_000):
        parts.append(z @ along / np.linalg.norm(z, axis=1) / np.linalg.norm(along))
    return np.concatenate(parts)


def radius_law(dim):
    return stats.gamma(a=dim, scale=1 / ETA)


def cosine_law(dim):
    """The law of one coordinate of a uniform point on the unit sphere in d >= 2 dimensions."""
    return stats.beta((dim - 1) / 2, (dim - 1) / 2, loc=-1, scale=2)


# Twins: each has a defect that was found in published code (see docs/guarantee.md).


def wrong_shape(rng, *, eta, dim, size):
    direction = rng.standard_normal((size, dim))
    return direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.gamma(dim + 1, 1 / eta, (size, 1))


def wrong_scale(rng, *, eta, dim, size):
    return 1.1 * sample_noise(rng, eta=eta, dim=dim, size=size)


def normalized_as_a_batch(rng, *, eta, dim, size):
    """One norm for the whole matrix: only a matrix of one row has the right law."""
    direction = rng.standard_normal((size, dim))
    return direction / np.linalg.norm(direction) * rng.gamma(dim, 1 / eta, (size, 1))


def cube_direction(rng, *, eta, dim, size):
    """A direction through a uniform point of the cube: too often along its diagonals."""
    direction = rng.uniform(-1, 1, (size, dim))
    return direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.gamma(dim, 1 / eta, (size, 1))


def shared_direction(rng, *, eta, dim, size):
    """One direction for every two tokens."""
    direction = np.repeat(rng.standard_normal(((size + 1) // 2, dim)), 2, axis=0)[:size]
    return direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.gamma(dim, 1 / eta, (size, 1))


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_radius_is_gamma(dim, rng):
    assert_distributed(radii(sample_noise, rng, dim=dim), radius_law(dim))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dim", [1, 2, 50])
@pytest.mark.parametrize(
    "twin", [wrong_shape, wrong_scale, gamma_per_coordinate, normalized_as_a_batch], ids=lambda f: f.__name__
)
def test_the_radius_test_can_fail(twin, dim, seed):
    if twin is gamma_per_coordinate and dim == 1:
        dim = 3  # at d = 1 a uniform sign alone is missing, which the solid ball stands for
    with pytest.raises(AssertionError, match="KS rejects"):
        assert_distributed(radii(twin, np.random.default_rng(seed), dim=dim), radius_law(dim))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_radius_test_can_fail_at_the_width_of_minilm(seed):
    wrong = np.random.default_rng(seed).gamma(384 + 1, 1 / ETA, size_of(384))
    with pytest.raises(AssertionError, match="KS rejects"):
        assert_distributed(wrong, radius_law(384))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_solid_ball_is_rejected_in_low_dimension(dim, seed):
    with pytest.raises(AssertionError, match="KS rejects"):
        assert_distributed(radii(uniform_in_the_ball, np.random.default_rng(seed), dim=dim), radius_law(dim))


@pytest.mark.parametrize("dim", [2, 50, 384])
def test_direction_is_uniform_on_the_sphere(dim, rng):
    for along in (np.eye(dim)[0], np.eye(dim)[-1], np.ones(dim), rng.standard_normal(dim)):
        assert_distributed(cosines(sample_noise, rng, dim=dim, along=along), cosine_law(dim))


def test_direction_is_a_fair_sign_at_one_dimension(rng):
    noise = sample_noise(rng, eta=ETA, dim=1, size=20_000)
    assert_probability(int((noise > 0).sum()), 20_000, 0.5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("twin", "dim"), [(cube_direction, 2), (cube_direction, 3), (gamma_per_coordinate, 2)])
def test_the_direction_test_can_fail(twin, dim, seed):
    with pytest.raises(AssertionError, match="KS rejects"):
        assert_distributed(cosines(twin, np.random.default_rng(seed), dim=dim, along=np.ones(dim)), cosine_law(dim))


def test_radius_does_not_depend_on_direction(rng):
    noise = sample_noise(rng, eta=ETA, dim=5, size=40_000)
    radius = np.linalg.norm(noise, axis=1)
    assert_distributed(radius[noise[:, 0] > 0.5 * radius], radius_law(5))


@pytest.mark.parametrize("dim", [2, 50])
def test_noise_is_independent_between_tokens(dim, rng):
    noise = sample_noise(rng, eta=ETA, dim=dim, size=40_000)
    assert_distributed(cosines_of_pairs(noise[0::2], noise[1::2]), cosine_law(dim))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_independence_test_can_fail(seed):
    noise = shared_direction(np.random.default_rng(seed), eta=ETA, dim=50, size=4_000)
    with pytest.raises(AssertionError, match="KS rejects"):
        assert_distributed(cosines_of_pairs(noise[0::2], noise[1::2]), cosine_law(50))


@pytest.mark.parametrize(
    "streams",
    [
        lambda: (secure_stream(), secure_stream()),
        lambda: tuple(worker_stream(insecure_stream(7).provenance, position=i) for i in (0, 1)),
        lambda: (insecure_stream(7), worker_stream(insecure_stream(7).provenance, position=0)),
    ],
    ids=["two secure", "two workers", "a worker and its parent"],
)
def test_noise_is_independent_between_streams(streams):
    left, right = (sample_noise(s.generator, eta=ETA, dim=20, size=20_000) for s in streams())
    assert_distributed(cosines_of_pairs(left, right), cosine_law(20))


def test_the_secure_stream_gives_the_same_law():
    noise = sample_noise(secure_stream().generator, eta=ETA, dim=20, size=20_000)
    assert_distributed(np.linalg.norm(noise, axis=1), radius_law(20))


def cosines_of_pairs(left, right):
    product = np.einsum("ij,ij->i", left, right)
    return product / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


# The whole channel at d = 1, where it has a closed form.

LINE = [-2.0, 3.5, -0.5, 0.0, 0.25, 1.0, 1.5, 0.6]  # row 7 is special: an input, never an output


def find_closed_channel(vocabulary, eta):
    """P(y|x), (V, number of eligible), and the eligible ids: differences of the Laplace law over Voronoi cells."""
    points = vocabulary.embeddings[:, 0].astype(float)
    order = vocabulary.eligible[np.argsort(points[vocabulary.eligible])]
    edges = np.concatenate([[-np.inf], (points[order][1:] + points[order][:-1]) / 2, [np.inf]])
    cumulative = stats.laplace(scale=1 / eta).cdf(edges[None, :] - points[:, None])
    survival = stats.laplace(scale=1 / eta).sf(edges[None, :] - points[:, None])
    # A difference of two numbers near 1 loses its digits: the upper tail goes by the survival function.
    upper = edges[None, :-1] > points[:, None]
    channel = np.where(upper, survival[:, :-1] - survival[:, 1:], cumulative[:, 1:] - cumulative[:, :-1])
    return channel, order


def largest_excess_on_a_line(channel, points, eta):
    """Over all triples, the most by which log P(y|x) - log P(y|x') exceeds eta * |x - x'|."""
    return max(
        np.max(np.log(channel[x]) - np.log(channel[other])) - eta * abs(points[x] - points[other])
        for x, other in itertools.permutations(range(len(points)), 2)
    )


def draw_counts(mechanism, x, order, rng, *, size=20_000):
    out = mechanism.privatize(np.full(size, x), rng=rng)
    return np.bincount(out, minlength=len(LINE))[order]


@pytest.mark.parametrize("eta", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("x", range(len(LINE)))
def test_the_channel_at_one_dimension_is_its_closed_form(x, eta, rng):
    vocabulary = toy_vocabulary(np.array(LINE)[:, None], special=SPECIAL)
    channel, order = find_closed_channel(vocabulary, eta)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
    assert_counts(draw_counts(mechanism, x, order, rng), channel[x])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_channel_test_can_fail(seed):
    vocabulary = toy_vocabulary(np.array(LINE)[:, None], special=SPECIAL)
    channel, order = find_closed_channel(vocabulary, 2.0)
    wrong = make_mechanism("laplace", vocabulary=vocabulary, eta=2.2)
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(draw_counts(wrong, 3, order, np.random.default_rng(seed)), channel[3])


@pytest.mark.parametrize("eta", [0.3, 2.0, 20.0])
def test_the_guarantee_holds_for_every_triple(eta):
    vocabulary = toy_vocabulary(np.array(LINE)[:, None], special=SPECIAL)
    channel, _ = find_closed_channel(vocabulary, eta)
    assert np.allclose(channel.sum(axis=1), 1.0)
    assert largest_excess_on_a_line(channel, vocabulary.embeddings[:, 0].astype(float), eta) <= 1e-9


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("eta", [0.3, 2.0, 20.0])
def test_the_guarantee_test_sees_an_eta_five_percent_too_large(eta, seed):
    points = np.random.default_rng(seed).uniform(-3, 3, (9, 1))
    vocabulary = toy_vocabulary(points)
    channel, _ = find_closed_channel(vocabulary, 1.05 * eta)
    assert largest_excess_on_a_line(channel, vocabulary.embeddings[:, 0].astype(float), eta) > 0.01 * eta


# The mechanism on a real table.


def test_a_smaller_eta_keeps_fewer_tokens(bert_tiny, rng):
    ids = rng.choice(bert_tiny.eligible, 500)
    kept = [
        (make_mechanism("laplace", vocabulary=bert_tiny, eta=eta).privatize(ids, rng=rng) == ids).mean()
        for eta in (1.0, 30.0, 60.0, 120.0, 2000.0)
    ]
    assert kept == sorted(kept)
    assert kept[0] < 0.02
    assert kept[-1] > 0.99


@pytest.mark.parametrize("factor", [0.25, 2.0])  # powers of two: scaling by them is exact
def test_a_table_divided_by_c_with_eta_times_c_gives_the_same_draws(factor, rng):
    table = rng.standard_normal((300, 12)).astype(np.float32)
    ids = rng.integers(300, size=2_000)
    here = make_mechanism("laplace", vocabulary=toy_vocabulary(table), eta=4.0)
    there = make_mechanism("laplace", vocabulary=toy_vocabulary(table / np.float32(factor)), eta=4.0 * factor)
    out = here.privatize(ids, rng=insecure_stream(1).generator)
    assert 0.05 < (out == ids).mean() < 0.95
    assert (out == there.privatize(ids, rng=insecure_stream(1).generator)).all()


@pytest.mark.parametrize("eta", [1e-4, 1.0, 75.0, 1e4])
def test_special_and_unused_tokens_are_never_an_output(bert_tiny, eta, rng):
    everything = np.setdiff1d(np.arange(bert_tiny.size), bert_tiny.eligible)
    assert {0, 1, 100, 101, 102, 103, 999} - {999} <= set(everything.tolist())
    ids = np.concatenate([everything, rng.choice(bert_tiny.eligible, 500)])
    out = make_mechanism("laplace", vocabulary=bert_tiny, eta=eta).privatize(ids, rng=rng)
    assert out.dtype == np.int64
    assert np.isin(out, bert_tiny.eligible).all()


def test_a_token_that_may_not_leave_is_replaced_by_its_nearest_when_there_is_hardly_any_noise(rng):
    vocabulary = toy_vocabulary(np.array(LINE)[:, None], special=SPECIAL)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=1e6)
    assert mechanism.privatize(np.array([7, 3, 7]), rng=rng).tolist() == [4, 3, 4]


def test_inputs_are_not_changed(bert_tiny, rng):
    ids = rng.choice(bert_tiny.eligible, 700)
    before = ids.copy()
    make_mechanism("laplace", vocabulary=bert_tiny, eta=5.0).privatize(ids, rng=rng)
    assert (ids == before).all()
    assert not bert_tiny.embeddings.flags.writeable


def test_a_seed_repeats_the_draws_and_the_global_generator_plays_no_part(bert_tiny):
    mechanism = make_mechanism("laplace", vocabulary=bert_tiny, eta=40.0)
    ids = bert_tiny.eligible[:600]
    first = mechanism.privatize(ids, rng=insecure_stream(5).generator)
    assert (first == mechanism.privatize(ids, rng=insecure_stream(5).generator)).all()
    assert (first != mechanism.privatize(ids, rng=insecure_stream(6).generator)).any()


def test_no_tokens_give_no_tokens(bert_tiny, rng):
    mechanism = make_mechanism("laplace", vocabulary=bert_tiny, eta=40.0)
    assert mechanism.privatize(np.array([], dtype=np.int64), rng=rng).shape == (0,)


@pytest.mark.parametrize("eta", [0, -1.0, float("nan"), float("inf"), True, "75"])
def test_an_eta_outside_its_domain_is_refused(bert_tiny, eta):
    with pytest.raises(MechanismError, match="eta must be a finite number above 0"):
        make_mechanism("laplace", vocabulary=bert_tiny, eta=eta)


def test_an_unknown_mechanism_is_refused_and_the_known_ones_are_listed(bert_tiny):
    with pytest.raises(MechanismError, match=r"unknown mechanism='gauss'; choose one of laplace"):
        make_mechanism("gauss", vocabulary=bert_tiny, eta=1.0)


@pytest.mark.parametrize("outside", [-1, 30522])
def test_an_id_without_a_row_is_refused_by_its_position_only(bert_tiny, outside, rng):
    mechanism = make_mechanism("laplace", vocabulary=bert_tiny, eta=40.0)
    with pytest.raises(VocabularyError, match="got none for token 2 of 3"):
        mechanism.privatize(np.array([5000, 6000, outside]), rng=rng)


def test_the_table_is_prepared_once_for_every_eta(bert_tiny):
    found = [LaplaceMechanism(vocabulary=bert_tiny, eta=eta).vocabulary.nearest for eta in (1.0, 2.0)]
    assert found[0] is found[1]


# Rows of very different lengths, one of them zero; row 7 is an input only.
PLANE = np.array([[4, 0], [0, 0.2], [-1, 0], [0, 0], [3, 3], [-0.1, 0.1], [1, 0.2], [0.4, -0.3], [0, -5]], dtype=float)


def scale_by_hand(table):
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    return (table / np.where(lengths == 0, 1, lengths)).astype(np.float32)


@pytest.fixture
def vocabulary():
    return toy_vocabulary(PLANE, special=SPECIAL)


def stated_channel(vocabulary, eta):
    return grid_channel(scale_by_hand(PLANE), nearest_kernel(scale_by_hand(PLANE), vocabulary.eligible), eta=eta)


def test_draws_follow_the_channel_of_the_scaled_rows(vocabulary, rng):
    mechanism = make_mechanism("unit-laplace", vocabulary=vocabulary, eta=ETA)
    assert_drawn_as_stated(mechanism, vocabulary, rng, channel=stated_channel(vocabulary, ETA))


def test_the_guarantee_holds_for_every_triple_in_the_metric_that_is_named(vocabulary):
    mechanism = make_mechanism("unit-laplace", vocabulary=vocabulary, eta=ETA)
    ids = np.arange(len(PLANE))
    distances = np.stack([mechanism.distances(np.full(len(ids), x), ids) for x in ids])
    assert np.allclose(distances, euclidean(scale_by_hand(PLANE)), atol=1e-6)
    assert distances.max() <= 2
    assert largest_excess(np.log(stated_channel(vocabulary, ETA)), distances, ETA) <= 1e-4


def test_it_does_not_hold_in_the_metric_of_the_table_as_it_is(vocabulary):
    """The twin: rows that lie near each other, at a right angle."""
    excess = largest_excess(np.log(stated_channel(vocabulary, ETA)), euclidean(PLANE), ETA)
    assert excess > 0.1


def test_the_length_of_a_row_changes_nothing(rng):
    table = rng.standard_normal((300, 8))
    longer = table * rng.gamma(2.0, size=(300, 1))
    ids = np.arange(300)
    drawn = [
        make_mechanism("unit-laplace", vocabulary=toy_vocabulary(rows), eta=4.0).privatize(
            ids, rng=np.random.default_rng(1)
        )
        for rows in (table, longer)
    ]
    assert (drawn[0] == drawn[1]).mean() > 0.99  # but for rounding to float32
    plain = [
        make_mechanism("laplace", vocabulary=toy_vocabulary(rows), eta=4.0).privatize(ids, rng=np.random.default_rng(1))
        for rows in (table, longer)
    ]
    assert (plain[0] == plain[1]).mean() < 0.99


def test_the_scaled_table_has_a_hash_of_its_own_and_a_row_of_zeros_stays(vocabulary):
    scaled = scale_rows(vocabulary)
    assert scaled.hash != vocabulary.hash
    assert np.array_equal(scaled.embeddings, scale_by_hand(PLANE.astype(np.float32).astype(float)))
    assert not scaled.embeddings[3].any()


def test_the_statement_names_the_metric_and_measures_in_it(vocabulary):
    setting = make_mechanism("unit-laplace", vocabulary=vocabulary, eta=ETA).setting
    stated = state_privacy(
        vocabulary,
        setting,
        plain_tokens=NO_PLAIN_TOKENS,
        labels_sent=False,
        word_pairs=[(toy_word(0), toy_word(2))],
    )
    page = " ".join(stated.to_text().split())
    assert setting.parameters["metric"] == stated.to_json()["metric_space"]["normalization"] == "unit-rows"
    assert "metric unit-rows" in page
    assert "scaled to length 1" in page
    assert stated.distances.largest_seen == pytest.approx(2.0, rel=1e-3)
    assert stated.word_pairs[0].epsilon == pytest.approx(2 * ETA)


def test_on_the_real_table_no_kind_of_word_stays_much_more_often_than_another(rng):
    vocabulary = load_vocabulary("minilm")

    def make(eta):
        return make_mechanism("unit-laplace", vocabulary=vocabulary, eta=eta)

    curve = UnchangedCurve(make, weigh_running_text(vocabulary), draws=1024, rng=rng)
    eta = find_crossing(curve, target=0.5, start=82.0, factor=1.05, tolerance=0.02)
    found = {kind.kind: kind.share for kind in measure_kinds(make(eta), vocabulary, rng=rng)}
    # `laplace` at the same share has 36 points between stop words and words of health.
    assert abs(found["words of health"] - found["stop words"]) < 0.15
    assert max(found.values()) - min(found.values()) < 0.2
