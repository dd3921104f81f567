"""Method `auto`: which of the served backbones a file is tuned on."""

import io
import json
import shutil
import zipfile
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from closeness import assert_close
from http_requests import done_job, open_client, upload
from rapt.errors import VocabularyError
from rapt.public_models import find_model_folder
from rapt.service.adapter.adapter import load_adapter
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.noise_expected import CARD, NoiseExpected, read_noise_expected
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from rapt.service.jobs.job_checks import choose_backbone
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import dump_query, remove_labels
from running_service import running_service, save_privatized
from tuning_material import separable_file

EXPECTED = NoiseExpected(mechanism="laplace", options={}, etas=(50.0, 60.0))


def backbone(name, *etas, table="one"):
    expects = NoiseExpected(mechanism="laplace", options={}, etas=etas) if etas else None
    return SimpleNamespace(model=name, bundle=SimpleNamespace(hash=table), expects=expects)


def file_at(eta, mechanism="laplace"):
    return SimpleNamespace(mechanism={"name": mechanism, "parameters": {"eta": eta}})


@pytest.mark.parametrize(
    ("name", "parameters", "covered"),
    [
        ("laplace", {"eta": 50.0}, True),
        ("laplace", {"eta": 57.0}, True),
        ("laplace", {"eta": 65.9}, True),
        ("laplace", {"eta": 66.1}, False),
        ("laplace", {"eta": 45.0}, False),
        ("exponential", {"eta": 55.0}, False),
        ("laplace", {"eta": 55.0, "other": 1.0}, False),
    ],
)
def test_a_backbone_expects_the_settings_it_was_made_for(name, parameters, covered):
    assert EXPECTED.covers(MechanismSetting(name=name, parameters=parameters)) == covered


def test_the_backbone_for_the_fewest_settings_that_cover_the_file_is_taken():
    plain, wide, narrow = backbone("a"), backbone("b", 40.0, 60.0, 80.0), backbone("c", 60.0)
    served = [plain, wide, narrow]
    assert choose_backbone(plain, served, file=file_at(60.0)).model == "c"
    assert choose_backbone(plain, served, file=file_at(75.0)).model == "b"
    assert choose_backbone(plain, served, file=file_at(120.0)).model == "a"
    assert choose_backbone(plain, served, file=file_at(60.0, "exponential")).model == "a"
    assert choose_backbone(wide, served, file=file_at(60.0)).model == "b"  # who names one that fits gets it


def test_a_backbone_with_another_vocabulary_is_never_taken():
    asked = backbone("a")
    assert choose_backbone(asked, [asked, backbone("b", 60.0, table="other")], file=file_at(60.0)) is asked


@pytest.mark.parametrize("content", ["{", "{}", '{"schema": "rapt.denoised-backbone/9", "plan": {}}', "[]"])
def test_a_damaged_card_is_refused(tmp_path, content):
    (tmp_path / CARD).write_text(content)
    with pytest.raises(VocabularyError, match=r"denoising\.json must be a card"):
        read_noise_expected(tmp_path)


def test_a_service_tunes_on_the_backbone_that_expects_the_noise_and_answers_with_it(tmp_path):
    folder = tmp_path / "tiny-denoised"
    shutil.copytree(find_model_folder("bert-tiny"), folder)
    plan = {"mechanism": "laplace", "options": {}, "etas": [60.0]}
    (folder / CARD).write_text(json.dumps({"schema": "rapt.denoised-backbone/1", "plan": plan}))
    weights = load_file(folder / "model.safetensors")
    changed = next(name for name in weights if name.endswith("layer.1.output.dense.weight"))
    save_file(weights | {changed: -weights[changed]}, folder / "model.safetensors", metadata={"format": "pt"})
    backbones = load_backbones(load_settings({"models": ("bert-tiny", str(folder)), "precision": "float32"}))
    file = separable_file(backbones["bert-tiny"], records=32, plain=4, fixed=True)
    path = save_privatized(file, tmp_path / "training.jsonl")
    with (
        running_service(tmp_path / "data", backbones=backbones) as url,
        open_client(url) as http,
    ):
        training = upload(http, path).json()["id"]
        options = {"hyperparameters": {"n_epochs": 1, "num_virtual_tokens": 2}}
        for kind, base in (("auto", "tiny-denoised"), ("prompt_tuning", "bert-tiny")):
            body = {"model": "bert-tiny", "training_file": training, "method": {"type": kind, kind: options}}
            job = done_job(http, body)
            assert (job["model"], job["method"]["type"]) == (base, "prompt_tuning")
            tuned = job["fine_tuned_model"]
            assert tuned.startswith(f"ft:{base}:")
            # The user's side still knows the original's vocabulary alone: its hash is the same.
            answer = http.post("/v1/classify", json={"model": tuned, **dump_query(remove_labels(file))})
            assert answer.status_code == 200
            with zipfile.ZipFile(io.BytesIO(http.get(f"/v1/models/{tuned}/adapter").content)) as archive:
                archive.extractall(tmp_path / base)
            adapter = load_adapter(tmp_path / base, backbone=backbones[base])
            rows = [
                ClassificationRow(
                    adapter=adapter, token_ids=record.token_ids, privatized_plain_tokens=record.privatized_plain_tokens
                )
                for record in file.records
            ]
            for found, expected in zip(answer.json()["predictions"], classify(backbones[base], rows), strict=True):
                assert_close(found["probabilities"], expected, of=backbones[base])
