"""`rapt mechanisms` and `rapt statement`: promises, what is spent, certificates, and what a file protects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from rapt.cli.mechanisms import audit_mechanism
from rapt.errors import MechanismError
from rapt.local.mechanisms import MECHANISMS
from rapt.local.mechanisms.laplace import LaplaceMechanism
from rapt.local.vocabulary import load_vocabulary


@pytest.fixture
def two_reviews(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\na fine film,good\na dull film,bad\n", encoding="utf-8")
    return path


def privatize(rapt, *options):
    return rapt(
        "privatize",
        "reviews.csv",
        "out.jsonl",
        "--eta",
        20,
        "--vocabulary",
        "few-words",
        "--allow-weak",
        *options,
        "--json",
        "--overwrite",
    )


def test_every_mechanism_is_listed_with_status_options_and_caveat(rapt):
    shown = rapt("mechanisms").out
    listed = {entry["name"]: entry for entry in json.loads(rapt("mechanisms", "--json").out)["mechanisms"]}
    assert listed.keys() == MECHANISMS.keys() | {"subset"}
    assert (listed.pop("subset")["unit"], *{entry["unit"] for entry in listed.values()}) == ("text", "token")
    for name, kind in MECHANISMS.items():
        assert name in shown
        assert listed[name]["status"] == kind.known.status
        assert (listed[name]["caveat"] == "") == (kind.known.status == "proved")
        assert [option["name"] for option in listed[name]["options"]] == list(kind.options)
        for option in kind.options:
            assert f"{option}=" in shown


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        (("--mechanism", "exponential"), {"eta": 20.0, "beta": 10.0, "calibrated": False, "prior": "uniform"}),
        (("--mechanism", "tem", "--set", "outside=0.01"), {"eta": 20.0, "outside": 0.01}),
        (("--mechanism", "vickrey", "--set", "tuning=1"), {"eta": 20.0, "tuning": 1.0}),
        (
            ("--mechanism", "custext", "--set", "set_size=50", "--allow-unproved"),
            {"eta": 20.0, "set_size": 50, "metric": "1 within a set, infinite across"},
        ),
    ],
)
def test_options_are_set_and_recorded(arguments, recorded, two_reviews, rapt):
    outcome = privatize(rapt, *arguments)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["mechanism"]["parameters"] == recorded


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--mechanism", "tem", "--set", "outside"), 2, "--set must be NAME=VALUE"),
        (("--mechanism", "tem", "--set", "outside=0.1", "--set", "outside=0.2"), 2, "each name once"),
        (("--mechanism", "tem", "--set", "colour=red"), 6, "has no option 'colour'; choose among outside"),
        (("--set", "colour=red"), 6, "mechanism='laplace' has no option 'colour'; it has none"),
        (("--mechanism", "tem", "--set", "outside=much"), 6, "option 'outside' must be a finite number"),
        (("--mechanism", "pct2t"), 6, "guarantee of mechanism='pct2t' is broken-as-published"),
        (("--mechanism", "exponential", "--set", "prior=missing.json"), 6, "a file of counts must be readable"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(arguments, code, message, two_reviews, rapt):
    outcome = privatize(rapt, *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert not (two_reviews.parent / "out.jsonl").exists()


def test_a_file_made_with_a_public_file_is_read_with_it_only(two_reviews, rapt):
    (two_reviews.parent / "counts.json").write_text(json.dumps({"the": 40, "film": 9}))
    made = privatize(rapt, "--mechanism", "exponential", "--set", "prior=counts.json")
    assert made.code == 0
    assert "counts.json" not in made.out
    refused = rapt("statement", "out.jsonl", "--vocabulary", "few-words")
    assert refused.code == 6
    assert "give the file" in refused.err
    unknown = rapt("statement", "out.jsonl", "--vocabulary", "few-words", "--set", "colour=red")
    assert unknown.code == 2


TINY = ("--vocabulary", "few-words", "--runs", 400)


@pytest.mark.parametrize("name", ["laplace", "exponential", "custext"])
def test_a_mechanism_is_audited_on_near_pairs(rapt, name):
    outcome = rapt("mechanisms", "--audit", name, "--eta", 5, "--allow-unproved", *TINY)
    assert outcome.code == 0, outcome.err
    assert "nothing speaks against eta = 5" in outcome.out
    assert "runs can show" in outcome.out
    assert "unchanged" in outcome.out
    assert "η spent, at least" in outcome.out


def test_the_json_says_what_was_found_and_how_sure(rapt):
    # At this eta tokens stay themselves, so a few hundred draws tell them apart.
    outcome = rapt("mechanisms", "--audit", "santext", "--eta", 200, "--pair", "good,bad", *TINY, "--json")
    found = json.loads(outcome.out)
    assert found["sound"] is True
    assert found["defects"] == []
    assert found["fit"]["p"] >= found["fit"]["alpha"] == 5e-7
    assert found["eta_spent_at_least"] <= found["largest_bound_possible"]
    assert found["alpha"] == 1e-6
    assert 0 < found["eta_spent_at_least"] <= 200
    assert [pair["runs"] for pair in found["pairs"]] == [200]


def test_a_program_that_sends_text_in_clear_is_shown_and_refused(capsys):
    vocabulary = load_vocabulary("few-words")

    @dataclass(frozen=True)
    class SentInClear(LaplaceMechanism):
        def privatize(self, token_ids, *, rng):
            return token_ids.copy()

    broken = SentInClear(vocabulary=vocabulary, eta=75.0)
    with pytest.raises(MechanismError, match="do not follow the stated channel; release nothing with it"):
        audit_mechanism(broken, vocabulary, pairs=["good,bad"], runs=400, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["sound"] is False
    assert found["fit"]["unchanged"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--audit", "laplace"), "give --eta"),
        (("--eta", 3), "add --audit NAME"),
        (("--audit", "laplace", "--eta", 3, "--pair", "good,good", *TINY), "two different words"),
        (("--audit", "laplace", "--eta", 3, "--pair", "good,gastroenterologist", *TINY), "one token each"),
        (("--audit", "nobody", "--eta", 3, *TINY), "unknown mechanism='nobody'"),
        (("--audit", "custext", "--eta", 3, *TINY), "--allow-unproved"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(rapt, arguments, message):
    outcome = rapt("mechanisms", *arguments)
    assert outcome.code != 0
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


TINY_TABLE = ("--vocabulary", "few-words")


def test_a_setting_is_stated_in_words_and_numbers(rapt):
    outcome = rapt("statement", "--eta", 40, *TINY_TABLE, "--pair", "london,paris")
    assert (outcome.code, outcome.err) == (0, "")
    assert "NOT protected" in outcome.out
    assert "london / paris" in outcome.out


def test_json_is_one_document(rapt):
    stated = json.loads(rapt("statement", "--eta", 40, *TINY_TABLE, "--json").out)
    assert stated["mechanism"]["parameters"]["eta"] == 40


def test_a_file_is_stated_as_its_manifest_says(rapt, reviews: Path, tmp_path: Path, never_shows):
    rapt("privatize", reviews, tmp_path / "out", "--eta", 33, *TINY_TABLE, "--no-label", "--insecure-seed", 5)
    outcome = rapt("statement", tmp_path / "out")
    assert outcome.code == 0
    assert "33" in outcome.out
    assert "seed" in outcome.out
    never_shows(outcome.out)


def test_a_file_is_stated_with_its_own_lengths_and_with_the_words_of_its_texts(
    rapt, reviews: Path, tmp_path: Path, never_shows
):
    rapt("privatize", reviews, tmp_path / "out", "--eta", 90, *TINY_TABLE, "--no-ledger")
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
        (("--eta", "nan", *TINY_TABLE), 6, "eta must be a finite number"),
        (("--eta", "-3", *TINY_TABLE), 6, "eta must be a finite number"),
        (("--eta", "3", *TINY_TABLE, "--pair", "london"), 2, "two words with a comma"),
        (("--eta", "3", *TINY_TABLE, "--original", "reviews.csv"), 2, "texts of a privatized FILE"),
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
    rapt("privatize", reviews, tmp_path / "out", "--eta", 33, *TINY_TABLE)
    outcome = rapt("statement", tmp_path / "out", "--vocabulary", "minilm")
    assert outcome.code == 5
    assert "hashes must be equal" in outcome.err
