"""`rapt tune`, `rapt predict` and `rapt vocabulary fetch` against a real service on loopback."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import httpx2
import pytest

from rapt.cli.program import run
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from running_service import running_service

PRIVATIZE = ("--eta", 60, "--vocabulary", "bert-tiny", "--plain-tokens", 4, "--plain-token-pool", 20)
QUICK = ("--epochs", 1, "--prompt-length", 2, "--seed", 3)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    backbones = load_backbones(load_settings({"models": "bert-tiny", "precision": "float32"}))
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as url:
        yield url


@pytest.fixture(scope="module")
def privatized(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trusted")
    rows = "".join(f"the food was {'good' if i % 2 else 'bad'} today,{'yes' if i % 2 else 'no'}\n" for i in range(20))
    (folder / "reviews.csv").write_text("text,label\n" + rows)
    assert run([str(item) for item in ("privatize", folder / "reviews.csv", folder / "train", *PRIVATIZE)]) == 0
    arguments = ("privatize", folder / "reviews.csv", folder / "queries", *PRIVATIZE, "--no-label")
    assert run([str(item) for item in arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def tuned(service, privatized: Path) -> str:
    from rapt.local.client import ServiceClient

    with ServiceClient(service) as client:
        uploaded = client.upload(privatized / "train")
        hyperparameters = {"n_epochs": 1, "num_virtual_tokens": 2}
        job = client.create_job(
            file_id=uploaded.id,
            model="bert-tiny",
            method={"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": hyperparameters}},
        )
        name = client.wait(job.id, seconds_between=0.05).fine_tuned_model
    assert name is not None
    return name


def test_tuning_prints_the_name_of_the_model_alone_on_stdout(rapt, service, privatized: Path):
    outcome = rapt("tune", privatized / "train", "--service", service, *QUICK, "--suffix", "food")
    assert outcome.code == 0
    assert re.fullmatch(r"ft:bert-tiny:local:food:\S+\n", outcome.out)
    assert "reconstruction λ=" in outcome.err
    assert "loss" in outcome.err


def test_tuning_without_reconstruction_says_so(rapt, service, privatized: Path):
    outcome = rapt(
        "tune", privatized / "train", "--service", service, *QUICK, "--no-reconstruction", "--priority", 4, "--json"
    )
    printed = json.loads(outcome.out)
    shown = httpx2.get(f"{service}/v1/fine_tuning/jobs/{printed['job']}", trust_env=False).json()
    assert shown["rapt"] == {"priority": 4}
    assert printed["method"]["prompt_tuning"]["hyperparameters"]["reconstruction"] is None
    assert printed["seed"] == 3
    assert "no reconstruction" in outcome.err


def test_predictions_go_to_stdout_one_a_line(rapt, service, privatized: Path, tuned):
    outcome = rapt("predict", privatized / "queries", "--service", service, "--model", tuned)
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(rows) == 20
    assert set(rows[0]["probabilities"]) == {"no", "yes"}
    assert {row["label"] for row in rows} <= {"no", "yes"}
    assert "right" not in outcome.err


def test_labels_of_a_file_stay_and_are_compared(rapt, service, privatized: Path, tuned):
    outcome = rapt("predict", privatized / "train", "--service", service, "--model", tuned, "--json")
    printed = json.loads(outcome.out)
    assert printed["records"] == 20
    assert 0 <= printed["right"] <= 20
    assert f"right: {printed['right']} of 20" in outcome.err


def test_predictions_can_be_written_as_csv(rapt, service, privatized: Path, tuned, tmp_path: Path):
    out = tmp_path / "answers.csv"
    assert rapt("predict", privatized / "queries", "--service", service, "--model", tuned, "--out", out).code == 0
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["label", "p(no)", "p(yes)"]
    assert len(rows) == 20
    again = rapt("predict", privatized / "queries", "--service", service, "--model", tuned, "--out", out)
    assert (again.code, "--overwrite" in again.err) == (2, True)


def test_a_fetched_vocabulary_privatizes_like_the_installed_one(rapt, service, reviews: Path, tmp_path: Path):
    folder = tmp_path / "bundle"
    assert rapt("vocabulary", "fetch", folder, "--service", service, "--model", "bert-tiny").out == f"{folder}\n"
    for vocabulary in ("bert-tiny", folder):
        name = "a" if vocabulary == folder else "b"
        options = ("--eta", 20, "--insecure-seed", 1, "--vocabulary", vocabulary)
        assert rapt("privatize", reviews, tmp_path / name, *options).code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_the_service_refuses_is_one_line(rapt, service, privatized: Path, reviews: Path, tuned, tmp_path: Path):
    at = ("--service", service)
    other = tmp_path / "other"
    rapt("privatize", reviews, other, "--eta", 61, "--vocabulary", "bert-tiny", "--plain-tokens", 4)
    (tmp_path / "cut").write_bytes((privatized / "train").read_bytes()[:-40])
    for arguments, code, said in [
        (("tune", reviews, *at), 4, "the first line must be"),
        (("tune", tmp_path / "cut", *at), 4, "record"),
        (("tune", privatized / "queries", *at), 9, "label"),
        (("tune", privatized / "train", *at, "--epochs", 10**9), 9, "n_epochs"),
        (("tune", privatized / "train", *at, "--method", "magic"), 9, "refused"),
        (("tune", privatized / "train", *at, "--no-reconstruction", "--reconstruction-weight", 1), 2, "exclude"),
        (("tune", privatized / "train", "--service", "ftp://nowhere"), 2, "URL"),
        (("tune", privatized / "train", "--service", "http://127.0.0.1:9"), 9, "must be reachable"),
        (("predict", privatized / "queries", *at, "--model", "ft:bert-tiny:no:such"), 9, "404"),
        (("predict", privatized / "queries", *at, "--model", "bert-tiny"), 2, "a tuned one"),
        (("predict", other, *at, "--model", tuned), 2, "labels of the model"),
        (("predict", privatized / "queries", *at, "--model", tuned, "--out", "x.xml"), 2, ".jsonl or .csv"),
        (("vocabulary", "fetch", tmp_path / "v", *at, "--model", "none"), 9, "404"),
        (("vocabulary", "fetch", tmp_path, *at), 2, "must not exist"),
    ]:
        outcome = rapt(*arguments)
        assert (outcome.code, outcome.out) == (code, ""), arguments
        errors = [line for line in outcome.err.splitlines() if line.startswith("rapt: error: ")]
        assert len(errors) == 1
        assert said in errors[0]
    assert not (tmp_path / "v").exists()


def test_queries_at_another_eta_are_refused(rapt, service, tuned, reviews: Path, tmp_path: Path):
    options = ("--eta", 61, "--vocabulary", "bert-tiny", "--plain-tokens", 4, "--no-label")
    rapt("privatize", reviews, tmp_path / "queries", *options)
    outcome = rapt("predict", tmp_path / "queries", "--service", service, "--model", tuned)
    assert outcome.code == 9
    assert "eta=60.0, got laplace at eta=61.0" in outcome.err


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("p_tuning", ("--prompt-length", 2, "--encoder", "lstm"), "encoder=lstm"),
        ("prefix_tuning", ("--prompt-length", 2, "--init", "text", "--init-text", "good food"), "initialization=text"),
        ("lora", ("--rank", 2, "--target", "query", "--reconstruction-schedule", "fall"), "target_modules=['query']"),
        ("linear_probing", ("--learning-rate", 0.02), "learning_rate=0.02, no reconstruction"),
    ],
)
def test_every_method_is_an_option_and_its_model_predicts(rapt, service, privatized: Path, method, options, named):
    arguments = ("--epochs", 1, "--seed", 3, "--method", method, *options)
    outcome = rapt("tune", privatized / "train", "--service", service, *arguments)
    assert outcome.code == 0
    assert f"{method}, " in outcome.err
    assert named in outcome.err
    answered = rapt("predict", privatized / "queries", "--service", service, "--model", outcome.out.strip())
    assert len(answered.out.splitlines()) == 20


def test_an_option_of_another_method_is_refused_in_one_line(rapt, service, privatized: Path):
    outcome = rapt("tune", privatized / "train", "--service", service, "--method", "lora", "--prompt-length", 2)
    assert outcome.code != 0
    assert "num_virtual_tokens" in outcome.err
    assert "Traceback" not in outcome.err
