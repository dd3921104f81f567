"""Scores worked by hand."""

import numpy as np
import pytest

from audit_material import privatized_view, scattered_vocabulary, view_of
from rapt.audit.judge.scoring import compute_unchanged_share, score_guess
from rapt.audit.view import Guess
from rapt.errors import AuditError

TRUE = [1, 1, 2, 3]
SEEN = [1, 5, 2, 4]  # places 1 and 3 were changed
GUESSED = [[1, 2], [5, 1], [9, 2], [4, 6]]


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=12, dim=3)


@pytest.fixture(scope="module")
def scored(vocabulary):
    view, truth = view_of(vocabulary, TRUE, SEEN, eta=2.0)
    return score_guess(Guess(token_ids=np.array(GUESSED)), view=view, truth=truth)


def test_all_tokens_by_hand(scored):
    found = scored.all_tokens
    assert (found.first.value, found.any_of_k.value, found.k) == (0.25, 0.75, 2)
    assert (found.chance, found.chance_of_k) == (0.5, 0.75)  # always 1; 1 and one of the others
    assert found.advantage == -0.25


def test_changed_tokens_by_hand(scored):
    assert (scored.changed_tokens.first.value, scored.changed_tokens.any_of_k.value) == (0.0, 0.5)
    assert scored.changed_tokens.chance == 0.5


def test_an_attacker_who_is_told_what_changed_strikes_out_what_he_sees(scored):
    assert scored.told_changed.first.value == 0.5  # [5, 1] becomes [1, 5], and 1 is true


def test_unchanged_tokens_by_hand(vocabulary):
    view, truth = view_of(vocabulary, TRUE, SEEN, eta=2.0)
    assert compute_unchanged_share(view=view, truth=truth).value == 0.5


def test_a_file_in_which_nothing_changed_has_no_score_for_changed_tokens(vocabulary):
    view, truth = view_of(vocabulary, TRUE, TRUE, eta=2.0)
    found = score_guess(Guess(token_ids=np.array(GUESSED)), view=view, truth=truth)
    assert found.changed_tokens is None
    assert found.told_changed is None


def test_a_guess_of_another_file_is_refused(vocabulary):
    view, truth = privatized_view(vocabulary, TRUE, eta=2.0)
    with pytest.raises(AuditError, match="of one file, got 2, 4 and 4 tokens"):
        score_guess(Guess(token_ids=np.array(GUESSED[:2])), view=view, truth=truth)
