"""`rapt statement` from the shell's side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TINY = ("--vocabulary", "bert-tiny")


def test_a_setting_is_stated_in_words_and_numbers(rapt):
    outcome = rapt("statement", "--eta", 40, *TINY, "--pair", "london,paris")
    assert (outcome.code, outcome.err) == (0, "")
    assert "NOT protected" in outcome.out
    assert "london / paris" in outcome.out


def test_json_is_one_document(rapt):
    stated = json.loads(rapt("statement", "--eta", 40, *TINY, "--json").out)
    assert stated["mechanism"]["parameters"]["eta"] == 40


def test_a_file_is_stated_as_its_manifest_says(rapt, reviews: Path, tmp_path: Path, never_shows):
    rapt("privatize", reviews, tmp_path / "out", "--eta", 33, *TINY, "--no-label", "--insecure-seed", 5)
    outcome = rapt("statement", tmp_path / "out")
    assert outcome.code == 0
    assert "33" in outcome.out
    assert "seed" in outcome.out
    never_shows(outcome.out)


def test_a_file_is_stated_with_its_own_lengths_and_with_the_words_of_its_texts(
    rapt, reviews: Path, tmp_path: Path, never_shows
):
    rapt("privatize", reviews, tmp_path / "out", "--eta", 90, *TINY, "--no-ledger")
    outcome = rapt("statement", tmp_path / "out", "--original", reviews, "--json")
    stated = json.loads(outcome.out)
    shape, own = stated["file"], stated["own_texts"]
    assert (shape["texts"], own["texts"]) == (6, 6)
    assert shape["shortest"] < shape["median"] < shape["longest"]
    assert {bound["tokens"] for bound in stated["texts"]} == {shape["median"], shape["longest"]}
    assert own["unchanged"]["basis"] == "the tokens of your 6 texts"
    assert stated["unchanged"]["basis"] != own["unchanged"]["basis"]
    page = rapt("statement", tmp_path / "out", "--original", reviews)
    assert "6 texts of" in page.out
    never_shows(outcome.out + page.out + page.err)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "give a privatized FILE, --epsilon or --eta"),
        (("reviews.csv", "--eta", "3"), 2, "no two of them"),
        (("--epsilon", "4", "--eta", "3"), 2, "no two of them"),
        (("--epsilon", "nan"), 6, "the epsilon of a text must be a number above 0"),
        (("--epsilon", "0"), 6, "the epsilon of a text must be a number above 0"),
        (("--epsilon", "4", "--pair", "a,b"), 2, "are of tokens"),
        (("--epsilon", "4", "--vocabulary", "minilm"), 2, "are of tokens"),
        (("reviews.csv",), 4, "the first line must be"),
        (("none.rapt.jsonl",), 3, "must be readable"),
        (("--eta", "nan", *TINY), 6, "eta must be a finite number"),
        (("--eta", "-3", *TINY), 6, "eta must be a finite number"),
        (("--eta", "3", *TINY, "--pair", "london"), 2, "two words with a comma"),
        (("--eta", "3", *TINY, "--original", "reviews.csv"), 2, "texts of a privatized FILE"),
        (("--eta", "3", "--vocabulary", "gpt-9"), 5, "gpt-9"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, code, said, rapt, reviews: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = rapt("statement", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_file_of_another_vocabulary_is_refused(rapt, reviews: Path, tmp_path: Path):
    rapt("privatize", reviews, tmp_path / "out", "--eta", 33, *TINY)
    outcome = rapt("statement", tmp_path / "out", "--vocabulary", "minilm")
    assert outcome.code == 5
    assert "hashes must be equal" in outcome.err
