"""N-gram models: probabilities add up to one, back off by hand-computed amounts, and forget an unknown token.

Forward and backward sums against the sum over all paths, written out.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from audit_material import markov_chain, markov_texts, zipf_prior
from rapt.audit.language.ngram import compute_posteriors, fit_ngram
from rapt.errors import AuditError

TEXTS = [np.array(text) for text in ([0, 1, 2], [0, 1, 1], [3, 0, 1], [0, 2])]
PRIOR = zipf_prior(6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_after_every_context_the_probabilities_of_all_tokens_and_the_end_add_up_to_one(order):
    model = fit_ngram(TEXTS, PRIOR, order=order)
    every = np.append(np.arange(6), model.boundary)
    for context in np.ndindex(*(len(every) for _ in range(order - 1))):
        before = np.broadcast_to(every[list(context)], (len(every), order - 1))
        grams = np.column_stack([before, every])
        assert model.probability(*grams.T).sum() == pytest.approx(1)


def test_a_bigram_is_its_discounted_share_plus_what_falls_to_the_shorter_context_by_hand():
    model = fit_ngram(TEXTS, PRIOR, order=2)
    # After 0, of 4 pairs: (0, 1) three times, (0, 2) once. Among the 10 different pairs of the texts, D comes from
    # those seen once and twice; their kinds are counted here.
    pairs = [(a, b) for text in TEXTS for a, b in zip([6, *text], [*text, 6], strict=True)]
    counts = {pair: pairs.count(pair) for pair in pairs}
    once, twice = (sum(n == k for n in counts.values()) for k in (1, 2))
    discount = once / (once + 2 * twice)
    shorter = model.probability(np.array([1]))[0]
    assert model.probability(*np.array([[0], [1]]))[0] == pytest.approx((3 - discount) / 4 + discount * 2 / 4 * shorter)
    assert model.probability(*np.array([[0], [5]]))[0] == pytest.approx(
        discount * 2 / 4 * model.probability(*np.array([[5]]))[0]
    )


def test_nothing_that_the_prior_holds_possible_is_ruled_out():
    model = fit_ngram(TEXTS, PRIOR, order=3)
    grams = np.array(np.meshgrid(range(6), range(6), range(6))).reshape(3, -1).T
    assert np.isfinite(model.log_probability(*grams.T)).all()


def test_after_a_token_of_which_nothing_is_known_the_shorter_context_decides():
    model = fit_ngram(TEXTS, PRIOR, order=3)
    anything = model.anything
    assert model.probability(*np.array([[anything], [0], [1]])) == model.probability(*np.array([[0], [1]]))
    assert model.probability(*np.array([[0], [anything], [1]])) == model.probability(np.array([1]))
    assert model.probability(*np.array([[0], [1], [anything]])).tolist() == [1.0]


def test_a_model_of_many_texts_finds_the_steps_of_a_markov_chain():
    first, steps = markov_chain(words=6)
    texts = markov_texts(first, steps, texts=8000)
    model = fit_ngram(list(texts), PRIOR, order=2)
    grams = np.array(np.meshgrid(range(6), range(6), indexing="ij")).reshape(2, -1).T
    found = model.probability(*grams.T).reshape(6, 6)
    found /= found.sum(axis=1, keepdims=True)  # where texts end is not part of the chain
    often = np.bincount(texts.ravel(), minlength=6) > 500
    assert np.abs(found - steps)[often].max() < 0.03


@pytest.mark.parametrize("order", [0, 4])
def test_other_orders_are_refused(order):
    with pytest.raises(AuditError, match=f"order={order}"):
        fit_ngram(TEXTS, PRIOR, order=order)


V = 7


def model_of(order):
    rng = np.random.default_rng(0)
    return fit_ngram([rng.choice(V, rng.integers(1, 6)) for _ in range(60)], zipf_prior(V), order=order)


def sum_over_paths(candidates, evidence, model):
    """P(candidate | all), by enumerating every path of one text."""
    length, width = candidates.shape
    total = np.zeros((length, width))
    for path in itertools.product(range(width), repeat=length):
        tokens = [model.boundary] * 2 + [candidates[t, place] for t, place in enumerate(path)] + [model.boundary]
        grams = [tokens[end - model.order + 1 : end + 1] for end in range(2, len(tokens))]
        log = sum(evidence[t, place] for t, place in enumerate(path)) + sum(
            float(model.log_probability(*np.array(gram)[:, None])[0]) for gram in grams
        )
        for t, place in enumerate(path):
            total[t, place] += np.exp(log)
    return total / total.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_sums_are_those_over_all_paths(order, rng):
    model = model_of(order)
    lengths = np.array([1, 4, 0, 2, 3])
    n = int(lengths.sum())
    candidates = np.array([rng.permutation(V)[:3] for _ in range(n)])
    candidates[:, -1] = np.where(rng.random(n) < 0.5, model.anything, candidates[:, -1])
    evidence = rng.normal(0, 2, (n, 3))
    evidence[rng.random(n) < 0.3, 1] = -np.inf
    found = np.exp(compute_posteriors(candidates, evidence, lengths=lengths, model=model))
    start = 0
    for length in lengths:
        part = slice(start, start + int(length))
        if length:
            assert found[part] == pytest.approx(sum_over_paths(candidates[part], evidence[part], model), abs=1e-5)
        start += int(length)


def test_many_texts_at_once_give_what_each_gives_alone(rng):
    model, lengths = model_of(2), rng.integers(1, 9, 200)
    n = int(lengths.sum())
    candidates = np.array([rng.permutation(V)[:4] for _ in range(n)])
    evidence = rng.normal(0, 2, (n, 4))
    together = compute_posteriors(candidates, evidence, lengths=lengths, model=model)
    for start, length in zip(np.cumsum(lengths)[:20] - lengths[:20], lengths[:20], strict=True):
        part = slice(start, start + length)
        alone = compute_posteriors(candidates[part], evidence[part], lengths=np.array([length]), model=model)
        assert together[part] == pytest.approx(alone)
