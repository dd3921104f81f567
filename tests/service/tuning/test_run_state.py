import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from rapt.errors import TuningError, VocabularyError, WireError
from rapt.service.tuning.run_state import STATE, TENSORS, load_run_state, save_run_state
from rapt.service.tuning.tuner import ReconstructionConfig, TuningCancelled, tune
from rapt.service.tuning.tuning_config import make_default_config
from tuning_material import separable_file

STEPS = 12  # 3 epochs of 4 batches


@pytest.fixture(scope="module")
def file(backbone):
    return separable_file(backbone, plain=4)


@pytest.fixture(scope="module")
def validation(backbone):
    return separable_file(backbone, records=16, plain=4, seed=7)


def config_of(method, **changes):
    reconstruction = ReconstructionConfig(weight=0.5, head_size=8, schedule="fall")
    own = {"reparametrization_size": 16} if method == "p_tuning" else {}
    return dataclasses.replace(
        make_default_config(method), prompt_length=4, batch_size=16, reconstruction=reconstruction, **own, **changes
    )


def tensors_of(adapter):
    tuned = adapter.tuned
    pairs = {f"{name}/{part}": getattr(pair, part) for name, pair in tuned.lora.items() for part in "ab"}
    own = {"prompt": tuned.prompt, "prefix": tuned.prefix, **pairs}
    return {name: value for name, value in own.items() if value is not None} | {
        "weight": adapter.head_weight,
        "bias": adapter.head_bias,
    }


def identical(first, second):
    left, right = tensors_of(first), tensors_of(second)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def interrupted(backbone, file, *, config, at, folder, validation=None):
    """Stop a run after `at` steps, through files, and go on in a new one."""
    made, kept = [], []
    with pytest.raises(TuningCancelled):
        tune(
            backbone,
            file,
            config=config,
            validation=validation,
            on_progress=made.append,
            should_stop=lambda: len(made) == at,
            on_run_state=lambda state, adapter: kept.append(state),
        )
    assert kept[-1].step == at
    save_run_state(kept[-1], folder)
    return tune(backbone, file, config=config, validation=validation, resume_from=load_run_state(folder))


@pytest.mark.parametrize("at", [0, 1, 4, 7, 11])
def test_a_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(backbone, file, tmp_path, at):
    config = config_of("prompt_tuning")
    undisturbed = tune(backbone, file, config=config)
    resumed = interrupted(backbone, file, config=config, at=at, folder=tmp_path / "state")
    assert identical(resumed, undisturbed)
    assert resumed.card == undisturbed.card


@pytest.mark.parametrize("method", ["p_tuning", "prefix_tuning", "lora"])
def test_every_method_resumes_in_the_middle_of_an_epoch(backbone, file, tmp_path, method):
    config = config_of(method)
    resumed = interrupted(backbone, file, config=config, at=6, folder=tmp_path / "state")
    assert identical(resumed, tune(backbone, file, config=config))


def test_the_best_so_far_survives_a_pause(backbone, file, validation, tmp_path):
    config = config_of("prompt_tuning", learning_rate=2.0, patience=2, epochs=6)
    undisturbed = tune(backbone, file, config=config, validation=validation)
    assert undisturbed.card.metrics["best_step"] < undisturbed.card.metrics["step"]  # else nothing is tested
    resumed = interrupted(backbone, file, config=config, at=9, folder=tmp_path / "state", validation=validation)
    assert identical(resumed, undisturbed)
    assert resumed.card.metrics == undisturbed.card.metrics


def test_a_resume_that_forgets_the_optimizer_would_be_seen(backbone, file, tmp_path):
    config = config_of("prompt_tuning")
    kept = []
    tune(backbone, file, config=config, on_run_state=lambda state, adapter: kept.append(state))
    forgetful = dataclasses.replace(
        kept[0], tensors={name: value for name, value in kept[0].tensors.items() if name.startswith("parameter/")}
    )
    resumed = tune(backbone, file, config=config, resume_from=forgetful)
    assert not identical(resumed, tune(backbone, file, config=config))


