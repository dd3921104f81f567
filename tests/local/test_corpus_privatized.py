"""A corpus becomes a privatized file, whole or not at all."""

import json

import pytest

from harmless import SECRET, assert_harmless
from rapt.errors import CorpusError, RaptError, UsageError
from rapt.local.corpus import privatize_corpus, read_corpus
from rapt.local.randomness import insecure_stream
from rapt.wire.manifest import LabelPrivacy
from rapt.wire.privatized_file import read_privatized_file


def test_a_corpus_becomes_a_privatized_file(file, tmp_path, privatizer, bert_tiny):
    source = file("a.csv", "text,label\ngood film,yes\nbad film indeed,no\nfine,yes\n")
    seen = []
    manifest = privatize_corpus(
        source,
        tmp_path / "out.jsonl",
        privatizer=privatizer,
        stream=insecure_stream(2),
        on_progress=lambda records, tokens: seen.append((records, tokens)),
    )
    written = read_privatized_file(tmp_path / "out.jsonl")
    assert written.manifest == manifest
    assert (manifest.labels, manifest.records, manifest.tokens) == (("no", "yes"), 3, 6)
    assert manifest.randomness.insecure_seed == 2
    assert seen == [(3, 6)]
    assert [record.label for record in written.records] == [1, 0, 1]
    assert [bert_tiny.decode(record.token_ids) for record in written.records] == [
        "good film",
        "bad film indeed",
        "fine",
    ]
    assert source.read_text() == "text,label\ngood film,yes\nbad film indeed,no\nfine,yes\n"


def test_a_long_corpus_goes_by_chunks_in_order(file, tmp_path, privatizer, bert_tiny):
    words = bert_tiny.tokens(privatizer.plain_tokens.pool)
    texts = [words[i % 50] + " " + words[i % 49] for i in range(1_300)]
    source = file("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    seen = []
    privatize_corpus(
        source,
        tmp_path / "out.jsonl",
        privatizer=privatizer,
        label_column=None,
        stream=insecure_stream(2),
        on_progress=lambda records, tokens: seen.append((records, tokens)),
    )
    written = read_privatized_file(tmp_path / "out.jsonl")
    assert [bert_tiny.decode(record.token_ids) for record in written.records] == texts
    assert written.manifest.labels is None
    assert len(seen) > 1
    assert seen[-1] == (1_300, 2_600)


def test_labels_may_be_named_beforehand(file, tmp_path, privatizer):
    source = file("a.csv", "text,label\ngood,yes\n")
    manifest = privatize_corpus(
        source, tmp_path / "out.jsonl", privatizer=privatizer, labels=("yes", "no"), stream=insecure_stream(2)
    )
    assert manifest.labels == ("yes", "no")
    assert read_privatized_file(tmp_path / "out.jsonl").records[0].label == 0


def test_a_label_that_was_not_named_is_refused_by_its_position(file, tmp_path, privatizer):
    source = file("a.csv", f"text,label\ngood,yes\nbad,{SECRET}\n")
    with pytest.raises(CorpusError, match="line 3 must have one of the 2 labels that were named") as caught:
        privatize_corpus(
            source, tmp_path / "out.jsonl", privatizer=privatizer, labels=("yes", "no"), stream=insecure_stream(2)
        )
    assert_harmless(caught)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ("a",), "label_column": None}, "labels must come with the column"),
        ({"labels": ("a", "a")}, "labels must differ"),
    ],
)
def test_labels_that_cannot_be_are_refused(file, tmp_path, privatizer, arguments, message):
    source = file("a.csv", "text,label\ngood,a\n")
    with pytest.raises(UsageError, match=message):
        privatize_corpus(source, tmp_path / "out", privatizer=privatizer, stream=insecure_stream(2), **arguments)


def test_the_source_is_never_overwritten(file, tmp_path, privatizer):
    content = "text,label\ngood,yes\n"
    source = file("a.csv", content)
    partial = file("b.csv.partial", content)
    (tmp_path / "link.csv").symlink_to(source)
    for taken, target in ((source, source), (source, tmp_path / "link.csv"), (partial, tmp_path / "b.csv")):
        with pytest.raises(UsageError, match=r"the output must be (another file than the source|a regular file)"):
            privatize_corpus(taken, target, privatizer=privatizer, file_format="csv", stream=insecure_stream(2))
    assert source.read_text() == partial.read_text() == content


