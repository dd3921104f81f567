"""Channels with a closed form are exact, counted ones converge to it, and both list the likeliest sources."""

import numpy as np
import pytest

from audit_material import scattered_vocabulary, zipf_prior
from rapt.audit.channels import (
    count_channel,
    counted,
    estimate_channel,
    estimate_laplace_channel,
    explain_unknown_channel,
)
from rapt.audit.channels.estimate import ChannelQuestion
from rapt.errors import AuditError
from rapt.local.mechanisms import make_mechanism
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS, MechanismSetting

SIZE = 30
PRIOR = zipf_prior(SIZE).probabilities
CLOSED = [name for name, known in KNOWN_MECHANISMS.items() if known.channel == "closed" and known.unit == "token"]


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=SIZE, dim=4)


def made(vocabulary, name, eta=4.0):
    return make_mechanism(name, vocabulary=vocabulary, eta=eta, allow_unproved=True)


def matrix_of(estimate):
    """P(y|x) as listed, rows x, columns the outputs."""
    found = np.zeros((SIZE, len(estimate.outputs)))
    for column, (sources, values) in enumerate(zip(estimate.sources, estimate.mean, strict=True)):
        np.add.at(found[:, column], sources, values)
    return found


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_channel_is_that_of_the_mechanism(name, vocabulary):
    mechanism = made(vocabulary, name)
    found = estimate_channel(
        mechanism.setting, vocabulary.bundle, outputs=vocabulary.eligible, prior=PRIOR, rng=None, sources=SIZE
    )
    assert matrix_of(found) == pytest.approx(np.exp(mechanism.log_probabilities(np.arange(SIZE))), abs=1e-6)
    assert found.unlisted == pytest.approx(np.zeros(SIZE), abs=1e-9)


@pytest.mark.parametrize("sources", [1, 5])
def test_the_sources_kept_are_the_likeliest_and_the_rest_is_accounted_for(sources, vocabulary):
    mechanism = made(vocabulary, "exponential")
    outputs = np.array([2, 3, 17])
    found = estimate_channel(
        mechanism.setting, vocabulary.bundle, outputs=outputs, prior=PRIOR, rng=None, sources=sources
    )
    joint = PRIOR[:, None] * np.exp(mechanism.log_probabilities(np.arange(SIZE)))[:, outputs]
    assert found.joint(PRIOR).sum(axis=1) + found.unlisted == pytest.approx(joint.sum(axis=0), rel=1e-5)
    for row, output in enumerate(outputs):
        others = np.argsort(-np.where(np.arange(SIZE) == output, 0, joint[:, row]))[:sources]
        assert found.sources[row, 0] == output
        assert set(found.sources[row, 1:]) == set(others)


def question(vocabulary, setting, **changes):
    outputs = vocabulary.eligible
    return ChannelQuestion(bundle=vocabulary.bundle, setting=setting, outputs=outputs, prior=PRIOR, **changes)


def test_a_counted_channel_comes_close_to_the_closed_one(vocabulary, rng):
    mechanism = made(vocabulary, "exponential")
    found = count_channel(question(vocabulary, mechanism.setting, sources=SIZE), rng=rng, tokens=60_000)
    exact = np.exp(mechanism.log_probabilities(np.arange(SIZE)))
    often = PRIOR > 0.02
    # Three times the largest standard error of a share of 0.02 * 60,000 draws, and the belief in an output itself.
    assert np.abs(matrix_of(found) - exact)[often].max() < 3 * 0.5 / np.sqrt(0.02 * 60_000) + 0.01


def test_the_channel_of_scaled_rows_is_estimated_on_the_scaled_rows(vocabulary, rng):
    mechanism = made(vocabulary, "unit-laplace")
    outputs = vocabulary.eligible
    asked = ChannelQuestion(
        bundle=vocabulary.bundle, setting=mechanism.setting, outputs=outputs, prior=PRIOR, sources=SIZE
    )
    estimated = estimate_channel(
        mechanism.setting, vocabulary.bundle, outputs=outputs, prior=PRIOR, rng=rng, sources=SIZE
    )
    counted = matrix_of(count_channel(asked, rng=rng, tokens=60_000))
    often = PRIOR > 0.02
    assert np.abs(matrix_of(estimated) - counted)[often].max() < 0.08
    other = matrix_of(estimate_laplace_channel(asked, rng=rng))
    assert np.abs(other - counted)[often].max() > 0.15, "the twin: rows as they are"


def success(vocabulary, name, *, rng, estimate=estimate_channel):
    """Shares of 20,000 words that Bayes names rightly, and that stay, at an η where a third of them stays or more."""
    prior = zipf_prior(vocabulary.size).probabilities ** 0.3
    prior /= prior.sum()
    words = rng.choice(vocabulary.size, size=20_000, p=prior)
    for eta in 0.5 * 1.4 ** np.arange(14):
        mechanism = made(vocabulary, name, eta=eta)
        if (mechanism.privatize(words[:500], rng=rng) == words[:500]).mean() > 1 / 3:
            break
    released = mechanism.privatize(words, rng=rng)
    outputs = np.unique(released)
    found = estimate(mechanism.setting, vocabulary.bundle, outputs=outputs, prior=prior, rng=rng)
    guesses = found.rank_sources(prior)[np.searchsorted(found.outputs, released), 0]
    return (guesses == words).mean(), (released == words).mean()


