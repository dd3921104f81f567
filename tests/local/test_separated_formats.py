"""CSV and TSV as spreadsheets, pandas and old computers write them."""

import csv

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapt.errors import CorpusError, UsageError
from rapt.local.corpus import read_corpus

SECRET = "zanzibarsecret"
ROWS = [("good film", "yes"), ("bad, film", "no")]


def rows(path, **arguments):
    return [(record.text, record.label) for record in read_corpus(path, **arguments)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", "\ufefftext;label\r\ngood film;yes\r\nbad, film;no\r\n"),
        ("excel_sep.csv", "sep=;\r\ntext;label\r\ngood film;yes\r\nbad, film;no\r\n"),
        ("tabs.csv", "text\tlabel\ngood film\tyes\nbad, film\tno\n"),
        ("bars.csv", "text|label\ngood film|yes\nbad, film|no\n"),
        ("commas.tsv", 'text,label\ngood film,yes\n"bad, film",no\n'),
        ("quoted.csv", '"text";"label"\n"good film";"yes"\n"bad, film";"no"\n'),
        ("spaces.csv", 'text, label\ngood film, yes\n"bad, film", no\n'),
        ("mac.csv", 'text,label\rgood film,yes\r"bad, film",no\r'),
        ("mac.tsv", "text\tlabel\rgood film\tyes\rbad, film\tno"),
        ("mac.jsonl", '{"text":"good film","label":"yes"}\r{"text":"bad, film","label":"no"}\r'),
        ("pandas.tsv", 'text\tlabel\n"good film"\tyes\nbad, film\t"no"\n'),
    ],
)
def test_a_table_is_read_as_people_have_it(file, name, content):
    assert rows(file(name, content)) == ROWS


def test_a_separator_may_be_given(file):
    assert rows(file("a.csv", "text~label\ngood film~yes\nbad, film~no\n"), delimiter="~") == ROWS
    with pytest.raises(UsageError, match="a delimiter must be one character"):
        rows(file("a.csv", ""), delimiter="ab")
    with pytest.raises(UsageError, match="must be of csv or tsv, got jsonl"):
        rows(file("a.jsonl", "{}"), delimiter=";")


def test_a_comma_wins_where_both_separators_would_do(file):
    assert rows(file("a.csv", "text;x,text,label\na,good film,yes\n")) == [("good film", "yes")]


def test_columns_may_be_numbers_and_a_header_may_be_missing(file):
    headerless = file("a.csv", 'good film,yes\n"bad, film",no\n')
    assert rows(headerless, text_column="1", label_column="2", header=False) == ROWS
    headed = file("b.csv", 'x,y\ngood film,yes\n"bad, film",no\n')
    assert rows(headed, text_column="1", label_column="2") == ROWS
    named = file("c.csv", "2,1\nyes,good film\n")  # a name goes before a number
    assert rows(named, text_column="1", label_column="2") == [("good film", "yes")]
    for column in ("0", "3", "text"):
        with pytest.raises(CorpusError, match=r"got 2 columns without it; .* its number from 1 to 2"):
            rows(headerless, text_column=column, label_column=None, header=False)
    with pytest.raises(UsageError, match="different columns"):
        rows(headed, text_column="x", label_column="1")


@pytest.mark.parametrize("content", [f"my {SECRET},{SECRET}b\n", f"{SECRET},x\n", f"{SECRET}\n"])
def test_the_first_line_of_a_file_without_a_header_is_never_shown(file, content):
    with pytest.raises(CorpusError, match="its number from 1") as caught:
        rows(file("a.csv", content))
    assert SECRET not in str(caught.value)


def test_a_long_field_is_read_and_so_is_one_that_nobody_reads(file):
    long = "x" * 140_000
    assert rows(file("a.csv", f"text,label,more\ngood film,yes,{long}\n")) == [("good film", "yes")]
    assert rows(file("a.csv", f'text,label\n"{long}\n{long}",yes\n')) == [(f"{long}\n{long}", "yes")]


QUOTES = [
    ('text,label\nfine,yes\n"{}open,yes\n' + "more,no\n" * 20, "line 3 must close .* got the end of the file"),
    ('text,label\n"{}open,yes\nmore,no\n"fine",no\n', "line 2 must close .* got a quote in the middle of line 4"),
    ('text,label\n"two\nlines","{}open\nmore,no\n', "line 3 must close .* got the end of the file"),
    ('text,label\n"an ""odd"" {}",yes\n"odd" {},no\n', "line 3 must close .* in the middle of line 3"),
]


@pytest.mark.parametrize(("content", "message"), QUOTES, ids=range(len(QUOTES)))
def test_a_quote_that_is_not_closed_is_blamed_on_the_line_where_it_opens(file, content, message):
    with pytest.raises(CorpusError, match=message) as caught:
        rows(file("a.csv", content.format(*[SECRET] * 2)))
    assert SECRET not in str(caught.value)


def test_an_open_quote_does_not_read_the_whole_of_a_large_file(file):
    path = file("a.csv", 'text,label\n"open,yes\n' + ("more " * 1_000 + ",no\n") * 5_000)  # 25 MB
    with pytest.raises(CorpusError, match=r"line 2 must close .* got too much text"):
        rows(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('text\tlabel\n"good film"\tyes\nan "odd" one\tno\n', '"good film"'),
        ('text\tlabel\n"good film\tyes\nfine\tno\n', '"good film'),
        ('text\tlabel\n"he said ""hi"""\tyes\nfine\tno\n', 'he said "hi"'),
        ('text\tlabel\n"a\ttab"\tyes\nfine\tno\n', "a\ttab"),
        ('text\tlabel\n"two\nlines"\tyes\nfine\tno\n', "two\nlines"),
    ],
)
def test_quotes_in_tsv_enclose_fields_only_where_all_of_them_do(file, content, text):
    assert rows(file("a.tsv", content))[0][0] == text


FIELD = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=5), st.sampled_from(",;|\t"))
def test_what_the_csv_module_writes_is_what_is_read(tmp_path, fields, separator):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["text", "other"])
        writer.writerows(fields)
    assert [text for text, _ in rows(path, label_column=None)] == [text for text, _ in fields]
