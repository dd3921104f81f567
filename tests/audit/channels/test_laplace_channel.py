"""The channel against its closed form in one dimension, and against plain counting where there is none."""

import numpy as np
import pytest
from scipy import stats

from audit_material import scattered_vocabulary, zipf_prior
from rapt.audit.channels import laplace as laplace_channel
from rapt.audit.channels.estimate import ChannelQuestion
from rapt.audit.channels.laplace import estimate_laplace_channel, sample_mixture
from rapt.local.mechanisms import make_mechanism
from significance import assert_distributed
from toy_vocabularies import toy_vocabulary

ALPHA = 1e-6
LINE = np.array([-2.0, -1.1, -0.3, 0.1, 0.9, 1.6, 2.4])
ETA = 1.3


def exact_line_channel(*, eta):
    """P(y|x) on a line: Laplace probabilities of the intervals between midpoints, rows x, columns y."""
    edges = np.concatenate([[-np.inf], (LINE[1:] + LINE[:-1]) / 2, [np.inf]])
    law = stats.laplace(scale=1 / eta)
    return np.array([np.diff(law.cdf(edges - x)) for x in LINE])


def estimate(vocabulary, *, eta, rng, draws, outputs=None, prior=None, mechanism="laplace"):
    size = vocabulary.size
    asked = ChannelQuestion(
        bundle=vocabulary.bundle,
        setting=make_mechanism(mechanism, vocabulary=vocabulary, eta=eta).setting,
        outputs=vocabulary.eligible if outputs is None else np.asarray(outputs),
        prior=np.full(size, 1 / size) if prior is None else prior,
    )
    return estimate_laplace_channel(asked, rng=rng, draws=draws)


@pytest.mark.parametrize("dim", [1, 2, 50, 384])
def test_the_mixture_of_normals_has_the_gamma_radius_of_the_mechanism(dim, rng):
    _, noise = sample_mixture(rng, eta=3.0, dim=dim, size=10_000)
    assert_distributed(np.linalg.norm(noise, axis=1), stats.gamma(a=dim, scale=1 / 3.0))


@pytest.mark.parametrize("seed", range(5))
def test_the_mixture_test_can_fail(seed):
    rng = np.random.default_rng(seed)
    variance = rng.gamma(51 / 2, 2 / 3.0**2, 30_000) * 1.1
    radius = np.linalg.norm(np.sqrt(variance)[:, None] * rng.standard_normal((30_000, 50)), axis=1)
    with pytest.raises(AssertionError, match="KS rejects"):
        assert_distributed(radius, stats.gamma(a=50, scale=1 / 3.0))


@pytest.mark.parametrize("eta", [0.2, 1.3, 6.0])
def test_on_a_line_the_channel_equals_its_closed_form(eta, rng):
    exact = exact_line_channel(eta=eta)
    channel = estimate(toy_vocabulary(LINE[:, None]), eta=eta, rng=rng, draws=2000)
    for row, output in enumerate(channel.outputs):
        for column, source in enumerate(channel.sources[row]):
            if column > 0 and source == output:
                continue
            error = max(channel.standard_error()[row, column], 1e-4)
            assert abs(channel.mean[row, column] - exact[source, output]) < stats.norm.isf(ALPHA / 2) * error


def test_the_line_test_can_fail():
    exact = exact_line_channel(eta=ETA)
    for seed in range(5):
        channel = estimate(toy_vocabulary(LINE[:, None]), eta=1.3 * ETA, rng=np.random.default_rng(seed), draws=2000)
        off = np.abs(channel.mean[:, 0] - np.diag(exact)) / np.maximum(channel.standard_error()[:, 0], 1e-4)
        assert off.max() > stats.norm.isf(ALPHA / 2)


def disagreement(channel, counted, *, source):
    """Largest distance between estimated and counted P(y|source), in standard errors of both together."""
    trials, worst = counted.sum(), 0.0
    for row, output in enumerate(channel.outputs):
        column = int(np.flatnonzero(channel.sources[row] == source)[0])
        p = channel.mean[row, column]
        if p * trials >= 10:
            error = np.hypot(np.sqrt(p * (1 - p) / trials), channel.standard_error()[row, column])
            worst = max(worst, abs(counted[output] / trials - p) / error)
    return worst


def counted_outputs(vocabulary, *, eta, source, rng, trials=20_000, mechanism="laplace"):
    mechanism = make_mechanism(mechanism, vocabulary=vocabulary, eta=eta)
    return np.bincount(mechanism.privatize(np.full(trials, source), rng=rng), minlength=vocabulary.size)


