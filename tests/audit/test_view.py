"""What an attack may see: every text that was privatized, and no truth.

What an attacker is taken to know.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from audit_material import (
    file_of,
    privatized_view,
    public_of,
    scattered_vocabulary,
    several_texts_view,
    view_of,
    zipf_prior,
)
from rapt.audit.attacks import ATTACKS
from rapt.audit.attacks.desk import Desk
from rapt.audit.truth import Truth, match_truth
from rapt.audit.view import (
    AdversaryView,
    TokenPrior,
    adversary_view,
    make_prior_from_counts,
    make_uniform_prior,
    public_text,
    read_public_text,
)
from rapt.errors import AuditError, CorpusError
from rapt.wire.privatized_file import PrivatizedFile, count_privatized_tokens
from toy_vocabularies import toy_vocabulary, toy_word


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=30, dim=4)


def test_no_field_of_the_view_can_hold_a_truth():
    names = {field.name for field in dataclasses.fields(AdversaryView)}
    assert names == {"manifest", "records", "bundle", "prior", "public"}


def test_the_truth_does_not_show_in_a_repr():
    truth = Truth(token_ids=np.array([4711, 4712]))
    assert "4711" not in repr(truth)


def test_observed_tokens_are_the_records_one_after_another(vocabulary):
    view = adversary_view(file_of(vocabulary, [3, 4], [5]), vocabulary.bundle)
    assert view.observed.tolist() == [3, 4, 5]
    assert view.lengths.tolist() == [2, 1]


def test_another_vocabulary_is_refused(vocabulary):
    with pytest.raises(AuditError, match="the vocabulary must be the one"):
        adversary_view(file_of(vocabulary, [3]), scattered_vocabulary(size=30, dim=4, seed=9).bundle)


def test_a_file_without_tokens_is_refused(vocabulary):
    with pytest.raises(AuditError, match="tokens=0"):
        adversary_view(file_of(vocabulary), vocabulary.bundle)


def test_a_token_that_no_mechanism_puts_out_is_refused_by_its_place():
    vocabulary = toy_vocabulary(np.arange(5.0)[:, None], special=(2,))
    with pytest.raises(AuditError, match="got token 1 of 3"):
        adversary_view(file_of(vocabulary, [0, 2, 1]), vocabulary.bundle)


def test_a_prior_of_another_table_is_refused(vocabulary):
    with pytest.raises(AuditError, match="one probability for each of the 30 rows"):
        adversary_view(file_of(vocabulary, [3]), vocabulary.bundle, prior=zipf_prior(31))


# Attacks that train networks take seconds each; they get the same desk.
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if ATTACKS[n].fast else pytest.mark.slow) for n in ATTACKS])
def test_the_guesses_are_the_same_whatever_the_truth_is(vocabulary, name):
    tokens = np.random.default_rng(0).integers(0, 30, 200)
    public = public_of(np.random.default_rng(1).integers(0, 30, (40, 10)))
    view, _ = privatized_view(vocabulary, tokens, eta=6.0, public=public)
    before = ATTACKS[name].run(Desk(view, seed=1)).token_ids
    again, other = view_of(vocabulary, np.roll(tokens, 7), view.observed, eta=6.0, public=public)
    assert not np.array_equal(other.token_ids, tokens)
    assert np.array_equal(before, ATTACKS[name].run(Desk(again, seed=1)).token_ids)


RECORDS = (([1, 2], [3], [4, 5, 6]), ([7], [8, 9], [10]))
PARTS = [("first",), ("first", "second"), ("first", "target"), ("first", "second", "target")]


class FirstTextsOnly(AdversaryView):
    """The defect: what a view was that knew of one text a record."""

    @property
    def texts(self):
        return tuple(record.token_ids for record in self.records)


def assert_every_privatized_token_is_seen(view):
    assert len(view.observed) == sum(count_privatized_tokens(record, view.manifest) for record in view.records)


@pytest.mark.parametrize("parts", PARTS)
def test_every_text_that_was_privatized_is_seen_by_itself(vocabulary, parts):
    chosen = [[record[("first", "second", "target").index(part)] for part in parts] for record in RECORDS]
    view, truth = several_texts_view(vocabulary, chosen, parts=parts, eta=1000.0)
    assert truth.token_ids.tolist() == [token for record in chosen for text in record for token in text]
    assert (view.observed == truth.token_ids).all(), "at a huge eta tokens stay as they are, so this is the order"
    assert view.lengths.tolist() == [len(text) for record in chosen for text in record]
    assert view.record_lengths.tolist() == [sum(map(len, record)) for record in chosen]
    assert view.parts == parts
    assert_every_privatized_token_is_seen(view)


@pytest.mark.parametrize("parts", PARTS[1:])
def test_a_view_that_ignores_other_texts_is_caught(vocabulary, parts):
    records = [record[: len(parts)] for record in RECORDS]
    sound, _ = several_texts_view(vocabulary, records, parts=parts, eta=2.0)
    broken = FirstTextsOnly(manifest=sound.manifest, records=sound.records, bundle=sound.bundle)
    with pytest.raises(AssertionError):
        assert_every_privatized_token_is_seen(broken)
    firsts, *others = zip(*records, strict=True)
    with pytest.raises(ValueError, match="zip"):
        match_truth(broken, firsts, others=dict(zip(parts[1:], others, strict=True)))


def test_a_public_target_is_not_attacked(vocabulary):
    view, truth = several_texts_view(
        vocabulary, [(a, c) for a, _, c in RECORDS], parts=("first", "target"), eta=1000.0, public_targets=True
    )
    assert view.observed.tolist() == truth.token_ids.tolist() == [1, 2, 7]
    assert [record.target_ids for record in view.records] == [(4, 5, 6), (10,)]


def test_texts_that_the_manifest_does_not_name_are_refused_and_not_skipped(vocabulary):
    view, _ = several_texts_view(vocabulary, [r[:2] for r in RECORDS], parts=("first", "second"), eta=2.0)
    file = PrivatizedFile(manifest=replace(view.manifest, pairs=False), records=view.records)
    with pytest.raises(AuditError, match="must cover every token that went through the mechanism, got 3 of 6"):
        adversary_view(file, vocabulary.bundle)


@pytest.fixture(scope="module")
def bundle():
    return toy_vocabulary(np.arange(5.0)[:, None], special=(4,)).bundle


def test_a_uniform_prior_covers_the_eligible_tokens(bundle):
    assert make_uniform_prior(bundle).probabilities.tolist() == [0.25, 0.25, 0.25, 0.25, 0]


def test_counts_are_smoothed_by_the_share_of_new_types(bundle):
    prior = make_prior_from_counts(np.array([6, 2, 0, 0, 0]), bundle, source="x")
    # 2 types among 8 tokens: 2 / 10 is spread over 4 tokens, 8 / 10 follows the counts.
    assert prior.probabilities == pytest.approx([0.6 + 0.05, 0.2 + 0.05, 0.05, 0.05, 0])


def test_texts_are_counted_with_the_vocabulary(bundle):
    text = f"{toy_word(0)} {toy_word(1)} {toy_word(0)}"
    counted = public_text([text], bundle, source="x").prior(bundle).probabilities
    assert counted == pytest.approx(make_prior_from_counts(np.array([2, 1, 0, 0, 0]), bundle, source="x").probabilities)


def test_a_public_corpus_is_read_and_named(bundle, tmp_path):
    path = tmp_path / "public.csv"
    path.write_text(f"text\n{toy_word(3)}\n", encoding="utf-8")
    prior = read_public_text(path, bundle).prior(bundle)
    assert prior.probabilities.argmax() == 3
    assert "public.csv" in prior.source


@pytest.mark.parametrize("counts", [np.zeros(5, dtype=int), np.ones(4, dtype=int), np.array([1, -1, 0, 0, 0])])
def test_counts_of_nothing_or_of_another_table_are_refused(counts, bundle):
    with pytest.raises(AuditError, match="5 rows"):
        make_prior_from_counts(counts, bundle, source="x")


def test_a_missing_public_corpus_is_refused(bundle, tmp_path):
    with pytest.raises(CorpusError):
        read_public_text(tmp_path / "none.csv", bundle)


@pytest.mark.parametrize("values", [[0.5, 0.6], [1.5, -0.5], [np.nan, 1.0], [[1.0]]])
def test_what_is_not_a_distribution_is_refused(values):
    with pytest.raises(AuditError, match="adding up to 1"):
        TokenPrior(probabilities=np.array(values), source="x")