def count_few(setting, bundle, *, outputs, prior, rng):
    asked = ChannelQuestion(bundle=bundle, setting=setting, outputs=outputs, prior=prior)
    return count_channel(asked, rng=rng, tokens=4000)


# Three standard errors of a share of 20,000 words.
CHANCE = 3 * np.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("name", [name for name, known in KNOWN_MECHANISMS.items() if known.unit == "token"])
def test_bayes_does_no_worse_than_copying_whatever_the_mechanism(name, rng):
    named, copied = success(scattered_vocabulary(size=200, dim=24), name, rng=rng)
    assert 0.05 < copied < 0.9
    assert named > copied - CHANCE


def test_an_attacker_who_counts_few_draws_does_no_worse_than_one_who_copies(rng, monkeypatch):
    vocabulary = scattered_vocabulary(size=1500, dim=24)
    named, copied = success(vocabulary, "rank-fix", rng=rng, estimate=count_few)
    assert 0.2 < copied < 0.8
    assert named > copied - CHANCE
    monkeypatch.setattr(counted, "_STRENGTHS", np.array([1e-9]))
    named, copied = success(vocabulary, "rank-fix", rng=rng, estimate=count_few)
    assert named < copied - 0.02, "the twin: counts as they are"


def test_the_channel_of_the_two_nearest_tokens_is_that_of_both(rng):
    wide = scattered_vocabulary(size=SIZE, dim=24)
    mechanism = made(wide, "vickrey", eta=30.0)
    asked = question(wide, mechanism.setting, sources=SIZE)
    found = matrix_of(estimate_laplace_channel(asked, rng=rng, draws=400))
    drawn = mechanism.privatize(np.repeat(np.arange(SIZE), 10_000), rng=rng).reshape(SIZE, -1)
    shares = np.stack([np.bincount(row, minlength=SIZE) / len(row) for row in drawn])
    # Six standard errors of 400 draws of a smooth value.
    assert np.abs(found - shares).max() < 0.03
    nearest = matrix_of(estimate_laplace_channel(question(wide, made(wide, "laplace", eta=30.0).setting), rng=rng))
    assert np.abs(nearest - shares).max() > 0.1, "the twin: the nearest token alone"


@pytest.mark.parametrize("decay", [0.05, 0.005])
def test_the_channel_of_the_rank_fix_is_that_of_its_noise_and_of_the_moves_after_it(decay, rng):
    # At the smaller decay a third of the draws move, and the channel is counted.
    wide = scattered_vocabulary(size=SIZE, dim=24)
    mechanism = make_mechanism("rank-fix", vocabulary=wide, eta=60.0, options={"decay": decay})
    asked = question(wide, mechanism.setting, sources=SIZE)
    given = {"outputs": wide.eligible, "prior": PRIOR, "sources": SIZE}
    found = matrix_of(estimate_channel(mechanism.setting, wide.bundle, rng=rng, **given))
    drawn = mechanism.privatize(np.repeat(np.arange(SIZE), 4_000), rng=rng).reshape(SIZE, -1)
    shares = np.stack([np.bincount(row, minlength=SIZE) / len(row) for row in drawn])[:, asked.outputs]
    assert np.abs(found - shares)[PRIOR > 0.02].max() < 0.06
    if decay == 0.05:
        first = np.argsort(np.linalg.norm(wide.embeddings - wide.embeddings[0], axis=1))[1]
        assert found[0, first] == pytest.approx(shares[0, first], rel=0.35)
        assert shares[0, first] > 0.02


@pytest.mark.parametrize("name", [name for name, known in KNOWN_MECHANISMS.items() if known.channel == "counted"])
def test_mechanisms_without_a_closed_form_are_counted(name, vocabulary, rng):
    setting = MechanismSetting(name=name, parameters={"eta": 4.0})
    try:
        setting = made(vocabulary, name).setting
    except Exception as error:
        pytest.skip(f"needs more than eta: {type(error).__name__}")
    found = count_channel(question(vocabulary, setting), rng=rng, tokens=4000)
    assert (found.sources[:, 0] == vocabulary.eligible).all()
    assert (found.mean >= 0).all()
    assert found.joint(PRIOR).sum() + found.unlisted.sum() == pytest.approx(1, abs=0.2)


def test_a_mechanism_that_is_not_known_has_none(vocabulary):
    setting = MechanismSetting(name="novel", parameters={"eta": 1.0})
    assert "novel" in explain_unknown_channel(setting, vocabulary.bundle)
    with pytest.raises(AuditError, match="novel"):
        estimate_channel(setting, vocabulary.bundle, outputs=vocabulary.eligible, prior=PRIOR, rng=None)
