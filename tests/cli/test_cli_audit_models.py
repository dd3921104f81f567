"""`rapt audit-model` and `rapt audit-adapter`: what tuned models tell of the texts that they were tuned on."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rapt.audit.artefact.membership_attacks import MEMBERSHIP_ATTACKS
from rapt.audit.artefact.workshop import Workshop, read_texts
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.service.adapter.adapter import save_adapter
from rapt.service.adapter.methods import LORA
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuning_config import make_default_config

TINY = ("--model", "few-words", "--eta", 60)


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


@pytest.fixture
def files(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, first in (("mine.csv", 0), ("others.csv", 24)):
        rows = [f"the zeppelin was {'good' if i % 2 else 'bad'} and number {i} of all,label{i % 2}" for i in range(24)]
        text = "\n".join(row.replace("number ", f"number {first} ") for row in rows)
        Path(name).write_text(f"text,label\n{text}\n", encoding="utf-8")
    vocabulary = load_vocabulary("few-words")
    workshop = Workshop(
        backbone=load_backbone("few-words", precision="float32", device="cpu"),
        vocabulary=vocabulary,
        mechanism=make_mechanism("laplace", vocabulary=vocabulary, eta=60.0),
        config=replace(make_default_config(LORA), epochs=1),
    )
    texts = read_texts(Path("mine.csv"), vocabulary, text_column="text", label_column="label", longest=64)
    save_adapter(workshop.tune(texts.at(np.arange(24)), seed=1), Path("adapter"))
    return tmp_path


def test_an_adapter_is_attacked_and_the_command_of_the_report_makes_it_again(rapt, files: Path, never_shows):
    given = ("--members", "mine.csv", "--others", "others.csv", "--shadows", 3, "--queries", 1, "--out", "out")
    outcome = rapt("audit-adapter", "adapter", *given, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    found = report["findings"]["given"]
    assert (found["members"], found["others"], found["shadows"]) == (24, 24, 3)
    asked = [(attack["asked_with"], attack["named"]["attack"]) for attack in found["attacks"]]
    assert asked == [(asked_with, name) for asked_with in ("clear", "privatized") for name in MEMBERSHIP_ATTACKS]
    written = Path("out/report.html").read_text() + Path("out/report.json").read_text()
    never_shows(outcome.out + outcome.err + written)
    again = rapt(*shlex.split(report["commands"][0])[1:], "--json")
    assert json.loads(again.out)["findings"] == report["findings"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("nowhere --members mine.csv --others others.csv", 4, "rapt.json"),
        ("adapter --members none.csv --others others.csv", 3, "must be readable"),
        ("adapter --members mine.csv --others strange.csv", 8, "labels"),
        ("adapter --members mine.csv --others others.csv --shadows 2", 2, "--shadows"),
        ("adapter --members mine.csv --others others.csv --model minilm", 5, "backbone"),
    ],
)
def test_bad_input_for_an_adapter_is_one_clear_line(arguments, code, said, rapt, files: Path, never_shows):
    Path("strange.csv").write_text("text,label\na word,other\n", encoding="utf-8")
    outcome = rapt("audit-adapter", *arguments.split())
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("rapt: error: ") == 1
    never_shows(outcome.err)
