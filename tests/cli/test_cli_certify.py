"""`rapt vocabulary certify`: a certificate beside the bundle, which no command believes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary


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
