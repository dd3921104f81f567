"""N_w and S_w: exact ones by naive counting, bounds from draws below the truth, and a twin that overstates."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from channel_checks import LINE, SPECIAL
from rapt.cli.calibrate import weigh
from rapt.errors import UsageError
from rapt.local.calibration_search import UnchangedCurve, compute_share_error
from rapt.local.deniability import bound_set_size, measure_deniability, measure_every_token, measure_unchanged
from rapt.local.mechanisms import make_mechanism
from rapt.local.weighting import Weighting
from toy_vocabularies import toy_vocabulary

ALPHA = 1e-6


def test_two_tokens_on_a_line_stay_themselves_as_often_as_the_laplace_law_says(rng):
    vocabulary = toy_vocabulary([[0.0], [2.0]])
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=1.0)
    found = measure_unchanged(mechanism, vocabulary, rng=rng, draws=40_000)
    expected = stats.laplace.cdf(1.0)
    tolerance = stats.norm.isf(ALPHA / 2) * math.sqrt(expected * (1 - expected) / 40_000)
    assert abs(found.share - expected) < tolerance
    assert (found.types, found.draws) == (2, 40_000)
    assert found.basis == "all 2 tokens that may be an output, each the same"


@pytest.mark.parametrize("seed", range(5))
def test_the_closed_form_rejects_a_tenth_more_noise(seed):
    vocabulary = toy_vocabulary([[0.0], [2.0]])
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=0.9)
    found = measure_unchanged(mechanism, vocabulary, rng=np.random.default_rng(seed), draws=40_000)
    expected = stats.laplace.cdf(1.0)
    assert abs(found.share - expected) > stats.norm.isf(ALPHA / 2) * math.sqrt(expected * (1 - expected) / 40_000)


def test_the_interval_covers_the_mean_over_the_vocabulary(rng):
    table = np.sort(rng.gamma(1.0, size=400))[:, None]
    vocabulary = toy_vocabulary(table)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=50.0)
    every = measure_unchanged(mechanism, vocabulary, rng=rng, draws=40_000).share
    covered = sum(
        found.low <= every <= found.high
        for found in (measure_unchanged(mechanism, vocabulary, rng=rng, draws=400) for _ in range(200))
    )
    # At a true coverage of 95 % fewer than 165 of 200 happen once in a million; systematic samples cover more often.
    assert covered >= stats.binom(200, 0.95).ppf(ALPHA)


@pytest.mark.parametrize(("eta", "share"), [(1e-9, 0.0), (1e9, 1.0)])
def test_the_interval_has_a_width_where_no_draw_differs(rng, eta, share):
    # 400 tokens in a plane and hardly any noise, or noise so large that the token does not matter.
    vocabulary = toy_vocabulary(rng.standard_normal((400, 2)))
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
    found = measure_unchanged(mechanism, vocabulary, rng=rng, draws=32)
    assert 0 <= found.low <= found.share <= found.high <= 1
    if found.share == share:
        assert found.low < found.high


def test_a_share_without_a_draw_is_refused(rng):
    vocabulary = toy_vocabulary([[0.0], [1.0]])
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=1.0)
    with pytest.raises(UsageError, match="at least 1 draw"):
        measure_unchanged(mechanism, vocabulary, rng=rng, draws=0)


@pytest.mark.parametrize("draws", [30, 2048])
def test_a_closed_channel_gives_the_share_of_its_tokens_and_their_weights(draws, rng):
    vocabulary = toy_vocabulary(rng.standard_normal((100, 3)))
    mechanism = make_mechanism("santext", vocabulary=vocabulary, eta=4.0)
    ids = np.arange(60)
    weighting = Weighting(token_ids=ids, shares=rng.dirichlet(np.ones(60)), source="sixty")
    found = measure_unchanged(mechanism, vocabulary, rng=rng, weighting=weighting, draws=draws)
    truth = float(np.exp(np.diag(mechanism.log_probabilities(ids))) @ weighting.shares)
    assert found.draws == 0
    assert found.low <= truth <= found.high
    assert (found.types == 60) == (found.share == pytest.approx(truth, abs=1e-12))


def test_calibration_and_statement_take_the_same_basis(rng, bert_tiny):
    mechanism = make_mechanism("laplace", vocabulary=bert_tiny, eta=85.0)
    stated = measure_unchanged(mechanism, bert_tiny, rng=rng)
    basis = weigh(bert_tiny, words=None, all_tokens=False, public=None, private=None, text_column="text")
    curve = UnchangedCurve(lambda eta: mechanism, basis, draws=8192, rng=rng)
    assert stated.basis == basis.source
    error = math.hypot(compute_share_error(stated.share, 8192), compute_share_error(stated.share, 8192))
    assert abs(curve(85.0) - stated.share) < stats.norm.isf(ALPHA / 2) / 1.96 * error


def test_of_a_table_too_large_other_tokens_are_tried_each_time(monkeypatch):
    monkeypatch.setattr("rapt.local.deniability._MOST_SEARCHED", 600 * 50)
    vocabulary = toy_vocabulary(np.arange(600.0)[:, None])
    seen = []

    @dataclass(frozen=True)
    class Watched:
        def privatize(self, token_ids, *, rng):
            seen.append(tuple(token_ids.tolist()))
            return token_ids

    found = [measure_every_token(Watched(), vocabulary, rng=np.random.default_rng(seed)) for seed in range(2)]
    assert (found[0].types, found[0].draws, found[0].share) == (50, 50, 1.0)
    assert found[0].basis.startswith("50 tokens chosen at random of all 600")
    assert len(set(seen[0])) == 50
    assert set(seen[0]) != set(seen[1])


def test_every_token_is_tried_and_one_that_stays_is_seen(rng):
    table = np.zeros((600, 2))
    table[:, 0] = np.arange(600) * 1e-3
    table[1::2, 1] = 1e6  # every other row was moved away from the rest, and lies alone where it now is
    table[1::2, 0] *= 1e6
    vocabulary = toy_vocabulary(table)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=1.0)
    found = measure_every_token(mechanism, vocabulary, rng=rng)
    assert (found.types, found.draws) == (600, 1200)
    assert found.share == pytest.approx(0.5, abs=0.04)


SEEDS = range(5)


def naive_set_size(probabilities, outside):
    """Outputs taken one at a time, the likeliest first, until they hold 1 - outside."""
    held, size = 0.0, 0
    for probability in sorted(probabilities.tolist(), reverse=True):
        held, size = held + probability, size + 1
        if held >= 1 - outside:
            return size
    return size


@pytest.mark.parametrize("name", ["exponential", "santext", "tem", "custext"])
@pytest.mark.parametrize("outside", [0.05, 0.3])
def test_a_closed_channel_has_both_exactly(name, outside, rng):
    vocabulary = toy_vocabulary(rng.standard_normal((200, 3)), special=(5, 60))
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=4.0, allow_unproved=True)
    found = measure_deniability(mechanism, vocabulary, rng=rng, types=500, outside=outside)
    channel = np.exp(mechanism.log_probabilities(vocabulary.eligible))
    sizes = [naive_set_size(row, outside) for row in channel]
    assert found.exact
    assert (found.types, found.confidence) == (198, 1.0)
    for spread, values in ((found.unchanged, np.diag(channel)), (found.set_size, sizes)):
        expected = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
        got = [spread.smallest, spread.quantile_5, spread.median, spread.quantile_95, spread.largest]
        assert np.allclose(got, expected)


def test_two_tokens_alike_need_both(rng):
    vocabulary = toy_vocabulary([[0.0], [0.0]])
    found = measure_deniability(make_mechanism("santext", vocabulary=vocabulary, eta=1.0), vocabulary, rng=rng)
    assert found.unchanged.median == pytest.approx(0.5)
    assert found.set_size.median == 2


def test_a_token_that_stays_itself_has_a_set_of_one(rng):
    vocabulary = toy_vocabulary([[0.0], [1.0], [2.0]])
    for name in ("laplace", "santext"):
        mechanism = make_mechanism(name, vocabulary=vocabulary, eta=60.0)
        assert measure_deniability(mechanism, vocabulary, rng=rng).set_size.largest == 1


def test_draws_of_a_channel_that_is_not_closed_bound_its_sets_from_below(rng):
    vocabulary = toy_vocabulary(LINE, special=SPECIAL)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=1.0)
    found = measure_deniability(mechanism, vocabulary, rng=rng, draws=2_000)
    assert not found.exact
    assert (found.draws, found.confidence) == (2_000, 0.95)
    assert 1 <= found.set_size.smallest <= found.set_size.largest <= len(vocabulary.eligible)
    assert found.set_size.median >= 2


def draws_of(probabilities, size, seed):
    return np.random.default_rng(seed).multinomial(size, probabilities)


@pytest.mark.parametrize("draws", [50, 512, 5_000])
def test_the_bound_is_above_the_truth_as_rarely_as_stated(draws):
    # A law whose best set is found out hard: many alike.
    probabilities = np.append([0.5], np.full(400, 0.5 / 400))
    true_size = naive_set_size(probabilities, 0.05)
    above = sum(
        bound_set_size(counts[counts > 0], outside=0.05) > true_size
        for counts in (draws_of(probabilities, draws, seed) for seed in range(300))
    )
    # 5 % of 300 is 15; more than 40 happen once in a million at that rate.
    assert above <= 40


@pytest.mark.parametrize("seed", SEEDS)
def test_a_twin_without_the_error_term_overstates_more_often(seed):
    """Taking 1 - outside of the draws as if they were the law: too large where the law sits on the edge."""
    probabilities = np.array([0.951, *np.full(49, 0.001)])
    naive, ours = 0, 0
    for i in range(100):
        counts = draws_of(probabilities, 512, 1000 * seed + i)
        counts = counts[counts > 0]
        held = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
        naive += int((held < 0.95).sum()) + 1 > 1
        ours += bound_set_size(counts, outside=0.05) > 1
    assert naive > 30
    assert ours <= 25  # 5 % of 100, at a false-alarm rate below ALPHA = 1e-6


def test_the_bound_comes_near_the_truth_with_many_draws():
    probabilities = np.full(100, 0.01)
    assert 80 <= bound_set_size(draws_of(probabilities, 200_000, 0), outside=0.05) <= 95


@pytest.mark.parametrize("wrong", [{"types": 0}, {"draws": 0}, {"outside": 0.0}, {"outside": 1.0}])
def test_a_measurement_of_nothing_is_refused(wrong, rng):
    vocabulary = toy_vocabulary([[0.0], [1.0]])
    with pytest.raises(UsageError, match="plausible deniability needs"):
        measure_deniability(make_mechanism("laplace", vocabulary=vocabulary, eta=1.0), vocabulary, rng=rng, **wrong)
