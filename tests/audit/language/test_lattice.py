"""Forward and backward sums against the sum over all paths, written out."""

import itertools

import numpy as np
import pytest

from audit_material import zipf_prior
from rapt.audit.language.lattice import posteriors
from rapt.audit.language.ngram import fit_ngram

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
    found = np.exp(posteriors(candidates, evidence, lengths=lengths, model=model))
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
    together = posteriors(candidates, evidence, lengths=lengths, model=model)
    for start, length in zip(np.cumsum(lengths)[:20] - lengths[:20], lengths[:20], strict=True):
        part = slice(start, start + length)
        alone = posteriors(candidates[part], evidence[part], lengths=np.array([length]), model=model)
        assert together[part] == pytest.approx(alone)