def test_an_earlier_output_stays_when_a_run_fails(file, tmp_path, privatizer):
    target = tmp_path / "out.jsonl"
    privatize_corpus(file("a.csv", "text,label\ngood,1\n"), target, privatizer=privatizer, stream=insecure_stream(2))
    before = target.read_bytes()
    with pytest.raises(RaptError):
        privatize_corpus(
            file("b.csv", "text,label\nok,1\n,1\n"), target, privatizer=privatizer, stream=insecure_stream(2)
        )
    assert target.read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused(file, tmp_path, privatizer):
    source = file("a.csv", "text,label\ngood,1\n")
    with pytest.raises(CorpusError, match="the output must be writable"):
        privatize_corpus(source, tmp_path / "none" / "out", privatizer=privatizer, stream=insecure_stream(2))


def test_a_stopped_run_leaves_nothing(file, tmp_path, privatizer):
    def stop(records, tokens):
        raise KeyboardInterrupt

    source = file("a.csv", "text,label\ngood,1\n")
    with pytest.raises(KeyboardInterrupt):
        privatize_corpus(source, tmp_path / "out", privatizer=privatizer, stream=insecure_stream(2), on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def many(file, *, count=400):
    return file("many.csv", "text,label\n" + "".join(f"good film,{'yes' if i % 4 else 'no'}\n" for i in range(count)))


def test_labels_are_randomized_when_asked_and_the_manifest_says_so(file, tmp_path, privatizer):
    source, target = many(file), tmp_path / "out"
    hidden = LabelPrivacy(epsilon=1.0)
    settings = {"label_privacy": hidden, "labels": ("no", "yes"), "stream": insecure_stream(4)}
    manifest = privatize_corpus(source, target, privatizer=privatizer, **settings)
    written = read_privatized_file(target)
    assert manifest.label_privacy == written.manifest.label_privacy == hidden
    changed = sum(record.label != min(i % 4, 1) for i, record in enumerate(written.records))
    # 27 % of 400 on average; outside of 60 to 160 less than once in a million runs.
    assert 60 < changed < 160


def test_labels_are_the_true_ones_otherwise(file, tmp_path, privatizer):
    manifest = privatize_corpus(many(file, count=8), tmp_path / "out", privatizer=privatizer, stream=insecure_stream(4))
    assert manifest.label_privacy is None
    assert [record.label for record in read_privatized_file(tmp_path / "out").records] == [0, 1, 1, 1] * 2


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("text,label\ngood film,yes\n", {"labels": ["yes"]}, "at least 2 different ones, got classes=1"),
        ("text,label\ngood film,yes\nbad film,no\n", {}, "which of them occur in the file is private too"),
        ("text,label\ngood film,yes\n", {"label_column": None}, "labels must come with the column"),
    ],
)
def test_labels_that_cannot_be_randomized_are_refused(file, tmp_path, privatizer, content, arguments, message):
    with pytest.raises(UsageError, match=message):
        privatize_corpus(
            file("a.csv", content),
            tmp_path / "out",
            privatizer=privatizer,
            label_privacy=LabelPrivacy(epsilon=1.0),
            stream=insecure_stream(4),
            **arguments,
        )
    assert list(tmp_path.glob("out*")) == []


def test_an_error_names_only_options_that_the_command_has(file, privatizer, tmp_path):
    def refusals(name, content):
        source = file(name, content)
        with pytest.raises(CorpusError) as read:
            list(read_corpus(source, label_column=None))
        with pytest.raises(CorpusError) as privatized:
            privatize_corpus(source, tmp_path / "out", privatizer=privatizer, stream=insecure_stream(1))
        return str(read.value), str(privatized.value)

    for content, option in (("a,b\n1,2\n", "`header=False`"), ("a~b\n1~2\n", "`delimiter`")):
        read, privatized = refusals("a.csv", content)
        assert (option in read, option in privatized) == (False, True)
        assert "a line of names" in read
    read, privatized = refusals("a.jsonl", '{"messages": []}\n')
    assert ("target column" in read, "target column" in privatized) == (False, True)
    assert "name messages to take each message for a text" in read


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_of_somebody_else_under_the_name_of_the_work_is_named(file, privatizer, tmp_path, resume):
    source, partial = file("a.csv", "text,label\ngood film,yes\nbad film,no\n"), file("out.partial", "somebody's\n")
    with pytest.raises(UsageError, match=r"out\.partial' must be free for the work"):
        privatize_corpus(
            source, tmp_path / "out", privatizer=privatizer, stream=insecure_stream(1), resume=resume, overwrite=True
        )
    assert partial.read_text() == "somebody's\n"
    partial.write_text('{"schema":"rapt.privatized/1", damaged\n')
    with pytest.raises(RaptError, match=r"out\.partial'" if resume else "manifest|unfinished"):
        privatize_corpus(source, tmp_path / "out", privatizer=privatizer, stream=insecure_stream(1), resume=True)
