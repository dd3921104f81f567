"""Beam search with a reader that knows the language: the analytic optimum, and by hand."""

import numpy as np
import pytest

from markov_language import alone, exact_posteriors, markov_material
from rapt.audit.intervals import clustered_share
from rapt.audit.language.beam import ENDED, beam_beliefs


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
    return beam_beliefs(
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
    ours = clustered_share(
        guesses(material, steps=material.steps).argmax(axis=1) == material.truth, material.view.lengths
    )
    assert ours.low <= best <= ours.high
    assert best > alone(material).high, "context must matter here"


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_that_reads_the_steps_backwards_misses_it(seed):
    material = markov_material(eta=3.0, seed=seed)
    best = (exact_posteriors(material).argmax(axis=1) == material.truth).mean()
    found = guesses(material, steps=material.steps.T, beams=16)
    assert clustered_share(found.argmax(axis=1) == material.truth, material.view.lengths).high < best


def test_one_reading_is_kept_where_one_is_asked_for_and_the_best_by_hand():
    # Word 1 is likelier at first, and after it nothing but word 0 follows.
    first, steps = np.array([0.4, 0.6]), np.array([[0.5, 0.5], [1.0, 1e-9]])
    found = beam_beliefs(
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

    found = beam_beliefs(
        np.array([[0, 1]]),
        np.zeros((1, 2)),
        lengths=np.array([1]),
        read=lambda rows: Late(rows, np.array([0.4, 0.6]), np.ones((2, 2))),
        beams=2,
        later=0,
    )
    assert found[0].argmax() == 0
