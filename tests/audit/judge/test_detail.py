"""The parts of a success add up to the whole, and BLEU is that of a hand-made pair."""

import numpy as np
import pytest

from audit_material import privatized_view, scattered_vocabulary
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


def test_bleu_by_hand():
    # Of six tokens five match; of five pairs three, of four triples one, of three quadruples none: smoothed by one.
    true, guessed = np.arange(6), np.array([0, 1, 2, 9, 4, 5])
    by_hand = (5 / 6 * (3 + 1) / (5 + 1) * (1 + 1) / (4 + 1) * (0 + 1) / (3 + 1)) ** 0.25
    assert bleu(guessed, true, np.array([6])) == pytest.approx(by_hand)
