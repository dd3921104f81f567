"""Beam search with a reader that knows the language: the analytic optimum, and by hand.

Sweeps with the true conditionals of a language: the analytic optimum, and by hand.
"""

from __future__ import annotations

import numpy as np
import pytest

from markov_language import alone, exact_posteriors, markov_material
from rapt.audit.intervals import compute_clustered_share
from rapt.audit.language.search import ENDED, search_beam, sweep
from rapt.errors import AuditError


class MarkovReader:
    """Knows the true steps of the language, and remembers the last word of each row."""

    def __init__(self, rows, first, steps):
        self.last = np.full(rows, -1)
        self.chances = np.vstack([steps, first])  # row -1: nothing read yet

    def offer(self, candidates):
        return np.log(np.take_along_axis(self.chances[self.last], candidates, axis=1))

    def take(self, parents, candidates):
        self.last = np.where(candidates == ENDED, self.last[parents], candidates)
        return np.zeros(len(parents))


def guesses(material, *, steps, beams=64, later=9):
    return search_beam(
        material.candidates,
        material.evidence,
        lengths=material.view.lengths,
        read=lambda rows: MarkovReader(rows, material.first, steps),
        beams=beams,
        later=later,
        together=50,
    )


@pytest.mark.parametrize("eta", [3.0, 5.0])
def test_a_beam_with_the_true_steps_reaches_the_optimum_of_a_markov_source(eta):
    material = markov_material(eta=eta)
    best = (exact_posteriors(material).argmax(axis=1) == material.truth).mean()
    ours = compute_clustered_share(
        guesses(material, steps=material.steps).argmax(axis=1) == material.truth, material.view.lengths
    )
    assert ours.low <= best <= ours.high
    assert best > alone(material).high, "context must matter here"


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_that_reads_the_steps_backwards_misses_it(seed):
    material = markov_material(eta=3.0, seed=seed)
    best = (exact_posteriors(material).argmax(axis=1) == material.truth).mean()
    found = guesses(material, steps=material.steps.T, beams=16)
    assert compute_clustered_share(found.argmax(axis=1) == material.truth, material.view.lengths).high < best


def test_one_reading_is_kept_where_one_is_asked_for_and_the_best_by_hand():
    # Word 1 is likelier at first, and after it nothing but word 0 follows.
    first, steps = np.array([0.4, 0.6]), np.array([[0.5, 0.5], [1.0, 1e-9]])
    found = search_beam(
        np.tile([0, 1], (2, 1)),
        np.zeros((2, 2)),
        lengths=np.array([2]),
        read=lambda rows: MarkovReader(rows, first, steps),
        beams=1,
        later=1,
    )
    assert found.argmax(axis=1).tolist() == [1, 0]


def test_a_correction_of_an_offer_changes_what_is_believed():
    class Late(MarkovReader):
        def take(self, parents, candidates):
            super().take(parents, candidates)
            return np.where(candidates == 1, -5.0, 0.0)

    found = search_beam(
        np.array([[0, 1]]),
        np.zeros((1, 2)),
        lengths=np.array([1]),
        read=lambda rows: Late(rows, np.array([0.4, 0.6]), np.ones((2, 2))),
        beams=2,
        later=0,
    )
    assert found[0].argmax() == 0


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
    ours = compute_clustered_share(found.argmax(axis=1) == material.truth, material.view.lengths)
    optimum = (best.argmax(axis=1) == material.truth).mean()
    assert ours.low <= optimum <= ours.high
    assert optimum > alone(material).high, "context must matter here"
    # The posteriors themselves, not the choice alone: 50 draws leave about 0.02 on average, and a uniform guess 0.07.
    assert np.abs(np.exp(found) - best).mean() < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_sweeps_with_conditionals_that_look_the_wrong_way_miss_it(seed):
    material = markov_material(eta=3.0)
    found = swept(material, steps=material.steps.T, sweeps=12, first_kept=2, seed=seed)
    ours = compute_clustered_share(found.argmax(axis=1) == material.truth, material.view.lengths)
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
