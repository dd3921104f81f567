"""Choosing η for the success of an attack: against closed forms, exact sums, and the optimum of a known language."""

import math

import numpy as np
import pytest
from scipy import stats

from audit_material import markov_texts, public_of
from markov_language import WORDS, alone, exact_posteriors, markov_material
from rapt.audit.calibration import (
    READING_ATTACKS,
    ExactSuccess,
    SimulatedSuccess,
    StrongestSuccess,
    calibrate_attack_success,
    calibrate_success,
)
from rapt.errors import AuditError, UsageError
from rapt.local.mechanisms import make_mechanism
from rapt.local.weighting import Weighting, weigh_all
from rapt.wire.mechanism_setting import MechanismSetting
from toy_vocabularies import toy_vocabulary

ALPHA = 1e-6
# Two tokens at distance 2 on a line. By Laplace noise a token stays with probability 1 - e^-η / 2.
TWO = toy_vocabulary([[0.0], [2.0]])
MARKOV = toy_vocabulary(np.random.default_rng(4).normal(0, 0.6, (WORDS, 4)))  # that of `markov_language`
UNEVEN = Weighting(token_ids=np.array([0, 1]), shares=np.array([0.8, 0.2]), source="by hand")


def maker(vocabulary, name="laplace"):
    return lambda eta: make_mechanism(name, vocabulary=vocabulary, eta=eta)


def test_on_a_line_eta_is_that_of_the_closed_form(rng):
    trials = 4096
    found = calibrate_success(
        maker(TWO), TWO, success=0.75, weighting=weigh_all(TWO), rng=rng, trials=trials, curve_steps=0
    )
    error = stats.norm.isf(ALPHA / 2) * math.sqrt(0.75 * 0.25 / trials)
    assert abs(1 - math.exp(-found.eta) / 2 - 0.75) < error + 0.006 * found.eta
    assert found.eta_low < found.eta < found.eta_high
    assert (found.target, found.wanted) == ("bayes-success", 0.75)
    assert found.reached_low <= found.reached <= found.reached_high


def test_with_a_closed_channel_the_success_is_exact(rng):
    # P(stays) = 1 / (1 + e^-η) with β = η / 2 and distance 2, for both tokens alike.
    found = calibrate_success(
        maker(TWO, "exponential"),
        TWO,
        success=0.75,
        weighting=weigh_all(TWO),
        rng=rng,
        trials=200,
        curve_steps=1,
    )
    assert found.eta == pytest.approx(math.log(3), rel=0.003)
    assert found.reached == found.reached_low == found.reached_high == pytest.approx(1 / (1 + math.exp(-found.eta)))
    assert [point.success for point in found.curve] == sorted(point.success for point in found.curve)


def test_the_exact_success_is_the_sum_of_the_largest_joint_probabilities(rng):
    vocabulary = toy_vocabulary(rng.standard_normal((400, 3)))
    shares = rng.dirichlet(np.full(400, 0.3))
    weighting = Weighting(token_ids=np.arange(400), shares=np.maximum(shares, 1e-12), source="")
    channel = np.exp(make_mechanism("exponential", vocabulary=vocabulary, eta=4.0).log_probabilities(np.arange(400)))
    brute = sum(max(weighting.shares[x] * channel[x, y] for x in range(400)) for y in range(400))
    assert ExactSuccess(maker(vocabulary, "exponential"), weighting)(4.0) == pytest.approx(brute)


@pytest.mark.parametrize("eta", [0.2, 2.0])
def test_an_uneven_prior_puts_a_floor_under_the_success(rng, eta):
    # Whoever always says the frequent token is right in 80 % of cases; at a larger η seeing the token helps.
    stays = 1 - math.exp(-eta) / 2
    expected = max(0.8 * stays, 0.2 * (1 - stays)) + max(0.8 * (1 - stays), 0.2 * stays)
    found = SimulatedSuccess(maker(TWO), TWO, UNEVEN, trials=4000, rng=rng)(eta)
    assert abs(found - expected) < stats.norm.isf(ALPHA / 2) * math.sqrt(0.25 / 4000)
    if eta == 0.2:
        with pytest.raises(UsageError, match="no eta reaches the target"):
            calibrate_success(maker(TWO), TWO, success=0.7, weighting=UNEVEN, rng=rng, trials=400, curve_steps=0)


@pytest.mark.parametrize("success", [0.0, 1.0, math.nan])
def test_a_target_that_is_no_share_is_refused(rng, success):
    with pytest.raises(UsageError, match="between 0 and 1, got bayes_success="):
        calibrate_success(maker(TWO), TWO, success=success, weighting=UNEVEN, rng=rng)


def test_a_mechanism_whose_channel_is_not_known_is_refused(rng):
    class Unknown:
        status = "proved"

        def __init__(self, eta):
            self.setting = MechanismSetting(name="unknown", parameters={"eta": eta})

        def privatize(self, token_ids, *, rng):
            eta = self.setting.eta
            return np.where(rng.random(len(token_ids)) < eta / (1 + eta), token_ids, 1 - token_ids)

    with pytest.raises(AuditError, match="a channel must be of one of"):
        calibrate_success(Unknown, TWO, success=0.75, weighting=weigh_all(TWO), rng=rng, trials=200)


def test_the_strongest_attack_names_the_share_that_whoever_knows_the_language_names(rng):
    # The optimum is worked out with the true steps of a Markov source; whoever looks at each token alone falls short.
    trials, known = 500, markov_material(eta=3.0)
    found = calibrate_attack_success(
        maker(MARKOV, "exponential"),
        MARKOV,
        success=0.6,
        texts=list(markov_texts(known.first, known.steps, texts=400, seed=5)),
        weighting=weigh_all(MARKOV),
        rng=rng,
        trials=trials,
        curve_steps=0,
    )
    there = markov_material(eta=found.eta)
    best = (exact_posteriors(there).argmax(axis=1) == there.truth).mean()
    error = stats.norm.isf(ALPHA / 2) * math.sqrt(0.6 * 0.4 / trials)
    assert abs(best - 0.6) < error
    assert alone(there).value < best - 0.05
    assert (found.target, found.wanted) == ("attack-success", 0.6)
    assert found.reached == found.curve[0].success
    assert abs(found.reached - 0.6) < math.sqrt(2) * error


def test_the_strongest_attack_is_the_one_that_names_most(rng):
    known = markov_material(eta=3.0)
    texts = list(markov_texts(known.first, known.steps, texts=200, seed=6))
    held = public_of(texts[100:])
    success = StrongestSuccess(maker(MARKOV, "exponential"), MARKOV, attacked=texts[:100], held=held, rng=rng)
    shares = {name: named.mean() for name, named in success.attack(success.open_desk(4.0)).items()}
    assert list(shares) == list(READING_ATTACKS)
    assert success(4.0) == shares["context"] > shares["bayes"] > shares["embedding_inversion"]


def test_too_few_public_texts_are_refused(rng):
    texts = [np.array([0, 1])] * 5_000  # one text, over and over
    with pytest.raises(UsageError, match="in different texts, got 2"):
        calibrate_attack_success(maker(TWO), TWO, success=0.6, texts=texts, weighting=UNEVEN, rng=rng, trials=100)
