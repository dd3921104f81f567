"""The truth that belongs to a view, and the plain text that does not."""

import json

import pytest

from audit_material import manifest_of, scattered_vocabulary, several_texts_view
from rapt.audit.matching import match_truth, read_truth
from rapt.audit.view import adversary_view
from rapt.errors import AuditError
from rapt.local.corpus import privatize_corpus
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.local.record_parts import PartColumns
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.privatized_file import PrivatizedFile, read_privatized_file
from rapt.wire.privatized_record import PrivatizedRecord
from toy_vocabularies import toy_word


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=30, dim=4)


def file_of(vocabulary, *records):
    manifest = manifest_of(vocabulary, eta=2.0, records=len(records), tokens=sum(map(len, records)))
    return PrivatizedFile(manifest=manifest, records=tuple(PrivatizedRecord(token_ids=tuple(r)) for r in records))


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
        (PartColumns(second="other"), PartColumns(), "has a second text; name its column with --text-column-2"),
        (BOTH, PartColumns(target="answer"), "has a second text; name its column with --text-column-2"),
        (BOTH, PartColumns(second="other"), "has a target; name its column with --target-column"),
        (PartColumns(), PartColumns(second="other"), "second texts are not in this file; leave out --text-column-2"),
        (PartColumns(), PartColumns(target="answer"), "targets are not in this file; leave out --target-column"),
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
