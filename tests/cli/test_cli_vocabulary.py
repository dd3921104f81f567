"""`rapt vocabulary fetch` from a stranger who serves a table of his own making."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.vocabulary_bundle import make_bundle, read_model_bundle, write_bundle
from strange_service import answering
from tiny_backbones import write_family
from tokenizer_zoo import gpt2


@pytest.fixture(scope="module")
def strangers_folder(tmp_path_factory) -> Path:
    """The vocabulary of bert-tiny with three rows moved."""
    known = load_vocabulary("bert-tiny").bundle
    table = np.array(known.embeddings)
    table[[5000, 6000, 7000]] *= 1.2
    folder = tmp_path_factory.mktemp("stranger") / "bundle"
    bundle = make_bundle(
        model="bert-tiny", tokenizer_json=known.tokenizer_json, embeddings=table, max_tokens=known.max_tokens
    )
    write_bundle(bundle, folder)
    return folder


@pytest.fixture
def stranger(strangers_folder: Path):
    def answer(path: str, body: bytes):
        name = path.rpartition("/")[2]
        file = strangers_folder / (name if (strangers_folder / name).is_file() else "vocabulary.json")
        return 200, {"content-type": "application/octet-stream"}, file.read_bytes()

    with answering(answer) as url:
        yield url


def test_a_table_that_differs_from_the_known_one_is_refused_and_not_kept(rapt, stranger, tmp_path: Path):
    outcome = rapt("vocabulary", "fetch", tmp_path / "v", "--service", stranger, "--model", "bert-tiny")
    assert (outcome.code, outcome.out) == (5, "")
    assert "3 of 30,522 rows of this vocabulary differ from this machine's copy of bert-tiny" in outcome.err
    assert "called bert-tiny must be the known one" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_table_that_the_user_vouches_for_is_kept_and_its_rows_are_still_counted(
    rapt, stranger, reviews: Path, tmp_path: Path
):
    fetch = ("vocabulary", "fetch", tmp_path / "v", "--service", stranger, "--model", "bert-tiny")
    outcome = rapt(*fetch, "--trust-vocabulary", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["rows_different_from_local"] == 3
    assert "3 of 30,522 rows" in outcome.err
    privatize = ("privatize", reviews, tmp_path / "out", "--eta", 30, "--vocabulary", tmp_path / "v")
    refused = rapt(*privatize)
    assert (refused.code, (tmp_path / "out").exists()) == (5, False)
    assert rapt("statement", "--eta", 30, "--vocabulary", tmp_path / "v").code == 5
    assert rapt("preview", "--eta", 30, "--word", "a", "--vocabulary", tmp_path / "v").code == 5
    assert rapt("calibrate", "--unchanged", 0.5, "--vocabulary", tmp_path / "v").code == 5
    assert rapt(*privatize, "--trust-vocabulary").code == 0


def test_a_model_is_shown_with_what_it_is_good_for(rapt):
    found = json.loads(rapt("vocabulary", "show", "bert-tiny", "--json").out)
    assert (found["privatizes"], found["because"]) == (True, None)
    assert (found["tokens"], found["eligible"], found["dimension"]) == (30522, 29523, 128)
    assert found["table_bytes"] == 30522 * 128 * 4
    assert 76 < found["half_eta"] < 88  # 82, from 2,048 draws, whose error is 0.011
    assert found["tokens_a_second"] > 0
    assert found["serving"]["kind"] == "encoder"
    assert {"prompt_tuning", "lora", "prefix_tuning"} <= set(found["serving"]["methods"])
    assert found["serving"]["label_words"]


def test_a_model_that_breaks_a_law_is_shown_with_the_law(rapt, tmp_path: Path):
    shown = rapt("vocabulary", "show", str(write_family("bloom", tmp_path / "bloom"))).out
    assert "tokens may be put out" in shown
    assert "serves      no: a model of architecture 'bloom' cannot be served" in shown


def test_a_vocabulary_without_a_model_is_shown_and_one_of_a_wrong_name_is_not_recommended(rapt, tmp_path: Path):
    other = read_model_bundle(gpt2(tmp_path / "model"), model="bert-tiny")
    write_bundle(other, tmp_path / "bundle")
    shown = rapt("vocabulary", "show", tmp_path / "bundle").out
    assert "privatizes  no: a vocabulary called bert-tiny must be the known one" in shown
    assert "serves      not known: this folder holds a vocabulary and no model" in shown
    assert f"{len(other.embeddings)} tokens of 8 numbers" in shown


def test_what_is_no_model_is_not_shown(rapt, tmp_path: Path):
    outcome = rapt("vocabulary", "show", tmp_path)
    assert (outcome.code, outcome.out) == (5, "")


@pytest.fixture
def folder(rapt, tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((40, 3)).round(3)
    vectors = tmp_path / "words.txt"
    vectors.write_text("".join(f"word{chr(97 + i % 26)}{i} {x} {y} {z}\n" for i, (x, y, z) in enumerate(rows)))
    assert rapt("vocabulary", "vectors", vectors, tmp_path / "bundle").code == 0
    return tmp_path / "bundle"


@pytest.mark.parametrize("mechanism", ["exponential", "soft-pos"])
def test_a_certificate_is_saved_beside_the_bundle_and_used(rapt, folder, mechanism):
    outcome = rapt("vocabulary", "certify", folder, "--eta", 3, "--mechanism", mechanism, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert 1.5 <= found["beta"] <= found["slope"] <= 3.0
    assert json.loads(Path(found["file"]).read_text())["beta"] == found["beta"]
    vocabulary = load_vocabulary(str(folder))  # one more file does no harm
    made = make_mechanism(mechanism, vocabulary=vocabulary, eta=3.0, options={"calibrated": True})
    assert made.setting.parameters["beta"] == found["beta"]


def test_a_certificate_of_the_bundle_is_not_believed(rapt, folder, tmp_path):
    found = json.loads(rapt("vocabulary", "certify", folder, "--eta", 3, "--json").out)
    name = found["file"].rsplit("/", 1)[-1]
    forged = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(forged | {"beta": 2.999, "slope": 2.9999}))
    (tmp_path / "cache" / name).unlink()
    again = json.loads(rapt("vocabulary", "certify", folder, "--eta", 3, "--json").out)
    assert again["beta"] == found["beta"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mechanism", "laplace"), "must be for exponential or soft-pos"),
        (("--set", "prior=nowhere.json"), "a file of counts must be readable"),
    ],
)
def test_what_has_no_certificate_is_refused(rapt, folder, arguments, message):
    outcome = rapt("vocabulary", "certify", folder, "--eta", 3, *arguments)
    assert outcome.code != 0
    assert message in outcome.err


def test_a_folder_that_is_no_vocabulary_is_refused(rapt, tmp_path):
    outcome = rapt("vocabulary", "certify", tmp_path, "--eta", 3)
    assert outcome.code == 2
    assert "make one with fetch or vectors" in outcome.err
