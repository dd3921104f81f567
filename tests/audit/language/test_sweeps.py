"""Sweeps with the true conditionals of a language: the analytic optimum, and by hand."""

import numpy as np
import pytest

from markov_language import alone, exact_posteriors, markov_material
from rapt.audit.intervals import clustered_share
from rapt.audit.language.sweeps import sweep
from rapt.errors import AuditError


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


def swept(material, *, steps, sweeps, first_kept, seed=0):
    return sweep(
        material.candidates,
        material.evidence,
        lengths=material.view.lengths,
        start=material.view.observed,
        conditional=markov_conditional(material.first, steps, material.view.lengths, material.candidates),
        rng=np.random.default_rng(seed),
        sweeps=sweeps,
        first_kept=first_kept,
    )


@pytest.mark.parametrize("eta", [3.0, 5.0])
def test_sweeps_with_the_true_conditionals_reach_the_optimum_of_a_markov_source(eta):
    material = markov_material(eta=eta)
    best = exact_posteriors(material)
    found = swept(material, steps=material.steps, sweeps=60, first_kept=10)
    ours = clustered_share(found.argmax(axis=1) == material.truth, material.view.lengths)
    optimum = (best.argmax(axis=1) == material.truth).mean()
    assert ours.low <= optimum <= ours.high
    assert optimum > alone(material).high, "context must matter here"
    # The posteriors themselves, not the choice alone: 50 draws leave about 0.02 on average, and a uniform guess 0.07.
    assert np.abs(np.exp(found) - best).mean() < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_sweeps_with_conditionals_that_look_the_wrong_way_miss_it(seed):
    material = markov_material(eta=3.0)
    found = swept(material, steps=material.steps.T, sweeps=12, first_kept=2, seed=seed)
    ours = clustered_share(found.argmax(axis=1) == material.truth, material.view.lengths)
    assert ours.high < (exact_posteriors(material).argmax(axis=1) == material.truth).mean()


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
