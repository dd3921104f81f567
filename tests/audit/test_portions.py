"""Parts of a file: drawn, or lent to the attacker, in whole records."""

import numpy as np
import pytest

from audit_material import privatized_view, scattered_vocabulary, several_texts_view, view_of
from rapt.audit.portions import lend_texts, sample_records
from rapt.errors import AuditError


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=30, dim=4)


def test_a_part_of_a_file_is_whole_records_with_their_own_truth(vocabulary):
    tokens = np.arange(200) % 30
    view, truth = view_of(vocabulary, tokens, (tokens + 1) % 30, eta=6.0)
    part, part_truth = sample_records(view, truth, tokens=55, seed=1)
    assert part.lengths.tolist() == [10] * 6
    assert np.array_equal((part_truth.token_ids + 1) % 30, part.observed)
    assert not np.array_equal(part.observed, view.observed[:60])


def test_a_part_as_large_as_the_file_is_the_file(vocabulary):
    view, truth = view_of(vocabulary, [1, 2], [3, 4], eta=6.0)
    assert sample_records(view, truth, tokens=2, seed=1) == (view, truth)


def test_lent_texts_are_true_ones_and_are_not_attacked(vocabulary):
    tokens = np.random.default_rng(0).integers(0, 30, 200)
    view, truth = privatized_view(vocabulary, tokens, eta=6.0)
    attacked, its_truth = lend_texts(view, truth, share=0.25, seed=3)
    lent = [content.tolist() for content in attacked.public.contents]
    kept = its_truth.token_ids.reshape(-1, 10).tolist()
    assert (len(lent), len(kept), len(attacked.records)) == (5, 15, 15)
    assert sorted(lent + kept) == sorted(tokens.reshape(-1, 10).tolist())
    assert attacked.prior is not None
    assert "5 other texts" in attacked.public.source


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_lending_all_or_nothing_is_refused(share, vocabulary):
    view, truth = privatized_view(vocabulary, np.arange(20), eta=6.0)
    with pytest.raises(AuditError, match="lending must leave records"):
        lend_texts(view, truth, share=share, seed=0)


def pair_view(vocabulary, records=12):
    """First texts of even tokens and second texts of odd ones, each pair with a token of its own."""
    pairs = [([2 * i, 2 * i], [2 * i + 1] * (1 + i % 3)) for i in range(records)]
    return several_texts_view(vocabulary, pairs, parts=("first", "second"), eta=1000.0)


def test_a_part_of_a_file_of_pairs_has_both_texts_of_each_record(vocabulary):
    view, truth = pair_view(vocabulary)
    part, part_truth = sample_records(view, truth, tokens=20, seed=4)
    assert 20 <= len(part.observed) < 25
    assert (part.observed == part_truth.token_ids).all()
    expected = [token for i in part_truth.records for token in [2 * i] * 2 + [2 * i + 1] * (1 + i % 3)]
    assert part_truth.token_ids.tolist() == expected
    assert part.record_lengths.tolist() == [3 + i % 3 for i in part_truth.records]


def test_a_lent_record_is_lent_with_both_texts_and_attacked_in_neither(vocabulary):
    attacked, truth = lend_texts(*pair_view(vocabulary), share=0.5, seed=3)
    lent = [content.tolist() for content in attacked.public.contents]
    assert len(lent) == 12, "two texts of each of six records"
    assert {token // 2 for text in lent[::2] for token in text} == {token // 2 for text in lent[1::2] for token in text}
    assert all(len(set(text)) == 1 for text in lent), "no text runs over into the next"
    assert {token // 2 for text in lent for token in text}.isdisjoint((truth.token_ids // 2).tolist())
    assert "6 other records of the same file" in attacked.public.source


def test_which_records_are_lent_and_drawn_is_what_it_was_when_a_record_was_one_text(vocabulary):
    # Made with the version before records had several texts.
    view, truth = privatized_view(vocabulary, np.arange(200) % 30, eta=6.0)
    assert sample_records(view, truth, tokens=45, seed=1)[1].records.tolist() == [1, 7, 10, 16, 18]
    assert lend_texts(view, truth, share=0.7, seed=1)[1].records.tolist() == [0, 6, 9, 13, 14, 19]
