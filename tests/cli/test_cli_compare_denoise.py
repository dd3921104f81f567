"""`rapt compare` and `rapt denoise` from the command line, on a tiny backbone."""

from __future__ import annotations

import json
import shlex

import pytest

from denoised_material import write_denoised
from rapt.compare.plan import ARMS

TINY = ("--model", "few-words", "--eta", 90)


@pytest.fixture
def labelled(tmp_path):
    words = {"bad": ("awful", "poor", "sad", "dull"), "good": ("great", "fine", "happy", "best")}
    lines = [f"the film was {words[label][n % 4]} in scene {n},{label}" for n in range(20) for label in words]
    path = tmp_path / "reviews.csv"
    path.write_text("sentence,verdict\n" + "\n".join(lines) + "\n")
    return path


def results(folder):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_the_command_that_a_comparison_prints_makes_its_numbers_again(rapt, labelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = ("--text-column", "sentence", "--label-column", "verdict")
    few = ("--arms", "clean,without reconstruction", "--seeds", 1, "--privatizations", 1, "--epochs", 1)
    outcome = rapt("compare", labelled, "--out", "first", *TINY, *columns, *few, "--records", 20, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"report": "first/comparison.html"}
    command = shlex.split(json.loads((tmp_path / "first" / "comparison.json").read_text())["command"])
    assert command[0] == "rapt"
    assert rapt(*command[1:]).code == 0
    assert len(results(tmp_path / "first")) == 2
    assert results(tmp_path / "comparison") == results(tmp_path / "first")


def test_the_command_of_a_comparison_of_pairs_makes_its_numbers_again(rapt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"take {n} of it,the film was {('sad', 'good')[n % 2]} {n},{n % 2}" for n in range(20)]
    (tmp_path / "pairs.csv").write_text("one,two,same\n" + "\n".join(lines) + "\n")
    columns = ("--text-column", "one", "--text-column-2", "two", "--label-column", "same")
    few = ("--arms", "without reconstruction", "--seeds", 1, "--privatizations", 1, "--epochs", 1)
    outcome = rapt("compare", "pairs.csv", "--out", "first", *TINY, *columns, *few)
    assert outcome.code == 0, outcome.err
    assert "most frequent label" in outcome.out
    report = json.loads((tmp_path / "first" / "comparison.json").read_text())
    assert report["pairs"]
    assert rapt(*shlex.split(report["command"])[1:]).code == 0
    assert results(tmp_path / "comparison") == results(tmp_path / "first")


def test_a_cross_validated_comparison_judges_on_every_fifth(rapt, labelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = ("--text-column", "sentence", "--label-column", "verdict", "--cross-validate")
    few = ("--arms", "without reconstruction", "--seeds", 2, "--privatizations", 1, "--epochs", 1)
    outcome = rapt("compare", labelled, "--out", "first", *TINY, *columns, *few)
    assert outcome.code == 0, outcome.err
    assert "8 each seed, in 5 turns" in (tmp_path / "first" / "comparison.html").read_text()
    report = json.loads((tmp_path / "first" / "comparison.json").read_text())
    assert (report["turns"], report["evaluation_records"]) == (5, 8)
    assert rapt(*shlex.split(report["command"])[1:]).code == 0
    assert results(tmp_path / "comparison") == results(tmp_path / "first")
    outcome = rapt("compare", labelled, "--out", "c", *TINY, *columns, *few, "--evaluation", labelled)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)


def test_a_comparison_that_cannot_be_run_is_refused_in_one_line(rapt, labelled, tmp_path):
    outcome = rapt("compare", labelled, "--out", tmp_path / "c", *TINY, "--arms", "magic")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "unknown arm='magic'" in outcome.err


def test_a_comparison_is_read_from_a_file_and_options_beside_it_are_refused(rapt, labelled, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'model = "few-words"\netas = [90]\nseeds = 1\narms = ["without reconstruction"]\nprivatizations = 1\n'
        'epochs = 1\nplain_pool = 10\n[texts]\ntraining = "reviews.csv"\ntext_column = "sentence"\n'
        'label_column = "verdict"\nrecords = 20\n'
    )
    outcome = rapt("compare", tmp_path / "plan.toml", "--out", tmp_path / "c", "--json")
    assert outcome.code == 0, outcome.err
    assert [line["arm"] for line in results(tmp_path / "c")] == ["without reconstruction"]
    outcome = rapt("compare", tmp_path / "plan.toml", "--out", tmp_path / "c", "--epochs", 2)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "got 1 options beside it" in outcome.err


def test_public_text_becomes_a_backbone(rapt, tmp_path):
    path = tmp_path / "public.csv"
    path.write_text("text\n" + "\n".join(f"the show number {n} was long and dull" for n in range(80)) + "\n")
    outcome = rapt("denoise", path, "--out", tmp_path / "made", *TINY, "--epochs", 0.5, "--json")
    assert outcome.code == 0, outcome.err
    made = json.loads(outcome.out)
    assert made["texts"] == 75
    assert [item["eta"] for item in made["explained"]] == [90]
    assert (tmp_path / "made" / "model.safetensors").exists()
    again = rapt("denoise", path, "--out", tmp_path / "made", *TINY)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "--out must be a new or empty folder" in again.err


def test_arms_that_need_what_is_not_given_are_left_out_where_nothing_is_said(rapt, labelled, tmp_path):
    expecting = write_denoised(tmp_path / "expecting", model="few-words", etas=(90.0,))
    columns = ("--text-column", "sentence", "--label-column", "verdict", "--records", 20)
    few = ("--seeds", 1, "--privatizations", 1, "--epochs", 1, "--prompt-length", 2)
    outcome = rapt(
        "compare", labelled, "--out", tmp_path / "c", *TINY, *columns, *few, "--denoised", expecting, "--json"
    )
    assert outcome.code == 0, outcome.err
    run = {line["arm"] for line in results(tmp_path / "c")}
    assert run == {name for name, arm in ARMS.items() if not (arm.sentences or arm.policy) and arm.unit == "token"}
