"""`rapt calibrate` from the shell's side."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rapt.cli.calibrate import At
from rapt.cli.program import run
from rapt.local.calibration import NAMED_DISTANCES

QUICK = ("--vocabulary", "few-words", "--draws", "100")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """One calibration with its plot, run once: the outcome and the plot."""
    plot = tmp_path_factory.mktemp("plot") / "curve.svg"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run(["calibrate", "--unchanged", "0.5", *QUICK, "--plot", str(plot), "--json"])
    return code, json.loads(out.getvalue()), plot


def test_a_share_of_unchanged_tokens_gives_an_eta_and_what_lies_around_it(calibrated):
    code, found, _ = calibrated
    assert code == 0
    assert (found["schema"], found["target"], found["wanted"]) == ("rapt.calibration/1", "unchanged", 0.5)
    assert 60 < found["eta_low"] < found["eta"] < found["eta_high"] < 110
    assert [point["eta"] for point in found["curve"]] == sorted(point["eta"] for point in found["curve"])
    assert found["curve"][0]["unchanged"] < 0.2 < 0.8 < found["curve"][-1]["unchanged"]
    assert not found["depends_on_private_data"]
    assert found["warning"] is None


def test_the_plot_is_written(calibrated):
    _, found, plot = calibrated
    assert found["plot"] == str(plot)
    assert ElementTree.fromstring(plot.read_text(encoding="utf-8")).tag.endswith("svg")


def test_an_epsilon_for_two_words_is_met_and_the_page_says_so(rapt):
    outcome = rapt("calibrate", "--epsilon", 12, "--pair", "london,paris", *QUICK)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    eta = float(lines[0].removeprefix("η = "))
    assert "ε = 12 nats, pure, at distance" in outcome.out
    assert "(london / paris)" in outcome.out
    assert lines[7].split()[:2] == ["η", "unchanged"]
    stated = json.loads(
        rapt("statement", "--eta", eta, "--vocabulary", "few-words", "--pair", "london,paris", "--json").out
    )
    assert 11.98 < stated["word_pairs"][0]["epsilon"] <= 12


def test_private_text_is_counted_only_when_told_and_then_a_warning_says_so(rapt, reviews: Path, never_shows):
    outcome = rapt("calibrate", "--unchanged", 0.5, "--private-text", reviews, *QUICK)
    assert outcome.code == 0
    assert "PRIVATE texts" in outcome.out
    assert "rapt: warning: this η was chosen from private text" in outcome.err
    never_shows(outcome.out + outcome.err)
    public = rapt("calibrate", "--unchanged", 0.5, "--public-text", reviews, *QUICK)
    assert "the public texts" in public.out
    assert "warning" not in public.err


def test_a_success_of_the_attack_gives_an_eta(rapt):
    outcome = rapt("calibrate", "--bayes-success", 0.3, "--mechanism", "exponential", "--words", 50, *QUICK, "--json")
    found = json.loads(outcome.out)
    assert (found["target"], found["mechanism"]) == ("bayes-success", "exponential")
    assert found["reached"] == pytest.approx(0.3, abs=0.01)
    assert all(point["success"] is not None for point in found["curve"])


def test_a_success_of_the_strongest_attack_gives_an_eta_for_public_text(rapt, tmp_path: Path):
    places = [divmod(place, 4) for place in range(16)]
    words = [chr(ord("a") + place) * 3 for place in range(16)]
    rows = [f"{word} {left} {right}" for word, (left, right) in zip(words, places, strict=True)]
    (tmp_path / "words.vec").write_text("\n".join(rows) + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    texts = [" ".join(words[place] for place in rng.integers(16, size=8)) for _ in range(120)]
    (tmp_path / "public.csv").write_text("\n".join(["text", *texts]) + "\n", encoding="utf-8")
    given = ("--vocabulary", tmp_path / "words.vec", "--public-text", tmp_path / "public.csv", "--draws", 100)
    outcome = rapt("calibrate", "--attack-success", 0.6, "--mechanism", "exponential", *given)
    assert outcome.code == 0
    assert "60.0% of tokens found by the strongest attack that trains no network" in outcome.out
    assert "measured with other draws" in outcome.out


def test_the_names_of_distances_are_those_of_the_library():
    assert [name.value for name in At] == list(NAMED_DISTANCES)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("", 2, "one target must be named"),
        ("--unchanged 0.5 --epsilon 3", 2, "one target must be named"),
        ("--unchanged 0.5 --pair a,b", 2, "add --epsilon"),
        ("--unchanged 0.5 --delta 1e-5", 2, "add --epsilon"),
        ("--epsilon 3 --pair a,b --at median", 2, "exclude each other"),
        ("--epsilon 3 --pair london", 2, "two words with a comma"),
        ("--epsilon 3 --pair london,gastroenterologist", 2, "equally many tokens"),
        ("--epsilon 3 --delta 2", 6, "delta must be from 0 to 1"),
        ("--epsilon nan", 2, "epsilon=nan"),
        ("--attack-success 0.5", 2, "add --public-text"),
        ("--guess 0.05 --epsilon 3", 2, "one target must be named"),
        ("--epsilon 3 --among 10", 2, "add --guess"),
        ("--guess 0.0001", 6, "more often than a blind one"),
        ("--guess 1", 6, "more often than a blind one"),
        ("--guess nan", 6, "more often than a blind one"),
        ("--guess 0.5 --among 0", 6, "more often than a blind one"),
        ("--guess 0.5 --plot taken.svg", 2, "leave it out with --guess"),
        ("--unchanged 50", 2, "write half of all as 0.5"),
        ("--unchanged 0.5 --plot curve.png", 2, "must end in .svg"),
        ("--unchanged 0.5 --plot taken.svg", 2, "--overwrite"),
        ("--unchanged 0.5 --words 5 --all-tokens", 2, "exclude each other"),
        ("--unchanged 0.5 --public-text none.csv", 3, "must be readable"),
        ("--unchanged 0.5 --mechanism magic", 6, "unknown mechanism='magic'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, code, said, rapt, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.svg").touch()
    outcome = rapt("calibrate", *arguments.split(), *QUICK)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken.svg"]
