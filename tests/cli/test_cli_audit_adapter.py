"""`rapt audit-adapter` from the shell's side. The attack itself is tested in tests/audit/artefact/test_given.py."""

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
from rapt.service.tuning.tuning_config import default_config


@pytest.fixture
def files(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, first in (("mine.csv", 0), ("others.csv", 24)):
        rows = [f"the zeppelin was {'good' if i % 2 else 'bad'} and number {i} of all,label{i % 2}" for i in range(24)]
        text = "\n".join(row.replace("number ", f"number {first} ") for row in rows)
        Path(name).write_text(f"text,label\n{text}\n", encoding="utf-8")
    vocabulary = load_vocabulary("bert-tiny")
    workshop = Workshop(
        backbone=load_backbone("bert-tiny", precision="float32", device="cpu"),
        vocabulary=vocabulary,
        mechanism=make_mechanism("laplace", vocabulary=vocabulary, eta=60.0),
        config=replace(default_config(LORA), epochs=1),
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
def test_bad_input_is_one_clear_line(arguments, code, said, rapt, files: Path, never_shows):
    Path("strange.csv").write_text("text,label\na word,other\n", encoding="utf-8")
    outcome = rapt("audit-adapter", *arguments.split())
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("rapt: error: ") == 1
    never_shows(outcome.err)
