"""A tuned model that is asked at home answers as the service does where nothing was privatized, and sends nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx2
import numpy as np
import pytest

from code_material import codes_manifest
from http_requests import done_job, upload
from rapt.at_home import fetch_home_model, load_code_model, load_token_model
from rapt.errors import UsageError, VocabularyError, WireError
from rapt.home_files import predict_at_home
from rapt.local.client import ServiceClient
from rapt.local.codes.encoder import read_encoder
from rapt.local.vocabulary import load_vocabulary
from rapt.service.backbone.opening import load_backbone, load_served
from rapt.wire.code_bundle import make_code_bundle, write_code_bundle
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, remove_labels, seal_manifest
from running_service import running_service, save_privatized
from tuning_material import manifest_for

WORDS = ("good fine great lovely", "bad poor awful dreadful")
TEXTS = [f"the {WORDS[number % 2].split()[number % 4]} film number {number}" for number in range(24)]


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("few-words", precision="float32")


@pytest.fixture(scope="module")
def url(backbone, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones={"few-words": backbone}) as found:
        yield found


@pytest.fixture(scope="module")
def as_if_private(backbone):
    """The texts as a mechanism that changes nothing would leave them, so that both sides see the same ids."""
    contents = load_vocabulary("few-words").encode(TEXTS)
    records = tuple(
        PrivatizedRecord(token_ids=tuple(content), label=number % 2) for number, content in enumerate(contents)
    )
    return PrivatizedFile(manifest=seal_manifest(manifest_for(backbone), records), records=records)


@pytest.fixture(scope="module")
def tuned(url, as_if_private, tmp_path_factory):
    path = save_privatized(as_if_private, tmp_path_factory.mktemp("files") / "training.jsonl")
    method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 3, "num_virtual_tokens": 3}}}
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
        body = {"model": "few-words", "training_file": upload(http, path).json()["id"], "method": method, "seed": 1}
        return done_job(http, body)["fine_tuned_model"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("trusted") / "queries.csv"
    path.write_text("text,label\n" + "".join(f"{text},{('no', 'yes')[i % 2]}\n" for i, text in enumerate(TEXTS)))
    return path


def test_a_model_on_tokens_answers_at_home_as_the_service_does(url, as_if_private, tuned, source):
    with ServiceClient(url) as client:
        there = client.classify(tuned, remove_labels(as_if_private))
        here = predict_at_home(source, fetch_home_model(client, tuned), label_column="label")
    for mine, theirs in zip(here.rows, there, strict=True):
        np.testing.assert_allclose(
            list(mine["probabilities"].values()), theirs.probabilities, atol=0.02
        )  # in bfloat16 where that is faster
    assert here.right == sum(row["label"] == ("no", "yes")[i % 2] for i, row in enumerate(here.rows))


def test_the_command_answers_here_and_no_text_is_on_its_way(rapt, url, tuned, source, tmp_path, monkeypatch):
    sent = []
    send = httpx2.Client.send

    def watch(self, request, **others):
        sent.append((request.method, request.read()))
        return send(self, request, **others)

    monkeypatch.setattr(httpx2.Client, "send", watch)
    out = tmp_path / "answers.jsonl"
    outcome = rapt(
        "predict", source, "--local", "--model", tuned, "--service", url, "--label-column", "label", "--out", out
    )
    assert (outcome.code, "no budget was spent" in outcome.err, "right:" in outcome.err) == (0, True, True)
    assert {row["label"] for row in map(json.loads, out.read_text().splitlines())} <= {"no", "yes"}
    assert {method for method, _ in sent} == {"GET"}
    assert not any(body for _, body in sent)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--text-column", "text"), "must come with --local"),
        (("--local", "--text-column-2", "label"), "one text"),
        (("--local", "--backbone", "minilm"), "must"),
        (("--local", "--text-column", "none"), "none"),
    ],
)
def test_what_cannot_be_answered_at_home_is_said_in_a_line(rapt, url, tuned, source, arguments, says):
    outcome = rapt("predict", source, "--model", tuned, "--service", url, *arguments)
    assert (outcome.code == 0, outcome.err.count("\n") <= 1, says in outcome.err) == (False, True, True)


def test_words_of_ones_own_are_fused_at_home(rapt, url, tuned, source):
    own = ("--own-texts", source)
    outcome = rapt("predict", source, "--local", "--model", tuned, "--service", url, "--label-column", "label", *own)
    assert (outcome.code, "right: 24 of 24" in outcome.err) == (0, True)
    assert rapt("predict", source, "--model", tuned, "--service", url, *own).code == 2


def test_answers_replace_neither_queries_nor_texts_of_ones_own(rapt, url, tuned, source, tmp_path):
    own = tmp_path / "own.csv"
    own.write_bytes(source.read_bytes())
    arguments = ("--local", "--model", tuned, "--service", url, "--own-texts", own, "--out", own, "--overwrite")
    outcome = rapt("predict", source, *arguments)
    assert (outcome.code, own.read_bytes()) == (2, source.read_bytes())
    base = rapt("predict", source, "--local", "--model", "few-words", "--service", url)
    assert (base.code, "a tuned one" in base.err) == (2, True)


def test_an_edited_adapter_and_a_base_model_are_refused_at_home(url, tuned, source):
    with ServiceClient(url) as client:
        files = client.adapter(tuned)
        with pytest.raises(WireError, match="digest"):
            load_token_model({**files, "adapter_model.safetensors": files["adapter_model.safetensors"][:-4] + b"abcd"})
        with pytest.raises(VocabularyError):
            load_token_model(files, backbone="minilm")
        with pytest.raises(UsageError, match="labels of queries"):
            predict_at_home(source, fetch_home_model(client, tuned), label_column="text", text_column="label")


# Codes at home: a codebook whose first codewords are the codes of the texts, so that the service can be asked the same.


@pytest.fixture(scope="module")
def encoder():
    return read_encoder("few-words")


@pytest.fixture(scope="module")
def code(encoder):
    states = encoder.encode(TEXTS)
    center, directions = states.mean(axis=0), np.linalg.svd(states - states.mean(axis=0))[2][:6]
    codes = (states - center) @ directions.T
    others = np.random.default_rng(0).standard_normal((40, 6))
    words = np.concatenate([codes, others])
    return make_code_bundle(
        model="few-words",
        encoder_hash=encoder.hash,
        center=center.astype(np.float32),
        directions=directions.astype(np.float32),
        codewords=(words / np.linalg.norm(words, axis=1, keepdims=True)).astype(np.float32)[None],
        max_tokens=encoder.max_tokens,
    )


@pytest.fixture(scope="module")
def served_codes(code, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "bundle"
    write_code_bundle(code, folder)
    backbone = load_served(str(folder), name="codes", precision="auto")
    with running_service(tmp_path_factory.mktemp("data"), backbones={"codes": backbone}) as url:
        yield url


@pytest.mark.parametrize("pairs", [False, True])
def test_a_head_over_codes_answers_at_home_as_the_service_does_about_the_same_codewords(
    rapt, served_codes, code, source, pairs, tmp_path
):
    others = tmp_path / "pairs.csv"
    shifted = [*TEXTS[5:], *TEXTS[:5]]
    others.write_text("text,second\n" + "".join(f"{one},{two}\n" for one, two in zip(TEXTS, shifted, strict=True)))
    manifest = replace(codes_manifest(codewords=code.size, pairs=pairs), vocabulary_hash=code.hash)
    records = tuple(
        PrivatizedRecord(
            token_ids=(number,), label=number % 2, second_token_ids=((number + 5) % len(TEXTS),) if pairs else None
        )
        for number in range(len(TEXTS))
    )
    file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
    path = save_privatized(file, tmp_path / "training.jsonl")
    with httpx2.Client(base_url=served_codes, timeout=60, trust_env=False) as http:
        model = done_job(http, {"model": "codes", "training_file": upload(http, path).json()["id"]})["fine_tuned_model"]
    with ServiceClient(served_codes) as client:
        there = client.classify(model, remove_labels(file))
    asked = ("--text-column-2", "second") if pairs else ()
    outcome = rapt("predict", others, "--local", "--model", model, "--service", served_codes, *asked)
    here = [json.loads(line)["probabilities"] for line in outcome.out.splitlines()]
    mine, theirs = np.array([list(item.values()) for item in here]), np.array([item.probabilities for item in there])
    if pairs:
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    else:  # a clear code says more than a codeword under noise, and more surely
        assert (mine.argmax(axis=1) == theirs.argmax(axis=1)).all()


def test_an_encoder_that_is_another_is_refused_at_home(served_codes, code):
    with ServiceClient(served_codes) as client:
        files = {"adapter_model.safetensors": b"", "rapt.json": b"{}"}
        with pytest.raises(WireError):
            load_code_model(files, code=code)
        (tuned,) = [model.id for model in client.models() if model.id != model.base][:1]
        with pytest.raises(VocabularyError, match="the encoder must be the one"):
            load_code_model(client.adapter(tuned), code=code, encoder="minilm")
