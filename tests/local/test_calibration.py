"""Calibration: against closed forms on a line, laws of scale and order, the coverage of its interval, and refusals."""

import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from rapt.errors import MechanismError, UsageError
from rapt.local.calibration import (
    NAMED_DISTANCES,
    add_success,
    calibrate_epsilon,
    calibrate_unchanged,
    compute_stated_loss,
    draw_calibration,
)
from rapt.local.calibration_search import UnchangedCurve, compute_share_interval, find_crossing, round_down
from rapt.local.distances import TableDistances, measure_distances
from rapt.local.guarantee import measure_word_distances, state_privacy
from rapt.local.mechanisms import make_mechanism
from rapt.local.weighting import Weighting, weigh_all, weigh_common_words
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.mechanism_setting import MechanismSetting
from toy_vocabularies import toy_vocabulary

ALPHA = 1e-6
# Two tokens at distance 2 on a line: a token stays when the noise towards the other one is below 1, 1 - e^-η / 2.
TWO = toy_vocabulary([[0.0], [2.0]])


def maker(vocabulary, name="laplace"):
    return lambda eta: make_mechanism(name, vocabulary=vocabulary, eta=eta)


def true_share(eta):
    return 1 - math.exp(-eta) / 2


def true_eta(share):
    return -math.log(2 * (1 - share))


def distance_from_truth(make, *, share, rng, draws=20_000):
    """How far the share at the answer is from the target, and how far it may be."""
    found = calibrate_unchanged(make, TWO, share=share, weighting=weigh_all(TWO), rng=rng, draws=draws, curve_steps=0)
    error = stats.norm.isf(ALPHA / 2) * math.sqrt(share * (1 - share) / draws)
    # The search itself stops within 0.2 %, and η is rounded down to four digits.
    return abs(true_share(found.eta) - share), error + 0.003 * found.eta * math.exp(-found.eta) / 2


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9, 0.99])
def test_on_a_line_eta_is_that_of_the_closed_form(share, rng):
    distance, allowed = distance_from_truth(maker(TWO), share=share, rng=rng)
    assert distance < allowed


@pytest.mark.parametrize("seed", range(5))
def test_the_closed_form_rejects_noise_of_another_eta(seed):
    def wrong(eta):
        return make_mechanism("laplace", vocabulary=TWO, eta=0.8 * eta)

    distance, allowed = distance_from_truth(wrong, share=0.75, rng=np.random.default_rng(seed))
    assert distance > allowed


def test_the_interval_holds_the_true_eta_as_often_as_it_says(rng):
    covered = 0
    for _ in range(100):
        curve = UnchangedCurve(maker(TWO), weigh_all(TWO), draws=200, rng=rng)
        error = 1.959964 * math.sqrt(0.75 * 0.25 / 200)
        low, high = (find_crossing(curve, target=0.75 + side * error, start=1.0) for side in (-1, 1))
        covered += low <= true_eta(0.75) <= high * 1.002
    # At a true coverage of 95 % fewer than this happen once in a million.
    assert covered >= stats.binom(100, 0.95).ppf(ALPHA)
    # An interval of a third of the width covers half of the time, which this count would reject.
    assert stats.binom(100, 0.95).ppf(ALPHA) > stats.binom(100, 0.5).isf(1e-3)


def test_the_simulated_share_rises_with_eta_without_a_wiggle(bert_tiny, rng):
    curve = UnchangedCurve(maker(bert_tiny), weigh_common_words(bert_tiny), draws=256, rng=rng)
    shares = [curve(float(eta)) for eta in np.geomspace(40, 160, 12)]
    assert shares == sorted(shares)
    assert shares[0] < 0.1 < 0.9 < shares[-1]


@pytest.mark.parametrize("seed", range(5))
def test_with_fresh_draws_for_every_eta_it_would_not(seed):
    fresh = [
        UnchangedCurve(maker(TWO), weigh_all(TWO), draws=200, rng=np.random.default_rng([seed, i]))(1 + i / 1000)
        for i in range(20)
    ]
    assert fresh != sorted(fresh)


def test_a_table_of_twice_the_size_has_half_the_eta(rng):
    table = rng.standard_normal((30, 4))
    small, large = toy_vocabulary(table), toy_vocabulary(2 * np.asarray(table, dtype=np.float32))
    answers = [
        calibrate_unchanged(
            maker(vocabulary),
            vocabulary,
            share=0.5,
            weighting=weigh_all(vocabulary),
            rng=np.random.default_rng(1),
            curve_steps=1,
        )
        for vocabulary in (small, large)
    ]
    assert answers[0].eta == pytest.approx(2 * answers[1].eta, rel=1e-3)
    assert [point.unchanged for point in answers[0].curve] == pytest.approx(
        [point.unchanged for point in answers[1].curve], abs=0.003
    )


