"""`rapt privatize` from the shell's side: what it writes, what it refuses, and that no text ever shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rapt.local.mechanisms import MECHANISMS
from rapt.wire.manifest import LabelPrivacy
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS
from rapt.wire.privatized_file import read_privatized_file

TINY = ("--vocabulary", "few-words")


def test_a_file_becomes_a_privatized_file(rapt, reviews: Path, tmp_path: Path, never_shows):
    target = tmp_path / "reviews.rapt.jsonl"
    outcome = rapt("privatize", reviews, target, "--eta", 20, *TINY, "--keep-order")
    assert outcome.code == 0
    assert outcome.out == f"{target}\n"
    never_shows(outcome.out + outcome.err + target.read_text())
    # A log may keep stderr: no name that the user chose stands there.
    assert not [name for name in (str(tmp_path), target.name, reviews.name, "positive") if name in outcome.err]
    file = read_privatized_file(target)
    assert file.manifest.labels == ("negative", "positive")
    assert [record.label for record in file.records] == [1, 0, 0, 1, 0, 1]
    assert file.manifest.plain_tokens.count == 20
    assert file.manifest.randomness.insecure_seed is None


def test_json_is_one_document_that_is_the_manifest(rapt, reviews: Path, tmp_path: Path):
    outcome = rapt("privatize", reviews, tmp_path / "out", "--eta", 20, *TINY, "--json")
    printed = json.loads(outcome.out)
    assert printed["file"] == str(tmp_path / "out")
    assert printed["records"] == 6
    assert printed["mechanism"] == {"name": "laplace", "parameters": {"eta": 20.0}}


def test_labels_stay_at_home_when_told(rapt, reviews: Path, tmp_path: Path):
    rapt("privatize", reviews, tmp_path / "out", "--eta", 20, *TINY, "--no-label", "--plain-tokens", 0)
    file = read_privatized_file(tmp_path / "out")
    assert file.manifest.labels is None
    assert file.manifest.plain_tokens.count == 0
    assert b"positive" not in (tmp_path / "out").read_bytes()


def test_labels_are_randomized_when_told_and_the_statement_says_so(rapt, reviews: Path, tmp_path: Path):
    arguments = ("--label-epsilon", 2, "--labels", "negative,positive,mixed")
    outcome = rapt("privatize", reviews, tmp_path / "out", "--eta", 20, *TINY, *arguments)
    assert outcome.code == 0
    assert "randomized, ε = 2 for each" in outcome.err
    assert "in clear" not in outcome.err
    assert read_privatized_file(tmp_path / "out").manifest.label_privacy == LabelPrivacy(epsilon=2.0)
    stated = rapt("statement", tmp_path / "out").out
    assert "randomized-response" in stated
    assert "which labels exist is open" in " ".join(stated.split())


def test_which_labels_occur_is_private_where_labels_are_randomized(rapt, reviews: Path, tmp_path: Path):
    outcome = rapt("privatize", reviews, tmp_path / "out", "--eta", 20, *TINY, "--label-epsilon", 0.1)
    assert (outcome.code, "which of them occur in the file is private too" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_no_name_of_a_file_or_a_folder_is_in_a_manifest(rapt, tmp_path: Path, monkeypatch):
    from rapt.public_models import find_model_folder

    names = ("quokkaclinic", "wombatpatients")
    (tmp_path / names[0]).mkdir()
    folder = tmp_path / names[0] / names[1]
    folder.symlink_to(find_model_folder("few-words"))
    table = vectors(tmp_path).rename(tmp_path / names[0] / f"{names[1]}.vec")
    made = tmp_path / names[0] / "quokkaclinic-vocabulary"
    assert rapt("vocabulary", "vectors", table, made).code == 0
    source = tmp_path / names[0] / f"{names[1]}.csv"
    source.write_text("text\ngood film\n")
    monkeypatch.chdir(tmp_path / names[0])
    for vocabulary in (folder, folder.name, table, table.name, made):
        outcome = rapt(
            "privatize", source, "out", "--eta", 20, "--no-label", "--plain-tokens", 0, "--overwrite", "--vocabulary",
            vocabulary, "--allow-weak",
        )  # fmt: skip
        assert outcome.code == 0
        written = (tmp_path / names[0] / "out").read_text()
        assert not [name for name in names if name in written]


def test_equal_texts_show_only_where_the_manifest_says_that_they_may(rapt, tmp_path: Path):
    source = tmp_path / "pairs.csv"
    source.write_text(
        "text,other,label\n" + "the film was good and the actors too,the film was good and the actors too,a\n" * 8
    )
    stated = {}
    for name, more in (("with", ()), ("without", ("--no-ledger",))):
        arguments = ("--eta", 20, *TINY, "--text-column-2", "other", "--plain-tokens", 0, *more)
        assert rapt("privatize", source, tmp_path / name, *arguments).code == 0
        file = read_privatized_file(tmp_path / name)
        assert len({record.token_ids for record in file.records}) == (1 if name == "with" else 8)
        assert all(record.token_ids != record.second_token_ids for record in file.records)
        assert file.manifest.arrangement.replayed == (name == "with")
        stated[name] = " ".join(rapt("statement", tmp_path / name).out.split())
    assert "whoever sees both sees that it is the same text" in stated["with"]
    assert "sees that it is the same text" not in stated["without"]


def test_the_order_of_the_labels_can_be_set(rapt, reviews: Path, tmp_path: Path):
    rapt("privatize", reviews, tmp_path / "out", "--eta", 20, *TINY, "--labels", "positive, negative")
    assert read_privatized_file(tmp_path / "out").manifest.labels == ("positive", "negative")


def test_plain_tokens_can_be_drawn_once_for_the_file(rapt, reviews: Path, tmp_path: Path):
    rapt("privatize", reviews, tmp_path / "out", "--eta", 20, *TINY, "--plain-tokens-drawn", "file")
    file = read_privatized_file(tmp_path / "out")
    assert file.manifest.plain_tokens.fixed is not None
    assert all(record.plain_tokens is None for record in file.records)


def test_an_insecure_seed_repeats_the_noise_and_is_recorded_and_warned_of(rapt, reviews: Path, tmp_path: Path):
    for name in ("a", "b"):
        outcome = rapt("privatize", reviews, tmp_path / name, "--eta", 20, *TINY, "--insecure-seed", 7)
        assert "warning" in outcome.err
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_privatized_file(tmp_path / "a").manifest.randomness.insecure_seed == 7


def test_two_runs_without_a_seed_differ(rapt, reviews: Path, tmp_path: Path):
    for name in ("a", "b"):
        rapt("privatize", reviews, tmp_path / name, "--eta", 20, *TINY, "--plain-tokens", 0, "--no-ledger")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


FILES = {
    "empty.csv": b"",
    "header.csv": b"text,label\n",
    "bytes.csv": b"text,label\nkohlrabi \xff\xfe,positive\n",
    "long.csv": b"text,label\n" + b"kohlrabi " * 600 + b",positive\n",
    "blank.csv": b"text,label\n   ,positive\n",
    "odd.xyz": b"text,label\n",
    "taken": b"mine",
}
BAD_INPUTS = [
    # name, arguments in place of IN OUT, exit code, part of the message
    ("a missing file", "none.csv out", 3, "must be readable"),
    ("an empty file", "empty.csv out", 3, "'text'"),
    ("a file with a header only", "header.csv out", 3, "at least one record"),
    ("a missing text column", "reviews.csv out --text-column body", 3, "'body'"),
    ("a missing label column", "reviews.csv out --label-column stars", 3, "'stars'"),
    ("bad UTF-8", "bytes.csv out", 3, "line 2 must be utf-8"),
    ("a text that is too long", "long.csv out", 3, "line 2"),
    ("an empty text", "blank.csv out", 3, "line 2"),
    ("an unknown format", "odd.xyz out", 2, "csv, tsv, jsonl"),
    ("a label that was not named", "reviews.csv out --labels positive,mixed", 3, "line 3, line 4, line 6"),
    ("labels named twice", "reviews.csv out --labels a,a", 2, "different names"),
    ("an epsilon of labels of 0", "reviews.csv out --label-epsilon 0", 6, "the epsilon of labels must be finite"),
    ("an epsilon of no labels", "reviews.csv out --label-epsilon 1 --no-label", 2, "exclude each other"),
    ("an eta of 0", "reviews.csv out --eta 0", 6, "eta must be a finite number"),
    ("a negative eta", "reviews.csv out --eta -1", 6, "eta must be a finite number"),
    ("an eta that is no number", "reviews.csv out --eta nan", 6, "eta must be a finite number"),
    ("an infinite eta", "reviews.csv out --eta inf", 6, "eta must be a finite number"),
    ("an unknown mechanism", "reviews.csv out --mechanism magic", 6, "laplace"),
    ("an unknown vocabulary", "reviews.csv out --vocabulary gpt-9", 5, "gpt-9"),
    ("a target that exists", "reviews.csv taken", 2, "--overwrite"),
    ("the source as target", "reviews.csv reviews.csv --overwrite", 2, "another file"),
    ("a folder that is missing", "reviews.csv nowhere/out", 3, "must be writable"),
    ("a folder as target", "reviews.csv . --overwrite", 2, "got a folder"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [row[1:] for row in BAD_INPUTS], ids=[row[0] for row in BAD_INPUTS]
)
def test_bad_input_is_one_clear_line_and_leaves_nothing_behind(
    arguments, code, said, rapt, reviews: Path, tmp_path: Path, monkeypatch, never_shows
):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    eta = () if "--eta" in arguments else ("--eta", "20")
    vocabulary = () if "--vocabulary" in arguments else TINY
    outcome = rapt("privatize", *arguments.split(), *eta, *vocabulary)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.startswith("rapt: error: ")
    assert outcome.err.count("\n") == 1
    never_shows(outcome.err)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_existing_file_is_replaced_only_when_told_and_only_by_a_whole_one(rapt, reviews: Path, tmp_path: Path):
    target = tmp_path / "out"
    target.write_text("mine")
    rapt("privatize", tmp_path / "none.csv", target, "--eta", 20, *TINY, "--overwrite")
    assert target.read_text() == "mine"
    rapt("privatize", reviews, target, "--eta", 20, *TINY, "--overwrite")
    assert len(read_privatized_file(target).records) == 6


def test_privatizing_from_the_shell_loads_no_torch(reviews: Path, tmp_path: Path):
    script = f"""
