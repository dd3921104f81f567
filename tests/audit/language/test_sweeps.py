"""Sweeps with the true conditionals of a language: the analytic optimum, and by hand."""

import numpy as np
import pytest

from audit_material import markov_chain, markov_texts, privatized_view
from rapt.audit.intervals import clustered_share
from rapt.audit.language.sweeps import sweep
from rapt.errors import AuditError
from rapt.local.mechanisms import make_mechanism
from toy_vocabularies import toy_vocabulary

WORDS = 16


def markov_conditional(first, steps, lengths, candidates):
    """P(x_t | its two neighbours), of texts of one length."""
    length = int(lengths[0])
    ends = np.ones(len(first))

    def conditional(tokens, asked):
        at = np.flatnonzero(asked)
        before = np.where((at % length > 0)[:, None], steps[tokens[at - 1]], first)
        after = np.where((at % length < length - 1)[:, None], steps.T[tokens[(at + 1) % len(tokens)]], ends)
        with np.errstate(divide="ignore"):
            return np.log(np.maximum(np.take_along_axis(before * after, candidates[at], axis=1), 1e-12))

    return conditional


def exact_posteriors(seen, first, steps):
    """Forward and backward sums over all words; evidence P(y | word), (texts, T, words)."""
    forward, backward = np.empty(seen.shape), np.ones(seen.shape)
    forward[:, 0] = first * seen[:, 0]
    for t in range(1, seen.shape[1]):
        forward[:, t] = (forward[:, t - 1] @ steps) * seen[:, t]
        forward[:, t] /= forward[:, t].sum(axis=1, keepdims=True)
    for t in range(seen.shape[1] - 2, -1, -1):
        backward[:, t] = (backward[:, t + 1] * seen[:, t + 1]) @ steps.T
        backward[:, t] /= backward[:, t].sum(axis=1, keepdims=True)
    product = forward * backward
    return product / product.sum(axis=2, keepdims=True)


@pytest.fixture(scope="module")
def vocabulary():
    return toy_vocabulary(np.random.default_rng(4).normal(0, 0.6, (WORDS, 4)))


def material(vocabulary, *, eta, texts=200):
    first, steps = markov_chain(words=WORDS)
    # Single positions are drawn: where each word is certain from its neighbours the draws hardly move.
    steps = 0.8 * steps + 0.2 / WORDS
    private = markov_texts(first, steps, texts=texts, seed=1)
    view, truth = privatized_view(vocabulary, private.ravel(), eta=eta, mechanism="exponential")
    mechanism = make_mechanism("exponential", vocabulary=vocabulary, eta=eta)
    evidence = mechanism.log_probabilities(np.arange(WORDS))[:, view.observed].T
    candidates = np.broadcast_to(np.arange(WORDS), evidence.shape)
    return first, steps, view, truth.token_ids, candidates, evidence


@pytest.mark.parametrize("eta", [3.0, 5.0])
def test_sweeps_with_the_true_conditionals_reach_the_optimum_of_a_markov_source(eta, vocabulary):
    first, steps, view, truth, candidates, evidence = material(vocabulary, eta=eta)
    best = exact_posteriors(np.exp(evidence).reshape(len(view.lengths), -1, WORDS), first, steps).reshape(-1, WORDS)
    found = sweep(
        candidates,
        evidence,
        lengths=view.lengths,
        start=view.observed,
        conditional=markov_conditional(first, steps, view.lengths, candidates),
        rng=np.random.default_rng(0),
        sweeps=60,
        first_kept=10,
    )
    ours = clustered_share(found.argmax(axis=1) == truth, view.lengths)
    optimum = (best.argmax(axis=1) == truth).mean()
    alone = (evidence + np.log(np.bincount(truth, minlength=WORDS) + 1)).argmax(axis=1)
    assert ours.low <= optimum <= ours.high
    assert optimum > clustered_share(alone == truth, view.lengths).high, "context must matter here"
    # The posteriors themselves, not the choice alone: 50 draws leave about 0.02 on average, and a uniform guess 0.07.
    assert np.abs(np.exp(found) - best).mean() < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_sweeps_with_conditionals_that_look_the_wrong_way_miss_it(seed, vocabulary):
    first, steps, view, truth, candidates, evidence = material(vocabulary, eta=3.0)
    best = exact_posteriors(np.exp(evidence).reshape(len(view.lengths), -1, WORDS), first, steps).reshape(-1, WORDS)
    found = sweep(
        candidates,
        evidence,
        lengths=view.lengths,
        start=view.observed,
        conditional=markov_conditional(first, steps.T, view.lengths, candidates),
        rng=np.random.default_rng(seed),
        sweeps=12,
        first_kept=2,
    )
    ours = clustered_share(found.argmax(axis=1) == truth, view.lengths)
    assert ours.high < (best.argmax(axis=1) == truth).mean()


def test_a_position_that_is_drawn_is_not_looked_at():
    seen = []

    def conditional(tokens, asked):
        seen.append(np.flatnonzero(asked).tolist())
        return np.zeros((int(asked.sum()), 2))

    lengths = np.array([3, 2])
    candidates = np.tile([0, 1], (5, 1))
    found = sweep(
        candidates,
        np.log(np.tile([0.75, 0.25], (5, 1))),
        lengths=lengths,
        start=np.zeros(5, dtype=np.int64),
        conditional=conditional,
        rng=np.random.default_rng(0),
        blocks=2,
        sweeps=2,
    )
    assert seen == [[0, 2, 3], [1, 4], [0, 2, 3], [1, 4]]  # every second position of each text
    assert np.exp(found) == pytest.approx(np.tile([0.75, 0.25], (5, 1)))  # without context, the evidence


def test_sweeps_of_which_none_is_kept_are_refused():
    with pytest.raises(AuditError, match="at least one sweep"):
        sweep(
            np.zeros((1, 1), dtype=np.int64),
            np.zeros((1, 1)),
            lengths=np.array([1]),
            start=np.zeros(1, dtype=np.int64),
            conditional=lambda tokens, asked: np.zeros((1, 1)),
            rng=np.random.default_rng(0),
            sweeps=2,
            first_kept=2,
        )
