"""N_w by simulation against its closed form."""

import math

import numpy as np
import pytest
from scipy import stats

from rapt.errors import UsageError
from rapt.local.mechanisms import make_mechanism
from rapt.local.unchanged import measure_unchanged
from toy_vocabularies import toy_vocabulary

ALPHA = 1e-6


def test_two_tokens_on_a_line_stay_themselves_as_often_as_the_laplace_law_says(rng):
    vocabulary = toy_vocabulary([[0.0], [2.0]])
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=1.0)
    found = measure_unchanged(mechanism, vocabulary, rng=rng, draws=20_000)
    expected = stats.laplace.cdf(1.0)
    tolerance = stats.norm.isf(ALPHA / 2) * math.sqrt(expected * (1 - expected) / (2 * 20_000))
    assert abs(found.share - expected) < tolerance
    assert (found.types, found.draws) == (2, 20_000)


@pytest.mark.parametrize("seed", range(5))
def test_the_closed_form_rejects_a_tenth_more_noise(seed):
    vocabulary = toy_vocabulary([[0.0], [2.0]])
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=0.9)
    found = measure_unchanged(mechanism, vocabulary, rng=np.random.default_rng(seed), draws=20_000)
    expected = stats.laplace.cdf(1.0)
    assert abs(found.share - expected) > stats.norm.isf(ALPHA / 2) * math.sqrt(expected * (1 - expected) / 40_000)


def test_the_interval_covers_the_mean_over_the_vocabulary(rng):
    table = np.sort(rng.gamma(1.0, size=400))[:, None]
    vocabulary = toy_vocabulary(table)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=50.0)
    every = measure_unchanged(mechanism, vocabulary, rng=rng, types=400, draws=400).share
    covered = sum(
        found.low <= every <= found.high
        for found in (measure_unchanged(mechanism, vocabulary, rng=rng, types=50, draws=20) for _ in range(200))
    )
    # At a true coverage of 95 % fewer than 165 of 200 happen once in a million; systematic samples cover more often.
    assert covered >= stats.binom(200, 0.95).ppf(ALPHA)


@pytest.mark.parametrize(("eta", "share"), [(1e-9, 0.0), (1e9, 1.0)])
def test_the_interval_has_a_width_where_no_draw_differs(rng, eta, share):
    # 400 tokens in a plane and hardly any noise, or noise so large that the token does not matter.
    vocabulary = toy_vocabulary(rng.standard_normal((400, 2)))
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
    found = measure_unchanged(mechanism, vocabulary, rng=rng, types=8, draws=4)
    assert 0 <= found.low <= found.share <= found.high <= 1
    if found.share == share:
        assert found.low < found.high


def test_quantiles_are_ordered(rng):
    vocabulary = toy_vocabulary(rng.standard_normal((100, 3)))
    found = measure_unchanged(make_mechanism("laplace", vocabulary=vocabulary, eta=5.0), vocabulary, rng=rng)
    assert found.quantile_5 <= found.median <= found.quantile_95


@pytest.mark.parametrize(("types", "draws"), [(1, 5), (5, 0)])
def test_too_small_a_sample_is_refused(rng, types, draws):
    vocabulary = toy_vocabulary([[0.0], [1.0]])
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=1.0)
    with pytest.raises(UsageError, match="at least 2 tokens"):
        measure_unchanged(mechanism, vocabulary, rng=rng, types=types, draws=draws)
