"""`rapt mechanisms`, and the options of a mechanism on the command line."""

from __future__ import annotations

import json

import pytest

from rapt.local.mechanisms import MECHANISMS


@pytest.fixture
def reviews(tmp_path, monkeypatch):
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
        "bert-tiny",
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
def test_options_are_set_and_recorded(arguments, recorded, reviews, rapt):
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
def test_a_wrong_option_is_refused_before_anything_is_written(arguments, code, message, reviews, rapt):
    outcome = privatize(rapt, *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert not (reviews.parent / "out.jsonl").exists()


def test_a_file_made_with_a_public_file_is_read_with_it_only(reviews, rapt):
    (reviews.parent / "counts.json").write_text(json.dumps({"the": 40, "film": 9}))
    made = privatize(rapt, "--mechanism", "exponential", "--set", "prior=counts.json")
    assert made.code == 0
    assert "counts.json" not in made.out
    refused = rapt("statement", "out.jsonl", "--vocabulary", "bert-tiny")
    assert refused.code == 6
    assert "give the file" in refused.err
    unknown = rapt("statement", "out.jsonl", "--vocabulary", "bert-tiny", "--set", "colour=red")
    assert unknown.code == 2
