"""Which text a privatized text was: the best there is where that is known, all without noise, chance with noise."""

import numpy as np
import pytest

from audit_material import privatized_view, public_of, scattered_vocabulary, several_texts_view
from rapt.audit.attacks.desk import Desk
from rapt.audit.attacks.questions import link_texts
from rapt.audit.audit import audit_view
from rapt.audit.judge.questions import line_up, score_linkage
from rapt.audit.view import Lineup
from rapt.local.mechanisms import make_mechanism

SIZE, TEXTS, LENGTH = 60, 80, 10
MECHANISMS = ("laplace", "exponential", "santext")


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=SIZE, dim=6)


def texts_of(count, *, seed):
    return np.random.default_rng(seed).integers(0, SIZE, (count, LENGTH))


def linked(view, truth, *, seed=0):
    lineup, answers = line_up(view, truth, seed=seed)
    guess = link_texts(Desk(view, seed=seed), lineup)
    return score_linkage(guess.places, guess.probabilities, lineup=lineup, answers=answers)


def attacked(vocabulary, *, eta, mechanism="laplace", seed=0):
    true, others = texts_of(TEXTS, seed=1), texts_of(300, seed=2)
    return privatized_view(vocabulary, true.ravel(), eta=eta, mechanism=mechanism, public=public_of(others), seed=seed)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_with_hardly_any_noise_every_text_is_recognized(mechanism, vocabulary):
    found = linked(*attacked(vocabulary, eta=200.0, mechanism=mechanism))
    assert found.first.value == 1
    assert found.believed == pytest.approx(1, abs=0.01)
    assert (found.first.n, found.candidates) == (TEXTS, TEXTS + 300)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_with_nothing_but_noise_a_text_is_recognized_by_chance(mechanism, vocabulary):
    found = linked(*attacked(vocabulary, eta=0.001, mechanism=mechanism))
    assert found.first.low <= found.chance == pytest.approx(1 / 380)
    assert not found.beats_length


def test_with_a_closed_channel_the_attack_is_the_best_there_is(vocabulary):
    # Every candidate has the length of the text: the best attacker names the largest product of P(y|x), and is right
    # with the probability that he gives to it.
    view, truth = attacked(vocabulary, eta=5.0, mechanism="exponential")
    lineup, answers = line_up(view, truth, seed=0)
    mechanism = make_mechanism("exponential", vocabulary=vocabulary, eta=5.0)
    channel = mechanism.log_probabilities(np.arange(SIZE))
    score = np.array([[channel[x, seen].sum() for x in lineup.contents] for seen in map(list, view.texts)])
    best = np.exp(score - score.max(axis=1, keepdims=True))
    guess = link_texts(Desk(view, seed=0), lineup)
    assert guess.places.tolist() == score.argmax(axis=1).tolist()
    assert guess.probabilities == pytest.approx(1 / best.sum(axis=1), rel=1e-3)
    found = score_linkage(guess.places, guess.probabilities, lineup=lineup, answers=answers)
    assert found.first.low <= found.believed <= found.first.high
    assert found.beats_length


def test_the_rough_channel_is_about_as_sure_as_it_is_right(vocabulary):
    found = linked(*attacked(vocabulary, eta=2.5))
    assert 0.1 < found.first.value < 0.95
    assert abs(found.believed - found.first.value) < 0.2


def test_the_guess_does_not_change_with_the_truth(vocabulary):
    # The line-up is in random order and holds the true texts unmarked; nothing else of the truth is at hand.
    view, truth = attacked(vocabulary, eta=4.0)
    lineup, _ = line_up(view, truth, seed=0)
    turned = Lineup(contents=lineup.contents[::-1])
    first, second = (link_texts(Desk(view, seed=0), one) for one in (lineup, turned))
    assert (len(lineup.contents) - 1 - second.places).tolist() == first.places.tolist()


def test_length_alone_is_the_chance_of_texts_of_different_lengths(vocabulary):
    texts = [([1, 2],), ([3, 4],), ([5, 6, 7],)]
    view, truth = several_texts_view(vocabulary, texts, parts=("first",), eta=0.001)
    found = linked(view, truth)
    assert found.chance == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found.blind == pytest.approx(1 / 3)


def test_equal_texts_are_one_candidate_and_a_text_without_tokens_is_not_counted(vocabulary):
    texts = [([1, 2],), ([1, 2],), ([],), ([5, 6],)]
    view, truth = several_texts_view(vocabulary, texts, parts=("first",), eta=200.0)
    found = linked(view, truth)
    assert (found.candidates, found.first.n, found.first.value) == (2, 3, 1.0)


def test_an_audit_of_a_part_keeps_each_text_with_its_answer(vocabulary, monkeypatch):
    monkeypatch.setattr("rapt.audit.questions.MOST_LINKED_TOKENS", 100)
    view, truth = attacked(vocabulary, eta=200.0)
    found = audit_view(view, truth, attacks=["embedding_inversion", "linkage"]).linkage
    assert (found.first.n, found.first.value) == (10, 1.0)


def test_a_channel_that_leaves_out_most_pairs_is_said_to_be_the_reason_why_it_did_not_run(vocabulary):
    view, truth = attacked(vocabulary, eta=5.0, mechanism="vickrey")
    report = audit_view(view, truth, attacks=["embedding_inversion", "linkage"])
    assert report.linkage is None
    assert "leaves out most pairs" in {skipped.attack: skipped.reason for skipped in report.skipped}["linkage"]