def test_a_weighting_on_far_tokens_needs_less_eta(rng):
    # Two tokens are close to each other, one is far from both.
    vocabulary = toy_vocabulary([[0.0], [0.5], [10.0]])
    etas = []
    for ids in ([0, 1], [2]):
        weighting = Weighting(token_ids=np.array(ids), shares=np.full(len(ids), 1 / len(ids)), source="")
        etas.append(
            calibrate_unchanged(maker(vocabulary), vocabulary, share=0.9, weighting=weighting, rng=rng, draws=2000).eta
        )
    assert etas[1] < etas[0] / 5


def test_the_answer_is_in_the_middle_of_its_curve_and_is_measured_with_other_draws(rng):
    found = calibrate_unchanged(maker(TWO), TWO, share=0.75, weighting=weigh_all(TWO), rng=rng, draws=500)
    etas = [point.eta for point in found.curve]
    assert etas == sorted(etas)
    assert (etas[4], etas[0] * 2, etas[-1] / 2) == pytest.approx((found.eta,) * 3)
    assert found.reached == found.curve[4].unchanged
    assert float(f"{found.eta:.4g}") == found.eta


def test_every_mechanism_can_be_calibrated(rng):
    class Keeps:
        """Keeps a token with probability η / (1 + η)."""

        status = "proved"

        def __init__(self, eta):
            self.eta = eta
            self.setting = MechanismSetting(name="keeps", parameters={"eta": eta})

        def privatize(self, token_ids, *, rng):
            return np.where(rng.random(len(token_ids)) < self.eta / (1 + self.eta), token_ids, 1 - token_ids)

    found = calibrate_unchanged(Keeps, TWO, share=0.8, weighting=weigh_all(TWO), rng=rng, draws=20_000)
    assert found.eta == pytest.approx(4, rel=0.1)
    assert all(point.epsilon_neighbour is None for point in found.curve)
    with pytest.raises(MechanismError, match="no privacy statement for mechanism='keeps'"):
        calibrate_epsilon(Keeps, TWO, epsilon=1.0, at="", apart=[2.0], weighting=weigh_all(TWO), rng=rng)


@pytest.mark.parametrize("name", ["median-neighbour", "largest"])
def test_the_pure_epsilon_at_a_distance_is_met_from_below(bert_tiny, rng, name):
    distance = getattr(measure_distances(bert_tiny), NAMED_DISTANCES[name])
    found = calibrate_epsilon(
        maker(bert_tiny),
        bert_tiny,
        epsilon=20.0,
        at=name,
        apart=[distance],
        weighting=TINY,
        rng=rng,
        draws=100,
        curve_steps=0,
    )
    assert found.reached == pytest.approx(found.eta * distance)
    assert found.reached <= 20.0 < found.reached * 1.0012


TINY = Weighting(token_ids=np.array([2000]), shares=np.ones(1), source="one word")


@pytest.mark.parametrize("delta", [None, 1e-5])
def test_the_epsilon_of_a_pair_of_words_is_that_of_the_statement(bert_tiny, rng, delta):
    pair = ("new york", "san diego")
    found = calibrate_epsilon(
        maker(bert_tiny),
        bert_tiny,
        epsilon=15.0,
        at=" / ".join(pair),
        apart=measure_word_distances(bert_tiny, pair, position=0),
        delta=delta,
        weighting=TINY,
        rng=rng,
        draws=100,
        curve_steps=0,
    )
    setting = MechanismSetting(name="laplace", parameters={"eta": found.eta})
    stated = state_privacy(
        bert_tiny, setting, plain_tokens=NO_PLAIN_TOKENS, labels_sent=False, word_pairs=[pair]
    ).word_pairs[0]
    assert found.reached == (stated.epsilon if delta is None else stated.epsilon_at_delta)
    assert found.reached <= 15.0 < 1.003 * found.reached
    assert found.distance == pytest.approx(stated.distance)


def test_an_epsilon_at_a_delta_allows_a_larger_eta(bert_tiny, rng):
    etas = [
        calibrate_epsilon(
            maker(bert_tiny),
            bert_tiny,
            epsilon=10.0,
            at="",
            apart=[1.0],
            delta=delta,
            weighting=TINY,
            rng=rng,
            draws=100,
            curve_steps=0,
        ).eta
        for delta in (None, 1e-3)
    ]
    assert etas == sorted(etas)
    assert etas[0] == 9.999


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 50.0, float("nan")])
def test_a_target_that_is_no_share_is_refused(rng, share):
    with pytest.raises(UsageError, match="between 0 and 1, got unchanged="):
        calibrate_unchanged(maker(TWO), TWO, share=share, weighting=weigh_all(TWO), rng=rng)


