"""The pass over a source before anything is drawn: all faults at once, labels that are classes, unknown words."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapt.errors import BudgetError, CorpusError, UsageError
from rapt.local.corpus import privatize_corpus, read_corpus
from rapt.local.ledger import open_ledger
from rapt.local.ledger_file import Cap, Caps
from rapt.local.ledger_report import summarize_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream, secure_stream
from rapt.local.records import PartColumns
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.privatized_file import read_privatized_file
from toy_vocabularies import toy_vocabulary, toy_word

SECRET = "zanzibarsecret"


@pytest.fixture(scope="module")
def privatizer(bert_tiny):
    return Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=30.0), NO_PLAIN_TOKENS)


@pytest.fixture
def run(tmp_path, privatizer):
    """Privatizes a file of this content; returns its manifest and what the check found."""

    def call(name, content, *, made=privatizer, **options):
        source = tmp_path / name
        if content is not None:
            source.write_text(content)
        checks = []
        manifest = privatize_corpus(
            source,
            tmp_path / "out",
            privatizer=made,
            on_checked=checks.append,
            **({"stream": insecure_stream(1)} | options),
        )
        return manifest, checks[0]

    return call


def test_all_faults_of_a_file_are_named_in_one_run(run):
    content = f"text,label\nfine,yes\n{SECRET}\n,yes\n{SECRET},\n\nfine,no,{SECRET}\n{'good ' * 600},no\n \t,no\n"
    with pytest.raises(CorpusError) as caught:
        run("a.csv", content)
    said = str(caught.value)
    assert said.split(" | ") == [
        "line 3 must have 2 fields like the first line, got 1; check its separators and quotes",
        "line 5 must have a label, got an empty one; label it or remove it",
        "line 6 must not be blank, because others follow; remove it",
        "line 7 must have 2 fields like the first line, got 3; check its separators and quotes",
        "line 4, line 9 must have at least one token, got an empty text; remove it",
        "line 8 must have at most 510 tokens beside 0 plain and 2 special ones, got 600; "
        "split it, or cut it there with `truncate_to=510`",
    ]


def test_ten_faults_are_named_and_the_others_counted(run):
    with pytest.raises(CorpusError, match=r"^2500 records must be mended, the first 10 are these ") as caught:
        run("a.jsonl", "".join(json.dumps({"text": SECRET, "label": None}) + "\n" for _ in range(2_500)))
    assert "line 9, line 10 must have a name or a whole number in 'label', got null" in str(caught.value)
    assert "line 11" not in str(caught.value)


def test_what_ends_a_pass_comes_after_the_faults_before_it(run):
    with pytest.raises(CorpusError, match=r"^line 2 must have a label, .* \| line 3 must close the quote"):
        run("a.csv", 'text,label\nfine,\n"open,yes\n')


def test_a_line_that_is_not_utf8_is_one_fault_among_others(run, tmp_path):
    # What is left of some such lines has no token, no label, or other fields: that is no second fault.
    (tmp_path / "a.csv").write_bytes(b'text,label\ncaf\xe9,yes\n,no\n\xef,no\n\xff,\n"fine\n\xff",yes\nfine\xff\n')
    with pytest.raises(CorpusError) as caught:
        run("a.csv", None)
    assert str(caught.value).split(" | ") == [
        "line 2, line 4, line 5, line 7, line 8 must be utf-8; convert the file, for instance with iconv",
        "line 3 must have at least one token, got an empty text; remove it",
    ]
    good, empty = b'{"text": "fine", "label": "yes"}\n', b'{"text": "", "label": "no"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + b'{"text": "\xff", "label": "yes"}\n{"text": \xff}\n' + empty)
    with pytest.raises(CorpusError, match=r"^line 2, line 3 must be utf-8; [^|]* \| line 4 must have at least one"):
        run("a.jsonl", None)


def test_nothing_is_paid_for_a_file_that_is_at_fault_at_its_end(run, tmp_path):
    path = tmp_path / "ledger"
    with open_ledger(path) as ledger, pytest.raises(CorpusError, match="line 1302"):
        run("a.csv", "text,label\n" + "good film,yes\n" * 1_300 + ",no\n", ledger=ledger)
    assert summarize_ledger(path).releases == 0


def test_a_cap_that_is_reached_in_the_middle_says_what_was_paid(run, tmp_path):
    path = tmp_path / "ledger"
    words = [
        f"{letter} {other} film" for letter in "abcdefghijklmnopqrstuvwxyz" for other in "abcdefghijklmnopqrstuvwxyz"
    ]
    with open_ledger(path) as ledger:
        ledger.set_caps(Caps(metric=Cap(in_all=30.0 * 3 * 600)))
        with pytest.raises(
            BudgetError,
            match=r"record 601 .*; the 512 records before it, 1536 tokens, are paid for and come at no cost",
        ):
            run(
                "a.csv",
                "text,label\n" + "".join(f"{text},yes\n" for text in words),
                ledger=ledger,
                stream=secure_stream(),
            )
    assert summarize_ledger(path).releases == 512


def test_every_text_of_a_record_is_checked_before_the_first_draw(tmp_path):
    vocabulary = toy_vocabulary(np.random.default_rng(1).standard_normal((50, 4)), max_tokens=16)
    privatizer = Privatizer(vocabulary, make_mechanism("laplace", vocabulary=vocabulary, eta=1.0), NO_PLAIN_TOKENS)
    word = toy_word(1)
    source = tmp_path / "a.csv"
    source.write_text(
        f"a,b,c\n{word},{word},{word}\n{word},,{word}\n{word},{word},\n{(word + ' ') * 9},{(word + ' ') * 9},x\n"
    )
    with pytest.raises(
        CorpusError,
        match=r"line 3, line 4 must have at least one token.* \| line 5 must have at most \d+ tokens in both",
    ):
        privatize_corpus(
            source,
            tmp_path / "out",
            privatizer=privatizer,
            text_column="a",
            label_column=None,
            other_texts=PartColumns(second="b", target="c"),
            stream=insecure_stream(1),
        )


# Labels


def test_labels_that_differ_by_spaces_are_one_class_and_that_is_said(run):
    manifest, check = run("a.csv", "text,label\nthe soup,bad\nnice,good \nok,good\nno,\u00a0bad\n")
    assert manifest.labels == ("bad", "good")
    assert check.remarks == ["2 labels had spaces around them, which are left out"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["4.5", "10", "0.5"], ("0.5", "4.5", "10")),
        (["10", "9", "many"], ("10", "9", "many")),
        (["1", "01"], ("01", "1")),
        (["²", "10"], ("10", "²")),
    ],
)
def test_labels_are_sorted_as_numbers_where_all_of_them_are(run, labels, expected):
    assert run("a.csv", "text,label\n" + "".join(f"fine,{name}\n" for name in labels))[0].labels == expected


def test_a_label_of_its_own_in_every_row_is_refused_unless_somebody_insists(run):
    content = "text,label\n" + "".join(f"w,patient {i} {SECRET}\n" for i in range(50))
    with pytest.raises(
        CorpusError, match=r"must be classes .* got 50 different ones in 50 records; .* \(`public_labels=True`\)"
    ) as e:
        run("a.csv", content)
    assert SECRET not in str(e.value)
    assert len(run("a.csv", content, public_labels=True)[0].labels or ()) == 50
    with pytest.raises(CorpusError, match="got 5 different ones in 5 records"):
        run("short.csv", "\n".join(content.splitlines()[:6]) + "\n", overwrite=True)
    assert (
        len(run("a.csv", content * 1, labels=[f"patient {i} {SECRET}" for i in range(50)], overwrite=True)[0].labels)
        == 50
    )


@pytest.mark.parametrize(
    ("classes", "records", "refused"), [(3, 3, False), (4, 4, True), (20, 40, False), (21, 40, True)]
)
def test_labels_are_classes_when_they_come_twice_or_are_few(run, classes, records, refused):
    content = "text,label\n" + "".join(f"fine,c{i % classes}\n" for i in range(records))
    if not refused:
        assert len(run("a.csv", content)[0].labels) == classes
        return
    with pytest.raises(CorpusError, match="must be classes of several records"):
        run("a.csv", content)


def test_many_or_long_labels_are_taken_where_somebody_says_that_they_are_public(run):
    content = "text,label\n" + "".join(f"w,{'long ' * 15}{i % 300}\n" for i in range(900))
    with pytest.raises(CorpusError, match="at most 256 names of at most 64 characters"):
        run("a.csv", content)
    assert len(run("a.csv", content, public_labels=True)[0].labels) == 300


@pytest.mark.parametrize("label", ["b\\ud83dad", "\\udc00"])
def test_a_lone_surrogate_in_a_label_is_refused_by_its_position(run, tmp_path, label):
    with pytest.raises(CorpusError, match="line 2 must have a label of valid unicode, got a lone surrogate"):
        run("a.jsonl", f'{{"text":"fine","label":"x"}}\n{{"text":"fine","label":"{label}"}}\n')
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("ab", "must be a list of names"),
        (["a", 1], "must be a list of names"),
        (["a", " b"], "without spaces"),
        (["a", ""], "without spaces"),
        (["a", "b\ud800"], "valid unicode"),
        (["a", "a"], "must differ"),
    ],
)
def test_names_that_can_be_no_labels_are_refused(run, labels, message):
    with pytest.raises(UsageError, match=message):
        run("a.csv", "text,label\nfine,a\n", labels=labels)


FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["zero", "Some", "all"], "_type": "ClassLabel"},
}


def class_labels(folder, form, labels):
    table = pa.table({"text": ["good film"] * len(labels), "label": labels})
    described = json.dumps({"info": {"features": FEATURES}})
    if form == "parquet":
        pq.write_table(table.replace_schema_metadata({"huggingface": described}), folder / "a.parquet")
        return "a.parquet"
    kept = table.replace_schema_metadata({"huggingface": described}) if form == "arrow" else table
    (folder / "saved").mkdir()
    with pa.ipc.new_stream(folder / "saved" / "data.arrow", kept.schema) as writer:
        writer.write_table(kept)
    (folder / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    if form == "folder":
        (folder / "saved" / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return "saved"


@pytest.mark.parametrize("form", ["parquet", "arrow", "folder"])
def test_the_names_of_class_labels_are_used_in_their_order(run, tmp_path, form):
    name = class_labels(tmp_path, form, [2, 0, 2])
    assert [record.label for record in read_corpus(tmp_path / name)] == ["all", "zero", "all"]
    manifest, _ = run(name, None)
    assert manifest.labels == ("zero", "Some", "all")
    assert [record.label for record in read_privatized_file(tmp_path / "out").records] == [2, 0, 2]


def test_a_class_that_is_not_there_is_named_by_its_record(run, tmp_path):
    with pytest.raises(CorpusError, match="record 2, record 3 must have one of the 3 classes as its label"):
        run(class_labels(tmp_path, "parquet", [1, -1, 3]), None)


# What else there is to say


@pytest.mark.parametrize(
    ("name", "content", "remark"),
    [
        (
            "a.csv",
            "text;label\nfine;yes\n",
            "fields are taken to have a semicolon between them; `delimiter` says otherwise",
        ),
        (
            "a.csv",
            "text\tlabel\nfine\tyes\n",
            "fields are taken to have a tab between them; `delimiter` says otherwise",
        ),
        ("a.tsv", 'text\tlabel\n"fine"\tyes\n', "quotes are taken to enclose fields, as all of them fit"),
        (
            "a.tsv",
            'text\tlabel\nso "fine"\tyes\n',
            "quotes are taken to be letters, because not all of them enclose fields",
        ),
        ("a.csv", "text,label\nfine,yes\n", None),
    ],
)
def test_what_was_guessed_is_said(run, name, content, remark):
    assert run(name, content)[1].remarks == ([] if remark is None else [remark])


def test_unknown_words_are_counted(run):
    _, check = run("a.csv", "text,label\n\U0001f600 \U0001f602 fine,yes\n\U0001f621\U0001f621,no\n")
    assert (check.records, check.tokens, check.unknown_tokens) == (2, 4, 3)
    assert check.remarks == ["3 of 4 tokens are words that the vocabulary does not know: they become one unknown token"]


@pytest.mark.parametrize(
    "field", ["NaN", "-Infinity", '{"a":1,"a":2}', "1" * 5_000, "[" * 500 + "]" * 500, '"\\ud800"']
)
def test_a_json_field_that_nobody_reads_may_be_anything(run, field):
    assert run("a.jsonl", f'{{"text":"fine","label":"yes","n":{field},"n":1}}\n')[0].records == 1


def test_an_existing_target_is_replaced_only_when_told(run, tmp_path):
    run("a.csv", "text,label\nfine,yes\n")
    before = (tmp_path / "out").read_bytes()
    with pytest.raises(UsageError, match="the output must not exist yet"):
        run("a.csv", "text,label\nfine,yes\n")
    assert (tmp_path / "out").read_bytes() == before
    assert run("a.csv", "text,label\nbad,no\n", overwrite=True)[0].labels == ("no",)


def test_paths_may_be_strings(tmp_path, privatizer):
    source = tmp_path / "a.csv"
    source.write_text("text,label\nfine,yes\n")
    assert [record.text for record in read_corpus(str(source))] == ["fine"]
    privatize_corpus(str(source), str(tmp_path / "out"), privatizer=privatizer, stream=insecure_stream(1))
    assert (tmp_path / "out").exists()
