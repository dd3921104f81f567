"""The truth that belongs to a view, and the plain text that does not.

Parts of a file: drawn, or lent to the attacker, in whole records.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from audit_material import file_of, privatized_view, scattered_vocabulary, several_texts_view, view_of
from rapt.audit.truth import lend_texts, match_truth, read_truth, sample_records
from rapt.audit.view import adversary_view
from rapt.errors import AuditError
from rapt.local.corpus import privatize_corpus
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.local.records import PartColumns
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.privatized_file import read_privatized_file
from toy_vocabularies import toy_word


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=30, dim=4)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([[1, 2]], "got 1 records for 2"),
        ([[1, 2], [3], [4]], "got 3 records for 2"),
        ([[1, 2], [3, 4]], "got 2 tokens for 1 in record 2"),
        ([[1], [3]], "got 1 tokens for 2 in record 1"),
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
    with pytest.raises(AuditError, match="tokens for 3 in record 1"):
        read_truth(view, other)


def test_other_labels_are_refused(released, tmp_path):
    _, view, texts = released
    other = write_corpus(tmp_path / "other.jsonl", texts, ["good", "good", "good"])
    with pytest.raises(AuditError, match="record 2 has another label"):
        read_truth(view, other)


def test_no_refusal_quotes_the_text(released, tmp_path):
    _, view, _ = released
    other = write_corpus(tmp_path / "other.jsonl", ["wbcd secret"] * 3, ["good", "bad", "good"])
    with pytest.raises(AuditError) as refusal:
        read_truth(view, other)
    assert "secret" not in str(refusal.value)


def words(*numbers):
    return " ".join(map(toy_word, numbers))


COLUMNS = {"text": [words(1, 2, 3), words(4, 5), words(6)], "other": [words(7), words(8, 9), words(10, 11)]}
COLUMNS["answer"] = [words(12, 13), words(14), words(15, 16, 17)]
PLAIN = {"text": [[1, 2, 3], [4, 5], [6]], "other": [[7], [8, 9], [10, 11]], "answer": [[12, 13], [14], [15, 16, 17]]}


def view_of_columns(vocabulary, folder, other_texts, *, truncate_to=None):
    """A corpus of records with several texts, and the view of its privatized file."""
    source = folder / "several.jsonl"
    rows = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in zip(*COLUMNS.values(), strict=True)]
    source.write_text("\n".join(rows) + "\n", encoding="utf-8")
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=2.0)
    privatize_corpus(
        source,
        folder / "several.out",
        privatizer=Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS, truncate_to=truncate_to),
        label_column=None,
        other_texts=other_texts,
        stream=insecure_stream(0),
    )
    return source, adversary_view(read_privatized_file(folder / "several.out"), vocabulary.bundle)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (PartColumns(second="other"), ("text", "other")),
        (PartColumns(target="answer"), ("text", "answer")),
        (PartColumns(second="other", target="answer"), ("text", "other", "answer")),
    ],
)
@pytest.mark.parametrize("truncate_to", [None, 2])
def test_the_truth_has_every_text_of_a_record(vocabulary, tmp_path, columns, expected, truncate_to):
    source, view = view_of_columns(vocabulary, tmp_path, columns, truncate_to=truncate_to)
    rows = zip(*(PLAIN[column] for column in expected), strict=True)
    flat = [token for row in rows for text in row for token in text[:truncate_to]]
    truth = read_truth(view, source, label_column=None, other_texts=columns, truncate_to=truncate_to)
    assert truth.token_ids.tolist() == flat
    assert len(view.observed) == len(flat) == view.manifest.tokens


BOTH = PartColumns(second="other", target="answer")


@pytest.mark.parametrize(
    ("sent", "given", "message"),
    [
        (PartColumns(second="other"), PartColumns(), "has a second text; name its column with `text_column_2`"),
        (BOTH, PartColumns(target="answer"), "has a second text; name its column with `text_column_2`"),
        (BOTH, PartColumns(second="other"), "has a target; name its column with `target_column`"),
        (PartColumns(), PartColumns(second="other"), "second texts are not in this file; leave out `text_column_2`"),
        (PartColumns(), PartColumns(target="answer"), "targets are not in this file; leave out `target_column`"),
        (PartColumns(target="answer", public_target=True), PartColumns(target="answer"), "targets are public"),
    ],
)
def test_texts_that_are_not_those_of_the_file_are_refused(vocabulary, tmp_path, sent, given, message):
    source, view = view_of_columns(vocabulary, tmp_path, sent)
    with pytest.raises(AuditError, match=message):
        read_truth(view, source, label_column=None, other_texts=given)


def test_a_wrong_column_is_found_in_the_text_where_it_does_not_fit(vocabulary, tmp_path):
    source, view = view_of_columns(vocabulary, tmp_path, PartColumns(second="other"))
    with pytest.raises(AuditError, match="got 2 tokens for 1 in the second text of record 1;"):
        read_truth(view, source, label_column=None, other_texts=PartColumns(second="answer"))


def test_each_text_must_be_there_for_every_record(vocabulary):
    view, _ = several_texts_view(vocabulary, [([1], [2]), ([3], [4])], parts=("first", "second"), eta=2.0)
    with pytest.raises(AuditError, match="got 1 records for 2 in the file"):
        match_truth(view, [[1], [3]], others={"second": [[2]]})


@pytest.fixture(scope="module")
def other_vocabulary():
    return scattered_vocabulary(size=30, dim=4)


def test_a_part_of_a_file_is_whole_records_with_their_own_truth(other_vocabulary):
    tokens = np.arange(200) % 30
    view, truth = view_of(other_vocabulary, tokens, (tokens + 1) % 30, eta=6.0)
    part, part_truth = sample_records(view, truth, tokens=55, seed=1)
    assert part.lengths.tolist() == [10] * 6
    assert np.array_equal((part_truth.token_ids + 1) % 30, part.observed)
    assert not np.array_equal(part.observed, view.observed[:60])


def test_a_part_as_large_as_the_file_is_the_file(other_vocabulary):
    view, truth = view_of(other_vocabulary, [1, 2], [3, 4], eta=6.0)
    assert sample_records(view, truth, tokens=2, seed=1) == (view, truth)


def test_lent_texts_are_true_ones_and_are_not_attacked(other_vocabulary):
    tokens = np.random.default_rng(0).integers(0, 30, 200)
    view, truth = privatized_view(other_vocabulary, tokens, eta=6.0)
    attacked, its_truth = lend_texts(view, truth, share=0.25, seed=3)
    lent = [content.tolist() for content in attacked.public.contents]
    kept = its_truth.token_ids.reshape(-1, 10).tolist()
    assert (len(lent), len(kept), len(attacked.records)) == (5, 15, 15)
    assert sorted(lent + kept) == sorted(tokens.reshape(-1, 10).tolist())
    assert attacked.prior is not None
    assert "5 other texts" in attacked.public.source


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_lending_all_or_nothing_is_refused(share, other_vocabulary):
    view, truth = privatized_view(other_vocabulary, np.arange(20), eta=6.0)
    with pytest.raises(AuditError, match="lending must leave records"):
        lend_texts(view, truth, share=share, seed=0)


def pair_view(other_vocabulary, records=12):
    """First texts of even tokens and second texts of odd ones, each pair with a token of its own."""
    pairs = [([2 * i, 2 * i], [2 * i + 1] * (1 + i % 3)) for i in range(records)]
    return several_texts_view(other_vocabulary, pairs, parts=("first", "second"), eta=1000.0)


def test_a_part_of_a_file_of_pairs_has_both_texts_of_each_record(other_vocabulary):
    view, truth = pair_view(other_vocabulary)
    part, part_truth = sample_records(view, truth, tokens=20, seed=4)
    assert 20 <= len(part.observed) < 25
    assert (part.observed == part_truth.token_ids).all()
    expected = [token for i in part_truth.records for token in [2 * i] * 2 + [2 * i + 1] * (1 + i % 3)]
    assert part_truth.token_ids.tolist() == expected
    assert part.record_lengths.tolist() == [3 + i % 3 for i in part_truth.records]


def test_a_lent_record_is_lent_with_both_texts_and_attacked_in_neither(other_vocabulary):
    attacked, truth = lend_texts(*pair_view(other_vocabulary), share=0.5, seed=3)
    lent = [content.tolist() for content in attacked.public.contents]
    assert len(lent) == 12, "two texts of each of six records"
    assert {token // 2 for text in lent[::2] for token in text} == {token // 2 for text in lent[1::2] for token in text}
    assert all(len(set(text)) == 1 for text in lent), "no text runs over into the next"
    assert {token // 2 for text in lent for token in text}.isdisjoint((truth.token_ids // 2).tolist())
    assert "6 other records of the same file" in attacked.public.source


def test_which_records_are_lent_and_drawn_is_what_it_was_when_a_record_was_one_text(other_vocabulary):
    # Made with the version before records had several texts.
    view, truth = privatized_view(other_vocabulary, np.arange(200) % 30, eta=6.0)
    assert sample_records(view, truth, tokens=45, seed=1)[1].records.tolist() == [1, 7, 10, 16, 18]
    assert lend_texts(view, truth, share=0.7, seed=1)[1].records.tolist() == [0, 6, 9, 13, 14, 19]
