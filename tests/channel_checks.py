"""What the tests of several mechanisms ask: that a channel is what is drawn, and that no triple breaks the bound."""

from __future__ import annotations

import numpy as np

from significance import assert_counts

DRAWS = 20_000

# Row 7 is special in both: an input, never an output.
LINE = np.array([-2.0, 3.5, -0.5, 0.0, 0.25, 1.0, 1.5, 0.6])[:, None]
PLANE = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [3, -1], [0.2, 0.1], [-1.5, 2], [0.5, 0.5], [1, 0.05]], dtype=float)
SPECIAL = (7,)


def euclidean(table):
    """All distances between the rows, (V, V)."""
    return np.linalg.norm(table[:, None] - table[None], axis=2)


def largest_excess(log_channel, distances, eta):
    """Over all triples, the most by which log P(y|x) - log P(y|x') exceeds eta * d(x, x'); inf if a support differs."""
    worst = -np.inf
    for x in range(len(log_channel)):
        for other in range(len(log_channel)):
            if x == other or np.isinf(distances[x, other]):
                continue
            both = np.isfinite(log_channel[x]) | np.isfinite(log_channel[other])
            with np.errstate(invalid="ignore"):
                loss = (log_channel[x] - log_channel[other])[both].max()
            worst = max(worst, float(loss) - eta * float(distances[x, other]))
    return worst


def count_outputs(mechanism, vocabulary, x, rng, *, draws=DRAWS):
    """How often each eligible token came out for token x, (C,)."""
    out = mechanism.privatize(np.full(draws, x), rng=rng)
    assert np.isin(out, vocabulary.eligible).all()
    return np.bincount(np.searchsorted(vocabulary.eligible, out), minlength=len(vocabulary.eligible))


def assert_drawn_as_stated(mechanism, vocabulary, rng, *, channel=None, draws=DRAWS):
    """The outputs of every token of a small vocabulary follow its closed channel."""
    if channel is None:
        channel = np.exp(mechanism.log_probabilities(np.arange(vocabulary.size)))
    for x in range(vocabulary.size):
        assert_counts(count_outputs(mechanism, vocabulary, x, rng, draws=draws), channel[x])
