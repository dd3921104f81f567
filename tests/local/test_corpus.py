"""The texts of a file: every format, every bad one, in one clear line that quotes nothing."""

import gzip
import os
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pyarrow
import pytest

from harmless import SECRET, assert_harmless
from rapt.errors import CorpusError, UsageError
from rapt.local.corpus import LabelledText, ReadingProgress, privatize_corpus, read_corpus
from rapt.local.randomness import insecure_stream


def rows(path, **arguments):
    return [(record.text, record.label) for record in read_corpus(path, **arguments)]


GOOD = [("good film", "yes"), ("bad, film", "no")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\ngood film,yes\n"bad, film",no\n'),
        ("a.csv", 'label,other,text\r\nyes,1,good film\r\nno,2,"bad, film"\r\n\r\n\n'),
        ("a.CSV", '\ufefftext,label\ngood film,yes\n"bad, film",no'),
        ("a.tsv", "text\tlabel\ngood film\tyes\nbad, film\tno\n"),
        ("a.tsv", "\ufefflabel\ttext\r\nyes\tgood film\r\nno\tbad, film\r\n\r\n"),
        ("a.jsonl", '{"text": "good film", "label": "yes"}\n{"label": "no", "n": [1], "text": "bad, film"}\n\n'),
        ("a.jsonl", '\ufeff{"text": "good film", "label": "yes"}\r\n{"label": "no", "text": "bad, film"}'),
    ],
)
def test_every_format_gives_the_same_records(file, name, content):
    assert rows(file(name, content)) == GOOD


LINES = {
    "csv": 'text,label\ngood film,yes\n"bad, film",no\n',
    "tsv": "text\tlabel\ngood film\tyes\nbad, film\tno",
    "ndjson": '{"text": "good film", "label": "yes"}\n{"label": "no", "text": "bad, film"}\n',
    "json": '[\n {"text": "good film", "label": "yes"},\n {"label": "no", "n": [1], "text": "bad, film"}]\n',
}


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", LINES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_compressed_files_and_those_of_old_windows_give_the_same_records(file, suffix, encoding, ends):
    letters = LINES[suffix].replace("\n", ends)
    content = ("\ufeff" * (encoding == "utf-16-be") + letters).encode(encoding)
    assert rows(file(f"a.{suffix}", content)) == GOOD
    assert rows(file(f"a.{suffix}.gz", gzip.compress(content))) == GOOD
    assert rows(file(f"a.{suffix}.zst", zstd(content))) == GOOD
    reading = ReadingProgress()
    list(read_corpus(file("b.csv.gz", gzip.compress(LINES["csv"].encode())), reading=reading))
    assert reading.share == 1.0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\n\ngood film,yes\n ,no\n\n\n,\nbad film,no\n\n"),
        (
            "a.jsonl",
            '\n{"text": null}\n{"text": "good film", "label": "yes"}\n{"text": " ", "label": "no"}\n\n\n'
            '{"text": "bad film", "label": "no"}\n\n',
        ),
    ],
)
def test_records_without_a_text_are_passed_over_and_counted_where_that_is_asked_for(
    file, tmp_path, privatizer, name, content
):
    source, checks = file(name, content), []
    arguments = {"privatizer": privatizer, "stream": insecure_stream(1), "on_checked": checks.append}
    with pytest.raises(CorpusError, match="must"):
        privatize_corpus(source, tmp_path / "out", **arguments)
    assert privatize_corpus(source, tmp_path / "out", skip_empty=True, **arguments).records == 2
    assert "5 records are skipped, because a text of theirs is empty" in checks[0].remarks


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\ngood film,yes\nbad film,no\n"),
        ("a.tsv", "\ufefftext\tlabel\ngood film\tyes\nbad 电影\tno"),
        ("a.jsonl", '{"text": "good film", "label": "yes"}\n{"label": "no", "text": "bad film"}\n\n'),
    ],
)
def test_who_shows_progress_learns_how_much_was_read(file, name, content):
    reading, shares = ReadingProgress(), []
    assert reading.share == 0.0
    for _ in read_corpus(file(name, content), reading=reading):
        shares.append(reading.share)
    assert 0 < shares[0] < shares[1] <= reading.share == 1.0
    assert reading.total == len(content.encode())


