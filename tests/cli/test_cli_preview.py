"""`rapt preview` from the shell's side: the user's own words on standard output, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TINY = ("--vocabulary", "few-words")


def test_each_token_of_a_text_has_its_chance_and_the_words_that_stay_are_listed(rapt, reviews: Path, never_shows):
    outcome = rapt("preview", reviews, "--eta", 90, *TINY, "--threshold", 0.5)
    assert outcome.code == 0
    assert "zeppelin" in outcome.out
    assert "text 1: each token, and how often it stays" in outcome.out
    assert "stay more often than 50 % of the time" in outcome.out
    never_shows(outcome.err)


def test_json_holds_every_token_above_the_threshold_the_likeliest_first(rapt, reviews: Path):
    found = json.loads(rapt("preview", reviews, "--eta", 90, *TINY, "--threshold", 0, "--show", 6, "--json").out)
    assert found["schema"] == "rapt.preview/1"
    kept = [one["kept"] for one in found["above"]]
    assert kept == sorted(kept, reverse=True)
    assert all(one["low"] <= one["kept"] <= one["high"] for one in found["above"])
    assert found["tokens"] == sum(len(text) for text in found["texts"])
    by_hand = sum(one["kept"] for text in found["texts"] for one in text) / found["tokens"]
    assert found["share"] == pytest.approx(by_hand)
    assert 0 < found["basis"]["low"] < found["basis"]["share"] < found["basis"]["high"] < 1


def test_words_and_pairs_are_told_without_a_file(rapt):
    outcome = rapt("preview", "--eta", 75, *TINY, "--word", "suicide", "--pair", "london,paris", "--json")
    assert [word["word"] for word in json.loads(outcome.out)["words"]] == ["suicide", "london", "paris"]


def test_a_list_of_words_gives_the_largest_eta_that_keeps_them_below_the_target(rapt, tmp_path: Path):
    words = tmp_path / "list.txt"
    words.write_text("cancer\n\nsuicide\n", encoding="utf-8")
    settings = ("--vocabulary", "few-words", "--mechanism", "exponential")
    outcome = rapt("preview", "--eta", 20, *settings, "--keep-below", words, "--target", 0.4, "--json")
    found = json.loads(outcome.out)["largest_eta"]
    assert max(word["kept"] for word in found["words"]) < 0.4
    # The channel is closed, so the chances are exact: a thousandth more of η and one word is above.
    more = rapt("preview", "--eta", 1.005 * found["eta"], *settings, "--word", "cancer", "--word", "suicide", "--json")
    assert max(word["kept"] for word in json.loads(more.out)["words"]) > 0.4


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--eta", 5), 2, "something to look at"),
        (("reviews.csv",), 2, "missing option '--eta'"),
        (("reviews.csv", "--eta", "nan"), 6, "eta must be a finite number"),
        (("none.csv", "--eta", 5), 3, "must be readable"),
        (("--eta", 5, "--pair", "one"), 2, "two words with a comma"),
        (("--eta", 5, "--keep-below", "none.txt"), 3, "readable file in UTF-8"),
        (("--eta", 5, "--keep-below", "empty.txt"), 3, "at least one word"),
        (("--eta", 5, "--keep-below", "list.txt", "--target", 1), 2, "between 0 and 1"),
        (("--eta", 5, "--word", " "), 2, "got none for word 0"),
        (("reviews.csv", "--eta", 5, "--text-column", "review"), 3, "review"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, code, said, rapt, reviews: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "list.txt").write_text("zeppelin\n")
    outcome = rapt("preview", *arguments, *TINY)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert "zeppelin" not in outcome.err


def test_nothing_is_written_beside_the_texts(rapt, reviews: Path, tmp_path: Path):
    assert rapt("preview", reviews, "--eta", 90, *TINY).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"]
