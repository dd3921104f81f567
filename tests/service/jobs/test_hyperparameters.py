import json
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
from pydantic import ValidationError

from rapt.errors import TuningError, UsageError
from rapt.service.adapter.methods import LINEAR_PROBING, METHODS
from rapt.service.jobs.hyperparameters import check_run, config_from_json, method_to_json, resolve_config
from rapt.service.jobs.method_options import SETTINGS, MethodOptions
from rapt.service.tuning.tuner import check_records
from rapt.service.tuning.tuning_config import ReconstructionConfig, TuningConfig, make_default_config
from rapt.wire.manifest import NO_PLAIN_TOKENS, PlainTokens
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for

WITH_PLAIN_TOKENS = SimpleNamespace(plain_tokens=4)
METHOD_NAMES = sorted(METHODS)


def resolved(method, hyperparameters):
    options = MethodOptions.model_validate({"type": method, method: {"hyperparameters": hyperparameters}})
    return resolve_config(options, file=WITH_PLAIN_TOKENS, seed=3)


def test_every_method_can_be_asked_for_by_name():
    assert set(MethodOptions.model_fields) - {"type", "auto", "supervised"} == METHODS.keys()
    assert get_args(MethodOptions.model_fields["type"].annotation) == ("auto", "supervised", *METHODS)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_what_a_request_may_say_of_a_method_is_a_setting_of_its_runs(method):
    assert set(SETTINGS[method].values()) <= set(TuningConfig.__dataclass_fields__)
    assert all(resolved(method, {}).asks(option.setting) for option in METHODS[method].options)


def test_auto_is_prompt_tuning_with_what_was_asked_of_it():
    assert resolved("auto", {"n_epochs": 7}) == resolved("prompt_tuning", {"n_epochs": 7})


def test_supervised_is_auto_with_a_factor_on_the_rate_of_the_method():
    assert resolved("supervised", {"n_epochs": 7, "batch_size": None}) == resolved("auto", {"n_epochs": 7})
    double = resolved("supervised", {"learning_rate_multiplier": 2})
    assert double == replace(resolved("auto", {}), learning_rate=2 * make_default_config("prompt_tuning").learning_rate)
    assert resolved("supervised", {"reconstruction": None}).reconstruction is None
    with pytest.raises(UsageError, match="got both"):
        resolved("supervised", {"learning_rate_multiplier": 2.0, "learning_rate": 0.5})


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_nothing_asked_is_the_default_run_of_the_method_with_reconstruction_where_it_teaches(method):
    own = ReconstructionConfig() if METHODS[method].reconstructs else None
    assert resolved(method, {}) == replace(make_default_config(method), seed=3, reconstruction=own)


def test_a_head_alone_has_nothing_to_reconstruct_with_and_reads_texts_as_they_are():
    for refused in ({"reconstruction": {"weight": 0.5}}, {"task": "label_words"}):
        with pytest.raises(TuningError, match=r"linear_probing (has nothing|trains the head)"):
            resolved(LINEAR_PROBING, refused)
    with pytest.raises(ValidationError):
        resolved(LINEAR_PROBING, {"num_virtual_tokens": 2})
    assert resolved(LINEAR_PROBING, {"reconstruction": None, "learning_rate": 0.5}).learning_rate == 0.5


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_stored_job_is_the_run_that_was_resolved(method):
    own = {"reconstruction": {"weight": 0.5, "schedule": "rise"}} if METHODS[method].reconstructs else {}
    config = resolved(method, {"n_epochs": 7, "patience": 2} | own)
    stored = json.loads(json.dumps(method_to_json(config)))
    assert config_from_json(stored, seed=3) == config


@pytest.mark.parametrize(
    ("method", "asked", "field", "value"),
    [
        ("prompt_tuning", {"initialization": "text", "init_text": "good or bad"}, "init_text", "good or bad"),
        ("p_tuning", {"encoder": "lstm"}, "reparametrization", "lstm"),
        ("prefix_tuning", {"num_virtual_tokens": 3}, "prompt_length", 3),
        ("lora", {"target_modules": ["query"]}, "lora_targets", ("query",)),
        ("lora", {"r": 4, "lora_alpha": 8.0}, "lora_rank", 4),
    ],
)
def test_what_is_asked_for_reaches_the_run(method, asked, field, value):
    assert getattr(resolved(method, asked), field) == value


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("lora", {"num_virtual_tokens": 3}),
        ("prompt_tuning", {"r": 3}),
        ("prefix_tuning", {"encoder": "lstm"}),
        ("prompt_tuning", {"reconstruction": {"schedule": "sometimes"}}),
        ("prompt_tuning", {"learning_rate": float("nan")}),
    ],
)
def test_what_a_method_does_not_have_is_refused(method, asked):
    with pytest.raises(ValidationError):
        resolved(method, asked)


def test_a_start_at_words_must_come_with_the_words():
    with pytest.raises(TuningError, match="initialization 'text' and an init_text go together"):
        resolved("prompt_tuning", {"initialization": "text"})


@pytest.fixture(scope="module", params=["bert", "t5", "llama", "gpt2"])
def backbone(request, tmp_path_factory):
    return tiny_backbone(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.mark.parametrize("task", ["classification", "label_words"])
@pytest.mark.parametrize("plain", [0, 2])
def test_a_job_is_refused_for_its_length_exactly_where_its_run_would_be(backbone, task, plain):
    """Cues and the frames of other models than BERT were left out: a run was refused that fits, or failed when made."""
    config = replace(make_default_config("prompt_tuning"), task=task, prompt_length=3)
    if plain:
        config = replace(config, reconstruction=ReconstructionConfig())
    refused = []
    for length in range(backbone.max_positions - 14, backbone.max_positions + 1):
        row = SimpleNamespace(
            vocabulary_hash=backbone.bundle.hash, labels=2, plain_tokens=plain, longest=length, id="file-1"
        )
        record = PrivatizedRecord(
            token_ids=(int(backbone.bundle.eligible[0]),) * length,
            privatized_plain_tokens=(int(backbone.bundle.eligible[0]),) * plain,
            label=0,
        )
        pool = PlainTokens(count=plain, pool=(1, 2), fixed=None) if plain else NO_PLAIN_TOKENS
        file = PrivatizedFile(manifest=manifest_for(backbone, plain_tokens=pool), records=(record,))
        outcomes = []
        for check in (
            lambda row=row: check_run(config, file=row, backbone=backbone),
            lambda file=file: check_records(backbone, file, config=config),
        ):
            try:
                check()
                outcomes.append("fits")
            except UsageError:
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1], length
        refused.append(outcomes[0])
    assert set(refused) == {"fits", "refused"}