def test_a_share_that_no_eta_reaches_is_refused(rng):
    # Of two tokens at the least η half stay; of a special token, which is never an output, none does.
    with pytest.raises(UsageError, match=r"no eta reaches the target, got 0\.3"):
        calibrate_unchanged(maker(TWO), TWO, share=0.3, weighting=weigh_all(TWO), rng=rng, draws=200)
    vocabulary = toy_vocabulary([[0.0], [2.0], [4.0]], special=(0,))
    special = Weighting(token_ids=np.array([0]), shares=np.ones(1), source="")
    with pytest.raises(UsageError, match="no eta reaches the target"):
        calibrate_unchanged(maker(vocabulary), vocabulary, share=0.5, weighting=special, rng=rng, draws=200)


@pytest.mark.parametrize(("epsilon", "apart"), [(0.0, [1.0]), (math.inf, [1.0]), (math.nan, [1.0]), (1.0, [0.0])])
def test_a_target_epsilon_outside_its_domain_is_refused(rng, epsilon, apart):
    with pytest.raises(UsageError, match="finite and above 0"):
        calibrate_epsilon(maker(TWO), TWO, epsilon=epsilon, at="", apart=apart, weighting=weigh_all(TWO), rng=rng)


def test_too_few_draws_are_refused(rng):
    with pytest.raises(UsageError, match="at least 100 draws"):
        UnchangedCurve(maker(TWO), weigh_all(TWO), draws=99, rng=rng)


@pytest.mark.parametrize(
    ("eta", "floored"), [(83.549, 83.54), (1234.9, 1234.0), (98765.4, 98760.0), (0.00123456, 0.001234), (7.0, 7.0)]
)
def test_eta_is_rounded_down_to_four_digits(eta, floored):
    assert round_down(eta) == floored


@pytest.mark.parametrize(("share", "draws"), [(0.0, 100), (1.0, 100), (0.3, 1000)])
def test_the_interval_of_a_share_is_wilsons(share, draws):
    expected = stats.binomtest(round(share * draws), draws).proportion_ci(0.95, method="wilson")
    assert compute_share_interval(share, draws) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_named_distances_are_those_of_the_table():
    assert set(NAMED_DISTANCES.values()) <= set(TableDistances.__dataclass_fields__)


def test_a_mechanism_without_a_statement_has_no_loss(bert_tiny):
    mechanism = make_mechanism("laplace", vocabulary=bert_tiny, eta=3.0)
    assert compute_stated_loss(mechanism, bert_tiny, apart=[2.0]).bound == pytest.approx(6.0)


def test_the_picture_is_one_file_that_names_its_axes_and_stands_alone(rng):
    vocabulary = toy_vocabulary(rng.standard_normal((30, 4)))
    found = calibrate_unchanged(
        maker(vocabulary),
        vocabulary,
        share=0.5,
        weighting=weigh_all(vocabulary),
        rng=rng,
        draws=200,
        curve_steps=2,
    )
    for shown in (
        found,
        replace(found, target="bayes-success", curve=tuple(add_success(found.curve, lambda eta: (0.5, 0.4, 0.6)))),
    ):
        text = draw_calibration(shown)
        root = ElementTree.fromstring(text)
        words = " ".join(root.itertext())
        assert "η, 1/distance in the embedding table" in words
        assert "share of tokens, %" in words
        assert "ε, nats" in words
        assert f"η = {found.eta:g}" in words
        assert ("Bayes attack" in words) == (shown is not found)
        assert "prefers-color-scheme: dark" in text
        # Nothing is fetched: the only address is the name of the format.
        assert text.count("http") == 1
        for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
            for pair in line.get("points").split():
                x, y = map(float, pair.split(","))
                assert 0 <= x <= 720
                assert 0 <= y <= float(root.get("height"))


def test_names_cannot_break_the_picture(rng):
    found = calibrate_unchanged(
        maker(TWO), TWO, share=0.75, weighting=weigh_all(TWO), rng=rng, draws=200, curve_steps=1
    )
    root = ElementTree.fromstring(draw_calibration(replace(found, model='<script>"&', weighting="a < b")))
    assert '<script>"&' in " ".join(root.itertext())
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