def test_run_states_come_when_asked_for_and_at_the_end_of_an_epoch_otherwise(backbone, file):
    for every, expected in ((0, [4, 8, 12]), (5, [5, 10])):
        kept = []
        tune(
            backbone,
            file,
            config=config_of("prompt_tuning"),
            on_run_state=lambda state, adapter, kept=kept: kept.append(state.step),
            run_state_every=every,
        )
        assert kept == expected


def test_a_run_state_comes_with_the_adapter_it_would_leave(backbone, file):
    kept = []
    config = config_of("prompt_tuning")
    last = tune(backbone, file, config=config, on_run_state=lambda state, adapter: kept.append(adapter))
    assert identical(kept[-1], last)
    assert not identical(kept[0], last)


@pytest.fixture
def saved(backbone, file, tmp_path):
    kept = []
    tune(
        backbone,
        file,
        config=config_of("prompt_tuning"),
        on_run_state=lambda state, adapter: kept.append(state),
    )
    save_run_state(kept[0], tmp_path / "state")
    return tmp_path / "state"


def test_a_run_state_is_tensors_and_json_and_nothing_else(saved):
    assert sorted(path.name for path in saved.iterdir()) == [STATE, TENSORS]
    assert json.loads((saved / STATE).read_text())["step"] == 4
    assert {name.split("/")[0] for name in load_file(saved / TENSORS)} == {"parameter", "optimizer"}


def test_a_run_state_of_another_backbone_is_refused(backbone, file, saved):
    state = load_run_state(saved)
    other = dataclasses.replace(state, run=dataclasses.replace(state.run, model="minilm"))
    with pytest.raises(VocabularyError, match="continued on the backbone it was made on, got 'bert-tiny' for one of"):
        tune(backbone, file, config=config_of("prompt_tuning"), resume_from=other)


@pytest.mark.parametrize(
    ("change", "named"), [({"learning_rate": 0.5}, "settings"), ({"epochs": 9}, "settings"), ({}, "training")]
)
def test_a_run_state_of_another_run_is_refused(backbone, file, saved, change, named):
    training = file if change else separable_file(backbone, plain=4, seed=1)
    with pytest.raises(TuningError, match=f"continued as it was begun, got another {named}"):
        tune(backbone, training, config=config_of("prompt_tuning", **change), resume_from=load_run_state(saved))


def test_a_damaged_run_state_is_refused(saved):
    tensors = bytearray((saved / TENSORS).read_bytes())
    tensors[-1] ^= 1
    (saved / TENSORS).write_bytes(tensors)
    with pytest.raises(WireError, match="must match the digest"):
        load_run_state(saved)


def test_a_run_state_without_one_of_its_files_is_refused(saved):
    (saved / TENSORS).unlink()
    with pytest.raises(WireError, match=r"must have run_state\.json and run_state\.safetensors"):
        load_run_state(saved)


def test_a_run_state_of_an_unknown_version_is_refused(saved):
    state = saved / STATE
    state.write_text(state.read_text().replace("rapt.run-state/1", "rapt.run-state/9"))
    with pytest.raises(WireError, match="must be of schema"):
        load_run_state(saved)


def test_a_loss_that_is_not_finite_leaves_the_last_run_state_good(backbone, file, tmp_path):
    kept = []
    with pytest.raises(TuningError, match="got nan or infinity after step=") as error:
        tune(
            backbone,
            file,
            config=config_of("prompt_tuning", learning_rate=1e30),
            on_run_state=lambda state, adapter: kept.append(state),
            run_state_every=1,
        )
    assert f"step={kept[-1].step};" in str(error.value)
    save_run_state(kept[0], tmp_path / "good")
    assert all(bool(value.isfinite().all()) for value in load_run_state(tmp_path / "good").tensors.values())
