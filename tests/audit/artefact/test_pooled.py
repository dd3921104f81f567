"""Pooled releases: one is the context-free attack, many give the text away, and none is needed at a huge η."""

import numpy as np
import pytest

from audit_material import scattered_vocabulary, zipf_prior
from rapt.audit.artefact.pooled import ReleasesView, pool_guesses, score_releases
from rapt.local.mechanisms import make_mechanism

SIZE, TOKENS = 60, 600


def released(name, *, eta, releases, seed=0):
    vocabulary = scattered_vocabulary(size=SIZE)
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=eta, allow_unproved=True)
    rng = np.random.default_rng(seed)
    prior = zipf_prior(SIZE)
    true = rng.choice(SIZE, TOKENS, p=prior.probabilities)
    outputs = np.stack([mechanism.privatize(true, rng=rng) for _ in range(releases)])
    return ReleasesView(releases=outputs, setting=mechanism.setting, vocabulary=vocabulary, prior=prior), true


def shares(view, true, counts):
    guesses = pool_guesses(view, counts=counts)
    return score_releases(guesses, true=true, lengths=np.full(TOKENS // 10, 10))


@pytest.mark.parametrize("name", ["exponential", "laplace"])
def test_more_releases_recover_more_until_nearly_all_is_read(name):
    view, true = released(name, eta=3.0, releases=40)
    found = shares(view, true, (1, 6, 40))
    assert found[0].recovered.high < found[1].recovered.low
    assert found[1].recovered.high < found[2].recovered.low
    assert found[2].recovered.value > 0.9


def test_the_guesses_of_a_closed_channel_are_those_of_bayes_rule():
    view, _ = released("exponential", eta=3.0, releases=3)
    mechanism = make_mechanism("exponential", vocabulary=view.vocabulary, eta=3.0)
    table = mechanism.log_probabilities(np.arange(SIZE))
    guesses = pool_guesses(view, counts=(1, 3))
    for count, named in guesses.items():
        posterior = np.log(view.prior.probabilities)[:, None] + sum(table[:, row] for row in view.releases[:count])
        assert np.array_equal(named, posterior.argmax(axis=0))


@pytest.mark.parametrize("name", ["exponential", "laplace"])
def test_a_single_release_is_enough_at_a_huge_eta(name):
    view, true = released(name, eta=400.0, releases=1)
    assert shares(view, true, (1,))[0].recovered.value > 0.99


@pytest.mark.parametrize("name", ["exponential", "laplace"])
def test_a_few_releases_are_at_chance_at_a_tiny_eta(name):
    view, true = released(name, eta=0.01, releases=4)
    (found,) = shares(view, true, (4,))
    assert found.recovered.low <= found.chance


def test_releases_with_shared_noise_add_nothing():
    # The same output R times: what is learned from it does not depend on R, though the attacker believes that it does.
    view, true = released("exponential", eta=3.0, releases=1)
    again = ReleasesView(
        releases=np.repeat(view.releases, 40, axis=0),
        setting=view.setting,
        vocabulary=view.vocabulary,
        prior=view.prior,
    )
    (once,), (often,) = shares(view, true, (1,)), shares(again, true, (40,))
    assert often.recovered.value <= once.recovered.high


def test_a_view_shows_no_releases_in_its_repr():
    view, _ = released("exponential", eta=3.0, releases=1)
    assert "releases" not in repr(view)