import sys
from rapt.cli.program import run
code = run(["privatize", {str(reviews)!r}, {str(tmp_path / "out")!r}, "--eta", "20", "--vocabulary", "few-words"])
assert code == 0, code
loaded = [name for name in ("torch", "transformers", "scipy", "jinja2", "fastapi") if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_mechanisms_are_listed_with_their_status(rapt):
    assert "proved" in rapt("mechanisms").out
    listed = json.loads(rapt("mechanisms", "--json").out)["mechanisms"]
    assert {entry["name"]: (entry["unit"], entry["status"]) for entry in listed} == {
        name: (known.unit, known.status) for name, known in KNOWN_MECHANISMS.items()
    }
    assert [entry["name"] for entry in listed] == ["subset", *MECHANISMS]


def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "small.vec"
    words = ["good", "bad", "film", "Story", "slow"]
    path.write_text("5 2\n" + "".join(f"{word} {place} {place * place}\n" for place, word in enumerate(words)))
    return path


def test_word_vectors_are_a_vocabulary(rapt, tmp_path: Path, never_shows):
    source = tmp_path / "a.csv"
    source.write_text("text\ngood unheardof film\n")
    # Words far from each other stay where they are.
    arguments = ("--eta", 20, "--allow-weak", "--no-label", "--plain-tokens", 0, "--vocabulary")
    assert rapt("privatize", source, tmp_path / "out", *arguments, vectors(tmp_path)).code == 0
    assert len(read_privatized_file(tmp_path / "out").records[0].token_ids) == 3
    outcome = rapt("privatize", source, tmp_path / "none", *arguments, vectors(tmp_path), "--unknown-words", "refuse")
    assert (outcome.code, "got 1 others, the first as token 1" in outcome.err) == (3, True)
    assert "unheardof" not in outcome.err


@pytest.mark.parametrize(("case", "known"), [("lower", 1), ("keep", 2), ("auto", 2)])
def test_word_vectors_become_a_folder(rapt, tmp_path: Path, case, known):
    from rapt.local.vocabulary import load_vocabulary

    folder = tmp_path / "folder"
    made = rapt("vocabulary", "vectors", vectors(tmp_path), folder, "--case", case, "--json")
    vocabulary = load_vocabulary(str(folder))
    name = f"word-vectors-{vocabulary.hash.removeprefix('sha256:')[:12]}"
    assert json.loads(made.out) == {"folder": str(folder), "model": name, "hash": vocabulary.hash}
    ids = vocabulary.encode(["good Story"])[0]
    assert len([i for i in ids if i != 5]) == known
    assert rapt("vocabulary", "vectors", vectors(tmp_path), folder).code == 2


def test_a_run_is_continued_and_split_when_told(rapt, reviews: Path, tmp_path: Path):
    target = tmp_path / "out"
    arguments = ("privatize", reviews, target, "--eta", 20, *TINY, "--resume", "--processes", 2, "--keep-order")
    assert rapt(*arguments).code == 0
    whole = target.read_bytes()
    target.rename(tmp_path / "out.partial")
    assert rapt(*arguments).code == 0
    assert target.read_bytes() == whole
    target.rename(tmp_path / "out.partial")
    refused = rapt("privatize", reviews, target, "--eta", 21, *TINY, "--resume", "--keep-order")
    assert (refused.code, "must be continued with the settings" in refused.err) == (4, True)


def put_link(path: Path) -> None:
    path.symlink_to(path.parent / "none")


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("put", [os.mkfifo, put_link])
def test_what_is_no_regular_file_is_never_replaced(rapt, reviews: Path, tmp_path: Path, put, overwrite):
    target = tmp_path / "out"
    put(target)
    before = target.lstat()
    refused = rapt("privatize", reviews, target, "--eta", 20, *TINY, *overwrite)
    assert (refused.code, "must be a regular file" in refused.err) == (2, True)
    assert os.path.samestat(target.lstat(), before)


@pytest.mark.parametrize("suffix", ["", ".key", "-wal", "-shm", "-journal", ".lock"])
@pytest.mark.parametrize("known", ["by its name", "by another name", "without --ledger", "not there yet"])
def test_the_ledger_and_its_files_are_never_an_output(rapt, reviews: Path, tmp_path: Path, suffix, known):
    ledger = tmp_path / "l.db"
    if known != "not there yet":
        first = rapt("privatize", reviews, tmp_path / "first", "--eta", 20, *TINY, "--ledger", ledger)
        assert first.code == 0
    target = tmp_path / f"l.db{suffix}"
    if known == "by another name":
        if not target.exists():
            pytest.skip("SQLite keeps this file only while it works")
        (tmp_path / "alias").hardlink_to(target)
        target = tmp_path / "alias"
    elif known != "not there yet":
        target.touch()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    options = () if known == "without --ledger" else ("--ledger", ledger)
    refused = rapt("privatize", reviews, target, "--eta", 20, *TINY, "--overwrite", *options)
    assert refused.code == 2
    assert "ledger and its key" in refused.err or "a database or its key" in refused.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


MARKS = ("zanzibarsecret", "quokkasecret")
MARKED = {
    "headerless.csv": "{0},{1}\n{0} b,{1}\n",
    "one_column.csv": "{0}\n{1}\n",
    "headerless.tsv": "{0}\t{1}\n",
    "fields.jsonl": '{{"{0}": "{1}", "{1}": 1}}\n',
    "type.jsonl": '{{"text": ["{0}"], "label": {{"{1}": 1}}}}\n',
    "cut.jsonl": '{{"text": "{0}", "label": "{1}\n',
    "chat.jsonl": '{{"messages": [{{"role": "{0}", "content": "{1}"}}]}}\n',
    "surrogate.jsonl": '{{"text": "{0}", "label": "{1}\\ud800"}}\n{{"text": "{0}\\ud800", "label": "{1}"}}\n',
    "ragged.csv": "text,label\n{0},{1},{0}\n{1}\n,{0}\n{0},\n",
    "quote.csv": 'text,label\n"{0},{1}\n',
    "stray.csv": 'text,label\n"{0}" {1},x\n',
    "twice.csv": "text,text,{0}\n{0},{1},b\n",
    "labels.csv": "text,label\n" + "".join("{0},{1}" + f"{i}\n" for i in range(40)),
    "long_label.csv": "text,label\n{0}," + "{1}" * 9 + "\n",
    "long.csv": "text,label\n" + "{0} " * 600 + ",{1}\n",
    "latin.csv": "text,label\n{0} \xe9,{1}\n",
    "unnamed.csv": "text,label\n{0},{1}\nb,{0}\n",
    "fine.csv": "text;label\n{0}; {1}\n{1};b\n",
}


@pytest.mark.parametrize(
    "options", [(), ("--no-label",), ("--labels", "a,b"), ("--unknown-words", "refuse"), ("--no-header",)]
)
@pytest.mark.parametrize("name", MARKED)
def test_no_message_holds_a_cell_a_label_or_a_column_that_nobody_asked_for(rapt, tmp_path, caplog, name, options):
    source = tmp_path / name
    source.write_bytes(MARKED[name].format(*MARKS).encode("latin-1" if name == "latin.csv" else "utf-8"))
    outcome = rapt("privatize", source, tmp_path / "out", "--eta", 20, *TINY, "--plain-tokens", 0, *options)
    assert outcome.code in (0, 3, 2)
    assert outcome.code == 0 or outcome.err.startswith("rapt: error: ")
    said = (outcome.out + outcome.err + caplog.text).lower()
    assert not [mark for mark in MARKS if mark in said]


def test_what_was_guessed_is_said_and_unknown_words_are_counted(rapt, tmp_path: Path):
    source = tmp_path / "a.csv"
    source.write_text("text;label\n\U0001f600 fine;good \nbad;bad\n")
    outcome = rapt("privatize", source, tmp_path / "out", "--eta", 20, *TINY, "--json")
    assert json.loads(outcome.out)["unknown_tokens"] == 1
    assert outcome.err.splitlines() == [
        "rapt: fields are taken to have a semicolon between them; --delimiter says otherwise",
        "rapt: 1 labels had spaces around them, which are left out",
        "rapt: 1 of 3 tokens are words that the vocabulary does not know: they become one unknown token",
    ]


def test_words_that_stand_in_many_records_are_said_before_anything_is_sent(rapt, tmp_path: Path):
    source = tmp_path / "a.csv"
    source.write_text("text,label\n" + "".join(f"good bad fine good {'fine ' * i},good\n" for i in range(12)))
    outcome = rapt("privatize", source, tmp_path / "out", "--eta", 20, *TINY, "--json")
    (said,) = [line for line in outcome.err.splitlines() if "runs of 4 tokens" in line]
    assert "in 10 records or more, one of them in 12" in said
    assert not [word for word in ("good", "bad", "fine") if word in outcome.err]


@pytest.mark.parametrize("delimiter", ["tab", "\\t", "\t"])
def test_a_file_without_a_header_is_read_by_numbers(rapt, tmp_path: Path, delimiter):
    source = tmp_path / "a.csv"
    source.write_text("good\tnice film\nbad\tcold soup\n")
    columns = ("--no-header", "--text-column", 2, "--label-column", 1, "--delimiter", delimiter)
    assert rapt("privatize", source, tmp_path / "out", "--eta", 20, *TINY, *columns).code == 0
    assert read_privatized_file(tmp_path / "out").manifest.labels == ("bad", "good")


def test_labels_of_every_row_are_sent_when_somebody_insists(rapt, tmp_path: Path):
    source = tmp_path / "a.csv"
    source.write_text("text,label\n" + "".join(f"fine,c{i}\n" for i in range(40)))
    assert rapt("privatize", source, tmp_path / "out", "--eta", 20, *TINY).code == 3
    assert rapt("privatize", source, tmp_path / "out", "--eta", 20, *TINY, "--public-labels").code == 0


@pytest.mark.parametrize("eta", ["1e-320", "1e5", "1e4"])
def test_an_eta_outside_any_use_is_refused(rapt, reviews: Path, tmp_path: Path, eta):
    outcome = rapt("privatize", reviews, tmp_path / "out", "--eta", eta, *TINY)
    assert outcome.code == 6
    assert "eta=" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        "privatize a b --eta 3 --eta 4",
        "privatize a b --eta=3 --mechanism tem --mechanism=laplace",
        "privatize a b --eta 3 --label-epsilon 1 --label-epsilon 9",
        "statement --eta 3 --eta 4",
        "ledger cap L --per-text 1 --per-text 2",
        "tune a --seed 1 --seed 2",
        "vocabulary certify f --eta 1 --eta 2",
    ],
)
def test_an_option_that_is_given_twice_is_refused_by_every_command(rapt, arguments):
    outcome = rapt(*arguments.split())
    assert outcome.code == 2
    assert "must be given once, got it 2 times; keep one of them" in outcome.err


def test_an_option_that_may_repeat_repeats(rapt, tmp_path: Path):
    outcome = rapt("mechanisms", "--help", "--help")
    assert outcome.code == 0
    again = rapt("statement", "--eta", 20, *TINY, "--pair", "good,bad", "--pair", "nice,cold")
    assert again.code == 0
