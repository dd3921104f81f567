"""A language whose source is known, privatized by a mechanism with a closed channel: the optimum can be worked out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from audit_material import markov_chain, markov_texts, privatized_view
from rapt.audit.intervals import Share, compute_clustered_share
from rapt.audit.view import AdversaryView
from rapt.local.mechanisms import make_mechanism
from toy_vocabularies import toy_vocabulary

WORDS = 16


@dataclass(frozen=True, eq=False)
class MarkovMaterial:
    first: np.ndarray
    steps: np.ndarray
    view: AdversaryView
    truth: np.ndarray
    candidates: np.ndarray
    evidence: np.ndarray


@cache
def markov_material(*, eta: float, seed: int = 1, texts: int = 200) -> MarkovMaterial:
    vocabulary = toy_vocabulary(np.random.default_rng(4).normal(0, 0.6, (WORDS, 4)))
    first, steps = markov_chain(words=WORDS)
    # Single positions are drawn in sweeps: where each word is certain from its neighbours the draws hardly move.
    steps = 0.8 * steps + 0.2 / WORDS
    private = markov_texts(first, steps, texts=texts, seed=seed)
    view, truth = privatized_view(vocabulary, private.ravel(), eta=eta, mechanism="exponential")
    mechanism = make_mechanism("exponential", vocabulary=vocabulary, eta=eta)
    evidence = mechanism.log_probabilities(np.arange(WORDS))[:, view.observed].T
    candidates = np.broadcast_to(np.arange(WORDS), evidence.shape)
    return MarkovMaterial(first, steps, view, truth.token_ids, candidates, evidence)


def exact_posteriors(material: MarkovMaterial) -> np.ndarray:
    """Forward and backward sums over all words, (n, words)."""
    seen = np.exp(material.evidence).reshape(len(material.view.lengths), -1, WORDS)
    forward, backward = np.empty(seen.shape), np.ones(seen.shape)
    forward[:, 0] = material.first * seen[:, 0]
    for t in range(1, seen.shape[1]):
        forward[:, t] = (forward[:, t - 1] @ material.steps) * seen[:, t]
        forward[:, t] /= forward[:, t].sum(axis=1, keepdims=True)
    for t in range(seen.shape[1] - 2, -1, -1):
        backward[:, t] = (backward[:, t + 1] * seen[:, t + 1]) @ material.steps.T
        backward[:, t] /= backward[:, t].sum(axis=1, keepdims=True)
    product = (forward * backward).reshape(-1, WORDS)
    return product / product.sum(axis=1, keepdims=True)


def alone(material: MarkovMaterial) -> Share:
    """What is recovered without context, by somebody who knows how frequent every word is in this text."""
    frequency = np.log(np.bincount(material.truth, minlength=WORDS) + 1)
    return compute_clustered_share(
        (material.evidence + frequency).argmax(axis=1) == material.truth, material.view.lengths
    )