@pytest.mark.parametrize(
    ("name", "first"), [("a.csv", "text,label\n"), ("a.tsv", "text\tlabel\n"), ("a.jsonl", '{"text": "good"}\n')]
)
def test_an_enormous_line_is_refused_before_it_fills_the_memory(file, name, first):
    path = file(name, first)
    with path.open("ab") as stream:  # half a gigabyte of nothing, which takes no room on the disk
        stream.write(SECRET.encode())
        stream.truncate(2**29)
    tracemalloc.start()
    try:
        with pytest.raises(CorpusError, match="line 2 must be at most 16777216 bytes") as caught:
            rows(path, label_column=None)
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**24
    finally:
        tracemalloc.stop()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "first", "line"),
    [
        ("a.csv", "text,label\n", '"good, film {}",1\n'),
        ("a.tsv", "text\tlabel\n", "good film {}\t1\n"),
        ("a.jsonl", "", '{{"text": "good film {}", "label": 1}}\n'),
        ("a.json", '[{"text": "", "label": 1}\n', ', {{"text": "good film {}", "label": 1}}\n'),
    ],
)
def test_reading_takes_no_more_memory_for_a_longer_file(file, name, first, line):
    end = "]" if first.startswith("[") else ""
    content = first + "".join(line.format("word " * 50 + str(i)) for i in range(20_000)) + end  # 5 MB
    for path in (file(name, content), file(f"{name}.zst", zstd(content.encode()))):
        tracemalloc.start()
        try:
            count = sum(1 for _ in read_corpus(path))
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
        assert count == 20_000 + bool(end)


def test_columns_and_format_are_arguments(file):
    path = file("data.txt", "sentence\tclass\ngood film\t1\n")
    assert rows(path, text_column="sentence", label_column="class", file_format="tsv") == [("good film", "1")]
    assert rows(path, text_column="sentence", label_column=None, file_format="tsv") == [("good film", None)]


def test_a_quote_in_tsv_is_a_letter(file):
    assert rows(file("a.tsv", 'text\tlabel\nan "odd one\t1\n')) == [('an "odd one', "1")]


def test_a_csv_field_may_span_lines(file):
    assert rows(file("a.csv", 'text,label\n"two\nlines ""quoted""",1\n')) == [('two\nlines "quoted"', "1")]


def test_a_json_label_may_be_a_whole_number(file):
    assert rows(file("a.jsonl", '{"text": "good", "label": 1}\n')) == [("good", "1")]


def test_any_unicode_survives(file):
    text = "naïve 你好 שלום 🎉 \u2028 end"
    assert rows(file("a.csv", f"text,label\n{text},1\n")) == [(text, "1")]
    assert rows(file("a.tsv", f"text\tlabel\n{text}\t1\n")) == [(text, "1")]


def test_a_file_is_read_as_it_is_asked_for(file):
    path = file("a.jsonl", '{"text": "good", "label": 1}\n' * 3 + "damaged\n")
    records = read_corpus(path)
    assert [next(records).text for _ in range(3)] == ["good"] * 3
    with pytest.raises(CorpusError, match="line 4"):
        next(records)


def test_a_record_shows_no_text():
    assert repr(LabelledText(text=SECRET, label=SECRET)) == "LabelledText()"


