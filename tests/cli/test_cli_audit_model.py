"""`rapt audit-model` from the shell's side. The attacks themselves are tested in tests/audit/artefact."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

TINY = ("--model", "bert-tiny", "--eta", 60)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    rows = [f"the zeppelin was {'good' if i % 2 else 'bad'} and number {i} of all,label{i % 2}" for i in range(24)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_models_are_attacked_and_a_report_written_that_holds_no_text(rapt, texts: Path, tmp_path: Path, never_shows):
    out = tmp_path / "out"
    arguments = ("--attacks", "membership,words,canaries", "--models", 3, "--epochs", 1, "--queries", 1)
    outcome = rapt("audit-model", texts, *TINY, *arguments, "--canaries", 2, "--repetitions", 1, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["findings"]
    assert [(part["tuned_on"], part["asked_with"]) for part in found["membership"]] == [
        ("clear", "clear"),
        ("privatized", "clear"),
        ("privatized", "privatized"),
    ]
    assert [part["repetitions"] for part in found["canaries"]] == [1, 1]
    assert found["releases"] == []
    written = (out / "report.html").read_text() + (out / "report.json").read_text()
    (command,) = json.loads(outcome.out)["commands"]
    assert command.startswith("rapt audit-model texts.csv --eta 60")
    assert command in (out / "report.html").read_text()
    never_shows(outcome.out + outcome.err + written)


def test_the_command_of_a_report_makes_its_numbers_again(rapt, texts: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts.write_text(texts.read_text().replace("text,label\n", "review,stars\n", 1))
    columns = ("--text-column", "review", "--label-column", "stars", "--mechanism", "pct2t", "--allow-unproved")
    first = rapt("audit-model", texts, *TINY, *columns, "--attacks", "releases", "--releases", "1,2", "--json")
    assert first.code == 0, first.err
    (command,) = json.loads(first.out)["commands"]
    again = rapt(*shlex.split(command)[1:], "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["findings"] == json.loads(first.out)["findings"]


def test_releases_need_no_model(rapt, texts: Path):
    outcome = rapt(
        "audit-model", texts, *TINY, "--mechanism", "exponential", "--attacks", "releases", "--releases", "1,8"
    )
    assert outcome.code == 0, outcome.err
    assert "releases of each text" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("none.csv", 3, "must be readable"),
        ("texts.csv --attacks magic", 8, "membership"),
        ("texts.csv --releases 0", 2, "--releases"),
        ("texts.csv --repetitions a,b", 2, "--repetitions"),
        ("texts.csv --models 2", 2, "--models"),
        ("texts.csv --label-column stars", 3, "'stars'"),
        ("texts.csv --method magic", 7, "method"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments, code, said, rapt, texts: Path, tmp_path: Path, monkeypatch, never_shows
):
    monkeypatch.chdir(tmp_path)
    outcome = rapt("audit-model", *arguments.split(), *TINY)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("rapt: error: ") == 1
    never_shows(outcome.err)
