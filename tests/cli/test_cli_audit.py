"""`rapt audit` from the shell's side. The attacks themselves are tested in tests/audit."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

TINY = ("--vocabulary", "few-words")
# Hardly a token changes, so the channel of few outputs is estimated, and fast.
ETA = 300
KEPT = (*TINY, "--allow-weak")


@pytest.fixture
def privatized(rapt, reviews: Path, tmp_path: Path) -> Path:
    target = tmp_path / "reviews.rapt.jsonl"
    assert rapt("privatize", reviews, target, "--eta", ETA, *KEPT).code == 0
    return target


def test_a_file_is_attacked_and_a_report_written_that_holds_no_text(
    rapt, privatized: Path, reviews: Path, tmp_path: Path, never_shows
):
    out = tmp_path / "audit"
    outcome = rapt("audit", privatized, "--original", reviews, "--out", out, "--attacks", "embedding_inversion")
    assert outcome.code == 0
    assert "Embedding inversion" in outcome.out
    assert "any attack without context" in outcome.out
    written = (out / "report.html").read_text() + (out / "report.json").read_text()
    assert "Privacy statement" in written
    never_shows(outcome.out + outcome.err + written)


def test_json_is_the_report(rapt, privatized: Path, reviews: Path):
    arguments = ("--original", reviews, "--attacks", "embedding_inversion", "--limit", 8, "--json")
    printed = json.loads(rapt("audit", privatized, *arguments).out)
    assert 1 <= printed["audit"]["records"] < 6
    assert [found["attack"] for found in printed["audit"]["results"]] == ["embedding_inversion"]
    assert "--limit 8" in printed["commands"][0]


def test_the_command_of_a_report_makes_its_numbers_again(rapt, reviews: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = reviews.read_text(encoding="utf-8").split("\n", 1)
    assert lines[0] == "text,label"
    Path("renamed.csv").write_text("body,stars\n" + lines[1], encoding="utf-8")
    Path("public.csv").write_text("words\na good film\nand a bad one\n", encoding="utf-8")
    columns = ("--text-column", "body", "--label-column", "stars")
    made = rapt("privatize", "renamed.csv", "out", "--eta", ETA, *KEPT, *columns, "--truncate", 5)
    assert made.code == 0, made.err
    more = ("--truncate", 5, "--attacks", "embedding_inversion", "--public-text", "public.csv")
    found = rapt(
        "audit", "out", "--original", "renamed.csv", *columns, *more, "--public-text-column", "words", "--json"
    )
    assert found.code == 0, found.err
    (command,) = json.loads(found.out)["commands"]
    again = rapt(*shlex.split(command)[1:], "--json")
    assert again.code == 0, again.err
    first, second = (json.loads(outcome.out) for outcome in (found, again))
    assert second["commands"] == first["commands"]
    assert [result["score"] for result in second["audit"]["results"]] == [
        result["score"] for result in first["audit"]["results"]
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--original none.csv", 3, "must be readable"),
        ("--original reviews.csv --attacks magic", 8, "embedding_inversion"),
        ("--original other.csv", 8, "belong"),
        ("--original reviews.csv --text-column body", 3, "'body'"),
        ("--original reviews.csv --label-column stars", 3, "'stars'"),
        ("--original reviews.csv --vocabulary minilm", 8, "vocabulary"),
        ("--original reviews.csv --public-text empty.csv", 3, "'text'"),
        ("--original reviews.csv --limit 0", 2, "--limit"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments, code, said, rapt, privatized: Path, tmp_path: Path, monkeypatch, never_shows
):
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "other.csv").write_text("text,label\nsomething else,positive\n")
    monkeypatch.chdir(tmp_path)
    outcome = rapt("audit", privatized, *arguments.split(), "--out", "audit")
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("rapt: error: ") == 1
    never_shows(outcome.err)
    assert not (tmp_path / "audit").exists()


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Records of two sentences and an answer."""
    source = tmp_path / "several.csv"
    rows = [f"the film {i} was good,it was {i} times bad,we see you {i},label{i % 2}" for i in range(6)]
    source.write_text("text,other,answer,label\n" + "\n".join(rows) + "\n")
    return source


@pytest.mark.parametrize(
    ("columns", "more", "texts"),
    [
        ("--text-column-2 other --target-column answer", "", ["first text", "second text", "target"]),
        ("--text-column-2 other", "--target-column answer --public-target", ["first text", "second text"]),
    ],
)
def test_every_privatized_token_of_a_record_is_attacked(columns, more, texts, rapt, several: Path, tmp_path: Path):
    target = tmp_path / "out"
    made = rapt("privatize", several, target, "--eta", ETA, *KEPT, *columns.split(), *more.split())
    assert made.code == 0, made.err
    arguments = ("--original", several, *columns.split(), "--attacks", "embedding_inversion")
    outcome = rapt("audit", target, *arguments, "--out", tmp_path / "audit")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "audit" / "report.json").read_text())
    sent = json.loads(target.read_text().splitlines()[0])["tokens"]
    assert (found["audit"]["tokens"], found["audit"]["records"], found["audit"]["texts"]) == (sent, 6, texts)
    assert found["audit"]["public_targets"] is ("--public-target" in more)
    assert f" {columns}" in found["commands"][0]
    assert found["audit"]["unchanged"]["value"] > 0.9, "each text is compared with its own original"
    assert "6 of 6 records" in outcome.out
    assert all(name in outcome.out for name in texts)
    assert ("targets, which are public" in outcome.out) is ("--public-target" in more)