BAD = [
    ("empty.csv", "", "the first line must name the columns"),
    ("empty.tsv", "", "the first line must name the columns"),
    ("empty.jsonl", "", "at least one record"),
    ("header.csv", "text,label\n", "at least one record, got records=0"),
    (
        "column.csv",
        f"sentence,label\n{SECRET},1\n",
        r"'text' among them, got 2 columns without it; name the right column, or give its number from 1 to 2",
    ),
    ("column.tsv", f"Tweet Text\tlabel\n{SECRET}\t1\n", r"'text' among them, got 2 columns without it"),
    (
        "no_header.csv",
        f"my {SECRET} is this,1\n{SECRET},0\n",
        r"got 2 columns without it; .* and `header=False` if the first line is a record already",
    ),
    ("no_header.tsv", f"i met {SECRET}\t1\n", r"got 2 columns without it; .* and `header=False` if"),
    ("column.jsonl", f'{{"sentence": "{SECRET}", "label": 1}}\n', "line 1 must have a text in 'text', got nothing"),
    ("twice.csv", f"text,text,label\n{SECRET},b,1\n", "column 'text' must stand once in the header, got it 2 times"),
    ("ragged.csv", f"text,label\nfine,1\n{SECRET}\n", "line 3 must have 2 fields like the first line, got 1"),
    ("ragged.tsv", f"text\tlabel\nfine\t1\n{SECRET}\t1\t2\n", "line 3 must have 2 fields like the first line, got 3"),
    ("blank.csv", f"text,label\nfine,1\n\n{SECRET},1\n", "line 3 must not be blank"),
    ("blank.tsv", f"text\tlabel\nfine\t1\n\n{SECRET}\t1\n", "line 3 must not be blank"),
    ("blank.jsonl", f'{{"text": "a", "label": 1}}\n\n{{"text": "{SECRET}", "label": 1}}\n', "line 2 must not be blank"),
    (
        "quote.csv",
        f'text,label\n"{SECRET},1\nother,0\n',
        "line 2 must close the quote that opens there at the end of its field, got the end of the file",
    ),
    (
        "stray.csv",
        f'text,label\n"{SECRET}" end,1\n',
        "line 2 must close the quote that opens there .* got a quote in the middle of line 2",
    ),
    ("huge.csv", f"text,label\n{'good ' * 40_000},{SECRET}\n", "line 2 must have at most 507 tokens .* got 40000"),
    ("latin.csv", f"text,label\nfine,1\n{SECRET} caf\xe9,1\n".encode("latin-1"), "line 3 must be utf-8"),
    ("utf32.csv", f"text,label\n{SECRET},1\n".encode("utf-32"), "line 1 must be utf-8"),
    ("utf16.csv", f"text,label\n{SECRET},1\n".encode("utf-16")[:-1], "a corpus in utf-16 must be whole"),
    ("cut.csv.gz", gzip.compress(f"text,label\n{SECRET},1\n".encode())[:-9], "a compressed corpus must be whole"),
    ("not.csv.gz", b"\x1f\x8b" + SECRET.encode(), "a compressed corpus must be whole"),
    ("cut.tsv", f"text\tlabel\n{SECRET} caf\xe9".encode()[:-1], "line 2 must be utf-8"),
    ("json.jsonl", f'{{"text": "{SECRET}"\n', "line 1 must be one JSON object"),
    ("list.jsonl", f'["{SECRET}"]\n', "record 1 must be an object, got a text"),
    ("cut.csv.zst", zstd(f"text,label\n{SECRET},1\n".encode())[:-2], "a compressed corpus must be whole"),
    ("not.csv.zst", b"\x28\xb5\x2f\xfd" + SECRET.encode(), "a compressed corpus must be whole"),
    ("keys.jsonl", f'{{"text": "{SECRET}", "text": "b", "label": 1}}\n', "line 1 must have the field 'text' once"),
    ("number.jsonl", f'{{"text": 3, "label": "{SECRET}"}}\n', "line 1 must have a text in 'text', got a whole number"),
    ("null.jsonl", f'{{"text": null, "label": "{SECRET}"}}\n', "line 1 must have a text in 'text', got null"),
    (
        "label.jsonl",
        f'{{"text": "{SECRET}", "label": 0.5}}\n',
        "a name or a whole number in 'label', got a number that is not whole",
    ),
    (
        "bool.jsonl",
        f'{{"text": "{SECRET}", "label": true}}\n',
        "a name or a whole number in 'label', got true or false",
    ),
    ("unlabelled.jsonl", f'{{"text": "{SECRET}"}}\n', "a name or a whole number in 'label', got nothing"),
    ("no_label.csv", f"text,label\n{SECRET},\n", "line 2 must have a label, got an empty one"),
    ("nothing.csv", "text,label\nfine,1\n,1\n", "line 3 must have at least one token, got an empty text"),
    ("long.csv", f"text,label\n{(SECRET + ' ') * 600},1\n", "line 2 must have at most 507 tokens"),
    ("surrogate.jsonl", f'{{"text": "{SECRET} \\ud800", "label": 1}}\n', "line 1 must be valid unicode"),
    ("labels.csv", "text,label\n" + "".join(f"a,{SECRET}{i}\n" for i in range(300)), "at most 256 names"),
    ("long_label.csv", f"text,label\na,{SECRET * 6}\n", "at most 64 characters, got more by line 2"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_is_one_clear_line_without_the_text_and_leaves_nothing(
    file, tmp_path, privatizer, name, content, message
):
    source = file(name, content)
    with pytest.raises(CorpusError, match=message) as caught:
        privatize_corpus(source, tmp_path / "out.jsonl", privatizer=privatizer, stream=insecure_stream(2))
    assert_harmless(caught)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["huge.csv", "ragged.tsv", "number.jsonl", "labels.csv", "long.csv"])
def test_an_error_leaves_no_file_open_though_it_is_kept(file, tmp_path, privatizer, name):
    content = next(content for case, content, _ in BAD if case == name)
    source = file(name, content)
    with pytest.raises(CorpusError) as kept:
        privatize_corpus(source, tmp_path / "out.jsonl", privatizer=privatizer, stream=insecure_stream(2))
    assert str(source) not in open_files()
    del kept


def open_files():
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself is closed by now
            found.add(os.readlink(descriptor))
    return found


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="a corpus must be readable, got No such file or directory"):
        rows(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(CorpusError, match="must be a regular file"):
        rows(tmp_path / "folder.csv")


def test_an_unknown_format_is_refused(file):
    with pytest.raises(UsageError, match=r"one of csv, tsv, jsonl, parquet, dataset, got 'xlsx'"):
        rows(file("a.xlsx", "text,label\na,1\n"))


def test_the_text_cannot_be_its_own_label(file):
    with pytest.raises(UsageError, match="different columns"):
        rows(file("a.csv", "text\na\n"), text_column="text", label_column="text")
