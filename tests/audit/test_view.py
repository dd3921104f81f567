"""What an attack may see, and what the truth must match."""

import dataclasses
import inspect
import json

import numpy as np
import pytest

from audit_material import manifest_of, privatized_view, public_of, scattered_vocabulary, view_of, zipf_prior
from rapt.audit.attacks import ATTACKS
from rapt.audit.attacks.desk import Desk
from rapt.audit.view import (
    AdversaryView,
    Truth,
    adversary_view,
    lend_texts,
    match_truth,
    read_truth,
    sample_records,
)
from rapt.errors import AuditError
from rapt.local.corpus import privatize_corpus
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.privatized_file import PrivatizedFile, read_privatized_file
from rapt.wire.privatized_record import PrivatizedRecord
from toy_vocabularies import toy_vocabulary, toy_word


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=30, dim=4)


def file_of(vocabulary, *records):
    manifest = manifest_of(vocabulary, eta=2.0, records=len(records), tokens=sum(map(len, records)))
    return PrivatizedFile(manifest=manifest, records=tuple(PrivatizedRecord(token_ids=tuple(r)) for r in records))


def test_no_field_of_the_view_can_hold_a_truth():
    names = {field.name for field in dataclasses.fields(AdversaryView)}
    assert names == {"manifest", "records", "bundle", "prior", "public"}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_a_desk_and_nothing_that_could_be_a_truth(name):
    parameters = inspect.signature(ATTACKS[name].run).parameters
    assert list(parameters) == ["desk", "on_progress"]


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


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([[1, 2]], "got 1 records for 2"),
        ([[1, 2], [3], [4]], "got 3 records for 2"),
        ([[1, 2], [3, 4]], "got 2 tokens for 1 in record 1"),
        ([[1], [3]], "got 1 tokens for 2 in record 0"),
        ([[1, 2], [30]], "must have a row"),
    ],
)
def test_plain_text_of_another_file_is_refused(vocabulary, contents, message):
    view = adversary_view(file_of(vocabulary, [3, 4], [5]), vocabulary.bundle)
    with pytest.raises(AuditError, match=message):
        match_truth(view, contents)


def test_text_that_was_cut_matches_when_the_cut_is_named(vocabulary):
    view = adversary_view(file_of(vocabulary, [3, 4], [5]), vocabulary.bundle)
    assert match_truth(view, [[1, 2, 9], [3]], truncate_to=2).token_ids.tolist() == [1, 2, 3]


def write_corpus(path, texts, labels):
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def released(vocabulary, tmp_path):
    """A corpus and its privatized file."""
    texts = [" ".join(toy_word(i) for i in row) for row in ([1, 2, 3], [4, 5], [6])]
    source = write_corpus(tmp_path / "private.jsonl", texts, ["good", "bad", "good"])
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=2.0)
    privatizer = Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS)
    privatize_corpus(source, tmp_path / "out.jsonl", privatizer=privatizer, stream=insecure_stream(0))
    return source, adversary_view(read_privatized_file(tmp_path / "out.jsonl"), vocabulary.bundle), texts


def test_the_truth_is_read_from_the_corpus(released):
    source, view, _ = released
    assert read_truth(view, source).token_ids.tolist() == [1, 2, 3, 4, 5, 6]


def test_records_in_another_order_are_refused(released, tmp_path):
    _, view, texts = released
    other = write_corpus(tmp_path / "other.jsonl", [texts[2], texts[1], texts[0]], ["good", "bad", "good"])
    with pytest.raises(AuditError, match="tokens for 3 in record 0"):
        read_truth(view, other)


def test_other_labels_are_refused(released, tmp_path):
    _, view, texts = released
    other = write_corpus(tmp_path / "other.jsonl", texts, ["good", "good", "good"])
    with pytest.raises(AuditError, match="record 1 has another label"):
        read_truth(view, other)


def test_no_refusal_quotes_the_text(released, tmp_path):
    _, view, _ = released
    other = write_corpus(tmp_path / "other.jsonl", ["wbcd secret"] * 3, ["good", "bad", "good"])
    with pytest.raises(AuditError) as refusal:
        read_truth(view, other)
    assert "secret" not in str(refusal.value)


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


def test_the_guesses_are_the_same_whatever_the_truth_is(vocabulary):
    tokens = np.random.default_rng(0).integers(0, 30, 200)
    public = public_of(np.random.default_rng(1).integers(0, 30, (40, 10)))
    view, _ = privatized_view(vocabulary, tokens, eta=6.0, public=public)
    before = {name: ATTACKS[name].run(Desk(view, seed=1)).token_ids for name in ATTACKS}
    again, other = view_of(vocabulary, np.roll(tokens, 7), view.observed, eta=6.0, public=public)
    assert not np.array_equal(other.token_ids, tokens)
    for name in ATTACKS:
        assert np.array_equal(before[name], ATTACKS[name].run(Desk(again, seed=1)).token_ids)


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
