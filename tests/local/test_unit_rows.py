"""Laplace noise on rows of one length: its channel by summation, its metric, and what it evens out."""

import numpy as np
import pytest

from channel_checks import (
    SPECIAL,
    assert_drawn_as_stated,
    euclidean,
    grid_channel,
    largest_excess,
    nearest_kernel,
)
from rapt.local.calibration_search import UnchangedCurve, find_crossing
from rapt.local.guarantee import state_privacy
from rapt.local.mechanisms import make_mechanism
from rapt.local.mechanisms.laplace import scale_rows
from rapt.local.retention import measure_kinds
from rapt.local.vocabulary import load_vocabulary
from rapt.local.weighting import weigh_running_text
from rapt.wire.manifest import NO_PLAIN_TOKENS
from toy_vocabularies import toy_vocabulary, toy_word

ETA = 2.0
# Rows of very different lengths, one of them zero; row 7 is an input only.
PLANE = np.array([[4, 0], [0, 0.2], [-1, 0], [0, 0], [3, 3], [-0.1, 0.1], [1, 0.2], [0.4, -0.3], [0, -5]], dtype=float)


def by_hand(table):
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    return (table / np.where(lengths == 0, 1, lengths)).astype(np.float32)


@pytest.fixture
def vocabulary():
    return toy_vocabulary(PLANE, special=SPECIAL)


def stated_channel(vocabulary, eta):
    return grid_channel(by_hand(PLANE), nearest_kernel(by_hand(PLANE), vocabulary.eligible), eta=eta)


def test_draws_follow_the_channel_of_the_scaled_rows(vocabulary, rng):
    mechanism = make_mechanism("unit-laplace", vocabulary=vocabulary, eta=ETA)
    assert_drawn_as_stated(mechanism, vocabulary, rng, channel=stated_channel(vocabulary, ETA))


def test_the_guarantee_holds_for_every_triple_in_the_metric_that_is_named(vocabulary):
    mechanism = make_mechanism("unit-laplace", vocabulary=vocabulary, eta=ETA)
    ids = np.arange(len(PLANE))
    distances = np.stack([mechanism.distances(np.full(len(ids), x), ids) for x in ids])
    assert np.allclose(distances, euclidean(by_hand(PLANE)), atol=1e-6)
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
    assert np.array_equal(scaled.embeddings, by_hand(PLANE.astype(np.float32).astype(float)))
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