@pytest.mark.parametrize("dim", [2, 5])
def test_the_channel_equals_counted_outputs(dim, rng):
    vocabulary = scattered_vocabulary(size=14, dim=dim)
    channel = estimate(vocabulary, eta=5.0, rng=rng, draws=1500)
    counted = counted_outputs(vocabulary, eta=5.0, source=7, rng=rng)
    assert (counted >= 10).sum() >= 8
    assert disagreement(channel, counted, source=7) < stats.norm.isf(ALPHA / 2 / 14)


def test_the_counting_test_can_fail():
    vocabulary = scattered_vocabulary(size=14, dim=5)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        channel = estimate(vocabulary, eta=5.0, rng=rng, draws=1500)
        counted = counted_outputs(vocabulary, eta=1.2 * 5.0, source=7, rng=rng)
        assert disagreement(channel, counted, source=7) > stats.norm.isf(ALPHA / 2 / 14)


def test_stretched_noise_has_the_channel_of_stretched_noise(rng):
    rows = np.random.default_rng(11).standard_normal((14, 5)) * [3.0, 1.0, 0.5, 0.2, 0.2]
    vocabulary = toy_vocabulary(rows)
    channel = estimate(vocabulary, eta=4.0, rng=rng, draws=1500, mechanism="mahalanobis")
    counted = counted_outputs(vocabulary, eta=4.0, source=7, rng=rng, mechanism="mahalanobis")
    assert (counted >= 10).sum() >= 4
    assert disagreement(channel, counted, source=7) < stats.norm.isf(ALPHA / 2 / 14)
    round_noise = estimate(vocabulary, eta=4.0, rng=rng, draws=1500)
    assert disagreement(round_noise, counted, source=7) > stats.norm.isf(ALPHA / 2 / 14), "the twin: noise of a ball"


def test_looking_at_few_competitors_overstates_a_probability_and_barely(rng, monkeypatch):
    vocabulary = scattered_vocabulary(size=150, dim=24)
    seed, outputs = int(rng.integers(2**32)), np.arange(0, 150, 3)
    few = estimate(vocabulary, eta=18.0, rng=np.random.default_rng(seed), draws=50, outputs=outputs)
    monkeypatch.setattr(laplace_channel, "COMPETITORS", 150)
    everybody = estimate(vocabulary, eta=18.0, rng=np.random.default_rng(seed), draws=50, outputs=outputs)
    assert np.array_equal(few.sources, everybody.sources)
    assert (few.mean >= everybody.mean - 1e-6).all()
    assert few.mean[:, 0].mean() < 1.01 * everybody.mean[:, 0].mean()


def test_the_likeliest_source_is_among_those_looked_at(rng):
    vocabulary = scattered_vocabulary(size=120, dim=10)
    prior = zipf_prior(120).probabilities
    everything = np.zeros((120, 120))
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=8.0)
    for source in range(120):
        everything[source] = np.bincount(mechanism.privatize(np.full(3000, source), rng=rng), minlength=120) / 3000
    channel = estimate(vocabulary, eta=8.0, rng=rng, draws=500, prior=prior)
    best = (prior[:, None] * everything).argmax(axis=0)
    value = (prior[:, None] * everything).max(axis=0)
    looked_at = np.array([best[y] in channel.sources[row] for row, y in enumerate(channel.outputs)])
    assert value[looked_at].sum() > 0.99 * value.sum()


def test_an_input_that_is_no_output_still_has_a_channel(rng):
    vocabulary = toy_vocabulary(LINE[:, None], special=(3,))
    channel = estimate(vocabulary, eta=ETA, rng=rng, draws=2000, prior=np.eye(7)[3])
    edges_from = LINE[3]
    kept = np.delete(LINE, 3)
    edges = np.concatenate([[-np.inf], (kept[1:] + kept[:-1]) / 2, [np.inf]])
    exact = np.diff(stats.laplace(scale=1 / ETA).cdf(edges - edges_from))
    assert np.array_equal(channel.sources[:, 1], np.full(6, 3))
    assert np.allclose(channel.mean[:, 1], exact, atol=0.02)


def test_the_same_seed_gives_the_same_channel():
    vocabulary = scattered_vocabulary(size=60, dim=5)
    first, second = (estimate(vocabulary, eta=5.0, rng=np.random.default_rng(3), draws=20) for _ in range(2))
    assert np.array_equal(first.likelihood, second.likelihood)
