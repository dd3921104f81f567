"""On a language with a known Markov source the optimum is known, and the attacks that use context reach it.

The optimum is computed here by hand: forward and backward sums over all words with the true probabilities of the
language, and the mechanism's closed channel. No rule names more tokens rightly on average.
"""

import numpy as np
import pytest

from audit_material import markov_chain, markov_texts, privatized_view, public_of
from rapt.audit.attacks import ATTACKS
from rapt.audit.attacks.desk import Desk
from rapt.audit.judge.scoring import score_guess
from rapt.local.mechanisms import make_mechanism
from toy_vocabularies import toy_vocabulary

WORDS = 16
CONTEXT = [
    pytest.param(name, marks=[] if attack.fast else [pytest.mark.slow])
    for name, attack in ATTACKS.items()
    # A decoder brings a language of its own; its beam is tested with the true steps in test_beam.
    # Tong's product counts the channel twice and cannot reach it; its own test is below.
    if attack.uses_context and "decoder" not in attack.needs and name != "tong"
]
FAST = {name: attack for name, attack in ATTACKS.items() if attack.fast}
# Public text is finite, so its n-grams are a little off.
LEARNING_LOSS = 0.01


@pytest.fixture(scope="module")
def vocabulary():
    return toy_vocabulary(np.random.default_rng(4).normal(0, 0.6, (WORDS, 4)))


def channel_of(vocabulary, *, eta):
    mechanism = make_mechanism("exponential", vocabulary=vocabulary, eta=eta)
    return np.exp(mechanism.log_probabilities(np.arange(WORDS)))


def optimal_guess(texts, first, steps, channel):
    """The likeliest word at every position, given the whole privatized text; texts are privatized, (n, T)."""
    emission = np.moveaxis(channel[:, texts], 0, -1)  # (n, T, V)
    n, length = texts.shape
    forward, backward = np.empty((n, length, WORDS)), np.ones((n, length, WORDS))
    forward[:, 0] = first * emission[:, 0]
    for t in range(1, length):
        forward[:, t] = (forward[:, t - 1] @ steps) * emission[:, t]
        forward[:, t] /= forward[:, t].sum(axis=1, keepdims=True)
    for t in range(length - 2, -1, -1):
        backward[:, t] = (backward[:, t + 1] * emission[:, t + 1]) @ steps.T
        backward[:, t] /= backward[:, t].sum(axis=1, keepdims=True)
    return (forward * backward).argmax(axis=2)


@pytest.mark.parametrize("eta", [1.5, 4.0])
@pytest.mark.parametrize("name", CONTEXT)
def test_attacks_with_context_reach_the_optimum_of_a_markov_source(name, eta, vocabulary):
    first, steps = markov_chain(words=WORDS)
    private = markov_texts(first, steps, texts=200, seed=1)
    public = public_of(markov_texts(first, steps, texts=2500, seed=2))
    view, truth = privatized_view(vocabulary, private.ravel(), eta=eta, public=public, mechanism="exponential")
    channel = channel_of(vocabulary, eta=eta)
    best = (optimal_guess(view.observed.reshape(private.shape), first, steps, channel) == private).mean()
    found = score_guess(ATTACKS[name].run(Desk(view, seed=0)), view=view, truth=truth).all_tokens.first
    without = score_guess(ATTACKS["bayes"].run(Desk(view, seed=0)), view=view, truth=truth).all_tokens.first
    assert found.value >= best - LEARNING_LOSS
    assert found.low <= best <= found.high + LEARNING_LOSS
    assert best > without.high, "the test means nothing where context does not help"


@pytest.mark.slow
@pytest.mark.parametrize("eta", [1.5, 4.0])
def test_the_published_attack_with_context_beats_bayes_and_stays_below_the_optimum(eta, vocabulary):
    first, steps = markov_chain(words=WORDS)
    private = markov_texts(first, steps, texts=200, seed=1)
    public = public_of(markov_texts(first, steps, texts=2500, seed=2))
    view, truth = privatized_view(vocabulary, private.ravel(), eta=eta, public=public, mechanism="exponential")
    best = (
        optimal_guess(view.observed.reshape(private.shape), first, steps, channel_of(vocabulary, eta=eta)) == private
    ).mean()
    found, without = (
        score_guess(ATTACKS[name].run(Desk(view, seed=0)), view=view, truth=truth).all_tokens.first
        for name in ("tong", "bayes")
    )
    assert found.value >= without.value
    assert found.low <= best + LEARNING_LOSS


@pytest.mark.parametrize("eta", [1.5, 4.0])
def test_without_context_the_optimum_of_independent_words_is_reached(eta, vocabulary):
    shares = np.random.default_rng(0).dirichlet(np.full(WORDS, 0.5))
    private = np.random.default_rng(1).choice(WORDS, 2000, p=shares)
    public = public_of(np.random.default_rng(2).choice(WORDS, (1000, 10), p=shares))
    view, truth = privatized_view(vocabulary, private, eta=eta, public=public, mechanism="exponential")
    best = (channel_of(vocabulary, eta=eta) * shares[:, None]).max(axis=0).sum()
    for name, attack in FAST.items():
        found = score_guess(attack.run(Desk(view, seed=0)), view=view, truth=truth).all_tokens.first
        assert found.low <= best + LEARNING_LOSS
        if name != "embedding_inversion":
            assert found.high >= best - LEARNING_LOSS