@pytest.mark.parametrize(
    ("sent", "given", "said"),
    [
        ("--text-column-2 other", "", "name its column with --text-column-2"),
        ("--target-column answer", "", "name its column with --target-column"),
        ("", "--text-column-2 other", "leave out --text-column-2"),
        ("", "--target-column answer", "leave out --target-column"),
        ("--target-column answer --public-target", "--target-column answer", "targets are public"),
        ("--text-column-2 other", "--text-column-2 answer", "in the second text of record 1"),
        ("--text-column-2 other", "--text-column-2 hair", "'hair'"),
    ],
)
def test_other_texts_than_were_privatized_are_one_clear_line(sent, given, said, rapt, several: Path, tmp_path: Path):
    target = tmp_path / "out"
    assert rapt("privatize", several, target, "--eta", ETA, *KEPT, *sent.split()).code == 0
    outcome = rapt("audit", target, "--original", several, *given.split(), "--attacks", "embedding_inversion")
    assert outcome.code != 0
    assert outcome.out == ""
    assert said in outcome.err
    assert outcome.err.count("\n") == outcome.err.count("rapt: error: ") == 1
    assert "film" not in outcome.err


def test_randomized_labels_do_not_make_a_file_look_foreign(rapt, reviews: Path, tmp_path: Path):
    target = tmp_path / "out"
    rapt("privatize", reviews, target, "--eta", ETA, *KEPT, "--label-epsilon", 0.1, "--labels", "negative,positive")
    outcome = rapt("audit", target, "--original", reviews, "--attacks", "embedding_inversion", "--limit", 1)
    assert outcome.code == 0


def write_long_corpus(path: Path, texts: int) -> Path:
    lines = [
        f"the film was {'good' if i % 2 else 'bad'} and number {i} of many,label{i % 2},{'ab'[i % 2]}"
        for i in range(texts)
    ]
    path.write_text("text,label,writer\n" + "\n".join(lines) + "\n")
    return path


def test_half_of_a_long_file_is_lent_and_a_column_is_inferred(rapt, tmp_path: Path):
    source, target = write_long_corpus(tmp_path / "long.csv", 40), tmp_path / "out"
    assert rapt("privatize", source, target, "--eta", ETA, *KEPT).code == 0
    outcome = rapt(
        "audit",
        target,
        "--original",
        source,
        "--attacks",
        "embedding_inversion,context",
        "--attribute",
        "writer",
        "--out",
        tmp_path / "audit",
        "--json",
    )
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    assert printed["audit"]["records"] == 20
    assert "20 other texts of the same file" in printed["audit"]["learned_from"]
    assert [found["attack"] for found in printed["audit"]["results"]] == ["embedding_inversion", "context"]
    assert printed["attributes"][0]["column"] == "writer"
    assert printed["attributes"][0]["attackers"][0]["first"]["value"] > 0.9
    assert not (tmp_path / "audit" / "unfinished").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("--attribute hair", "'hair'"), ("--attribute same", "at least two different values")],
)
def test_a_column_that_cannot_be_inferred_is_one_clear_line(arguments, said, rapt, tmp_path: Path, never_shows):
    source, target = tmp_path / "same.csv", tmp_path / "out"
    source.write_text("text,label,same\n" + "a word,x,1\n" * 12)
    rapt("privatize", source, target, "--eta", ETA, *KEPT)
    outcome = rapt("audit", target, "--original", source, *arguments.split(), "--attacks", "embedding_inversion")
    assert outcome.code != 0
    assert said in outcome.err
    assert outcome.err.count("rapt: error: ") == 1


@pytest.mark.parametrize("name", ["mine.txt", "reviews.csv", "reviews.rapt.jsonl", "public.csv"])
@pytest.mark.parametrize("answers", [False, True], ids=["prompts", "answers"])
def test_prompts_replace_no_file(name, answers, rapt, privatized: Path, reviews: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("keep me")
    Path("public.csv").write_text("text\na good film\nand a bad one\n")
    target = Path(name)
    if answers:
        target = target.rename(name + ".answers.jsonl")
        Path(name).unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    files = [
        str(path) + ".answers.jsonl" if answers and path.name == name else path
        for path in (privatized, reviews, Path("public.csv"))
    ]
    arguments = (files[0], "--original", files[1], "--public-text", files[2], "--attacks", "embedding_inversion")
    outcome = rapt("audit", *arguments, "--export-prompts", name)
    assert (outcome.code, outcome.out) == (2, "")
    assert "prompts must not" in outcome.err
    assert outcome.err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_prompts_are_not_written_where_words_are_to_be_read(rapt, privatized: Path, reviews: Path, tmp_path: Path):
    public, words = tmp_path / "public.csv", tmp_path / "words.txt"
    public.write_text("text\na good film\nand a bad one\n")
    more = ("--public-text", public, "--keywords", words, "--export-prompts", words)
    outcome = rapt("audit", privatized, "--original", reviews, *more)
    assert outcome.code == 2
    assert "must not replace a file that is read" in outcome.err
    assert not words.exists()


@pytest.mark.parametrize("out", ["mine.txt", "mine.txt/audit"])
def test_a_report_in_the_place_of_a_file_is_refused_before_the_work(
    out, rapt, privatized: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("keep me")
    outcome = rapt("audit", privatized, "--original", "none.csv", "--out", out)
    assert (outcome.code, outcome.out) == (2, "")
    assert "a report must be written to a folder" in outcome.err
    assert outcome.err.count("\n") == 1
    assert Path("mine.txt").read_text() == "keep me"
