"""The parts of a success add up to the whole, and BLEU is that of a hand-made pair."""

import numpy as np
import pytest

from audit_material import privatized_view, scattered_vocabulary, several_texts_view
from rapt.audit.guess import Guess
from rapt.audit.judge.detail import bleu, detail


@pytest.fixture(scope="module")
def audited():
    tokens = np.random.default_rng(0).zipf(1.5, 400) % 60
    view, truth = privatized_view(scattered_vocabulary(size=60), tokens, eta=6.0)
    return view, truth, detail(Guess(token_ids=view.observed[:, None]), view=view, truth=truth)


@pytest.mark.parametrize("parts", ["bands", "classes"])
def test_the_parts_add_up_to_the_whole(parts, audited):
    view, truth, found = audited
    groups = getattr(found, parts)
    assert sum(group.first.n for group in groups) == len(view.observed)
    hits = sum(group.first.value * group.first.n for group in groups)
    assert hits == pytest.approx((view.observed == truth.token_ids).sum())


def test_taking_what_is_seen_gains_nothing_over_what_is_seen(audited):
    *_, found = audited
    assert found.bleu == found.bleu_unattacked
    assert found.similarity == found.similarity_unattacked
    assert all(group.first.value == pytest.approx(group.unchanged) for group in (*found.bands, found.words))


def test_the_truth_itself_scores_one(audited):
    view, truth, _ = audited
    found = detail(Guess(token_ids=truth.token_ids[:, None]), view=view, truth=truth)
    assert found.bleu == 1
    assert found.similarity == pytest.approx(1)


def test_what_is_recovered_of_each_text_of_a_record_is_told_apart():
    vocabulary = scattered_vocabulary(size=60)
    records = [([1, 2], [3], [4, 5]), ([6], [7, 8, 9], [10])]
    view, truth = several_texts_view(vocabulary, records, parts=("first", "second", "target"), eta=6.0)
    guess = np.where(np.isin(truth.token_ids, [3, 7, 8, 9, 10]), truth.token_ids, 0)
    found = detail(Guess(token_ids=guess[:, None]), view=view, truth=truth)
    assert [(group.name, group.first.value, group.first.n) for group in found.texts] == [
        ("first text", 0, 3),
        ("second text", 1, 4),
        ("target", pytest.approx(1 / 3), 3),
    ]
    assert [group.first.clusters for group in found.texts] == [2, 2, 2]


def test_where_a_record_is_one_text_nothing_is_told_apart(audited):
    assert audited[2].texts == ()


def test_bleu_by_hand():
    # Of six tokens five match; of five pairs three, of four triples one, of three quadruples none: smoothed by one.
    true, guessed = np.arange(6), np.array([0, 1, 2, 9, 4, 5])
    by_hand = (5 / 6 * (3 + 1) / (5 + 1) * (1 + 1) / (4 + 1) * (0 + 1) / (3 + 1)) ** 0.25
    assert bleu(guessed, true, np.array([6])) == pytest.approx(by_hand)
