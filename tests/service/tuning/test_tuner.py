import dataclasses

import pytest
import torch

from rapt.errors import TuningError, UsageError, VocabularyError
from rapt.service.adapter.methods import METHODS
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.tuning.tuner import (
    ReconstructionConfig,
    Tuning,
    TuningCancelled,
    TuningConfig,
    tune,
)
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from tuning_material import manifest_for, separable_file

SHORT = TuningConfig(prompt_length=4, epochs=6, batch_size=16, learning_rate=0.02, head_learning_rate=0.02, seed=1)
WITH_L_REC = dataclasses.replace(SHORT, reconstruction=ReconstructionConfig(weight=0.5, head_size=8))


@pytest.fixture(scope="module")
def file(backbone):
    return separable_file(backbone, plain=4)


def accuracy(backbone, adapter, file):
    rows = [
        ClassificationRow(
            adapter=adapter, token_ids=record.token_ids, privatized_plain_tokens=record.privatized_plain_tokens
        )
        for record in file.records
    ]
    guesses = [max(range(2), key=answer.__getitem__) for answer in classify(backbone, rows)]
    return sum(guess == record.label for guess, record in zip(guesses, file.records, strict=True)) / len(rows)


@pytest.mark.parametrize("config", [SHORT, WITH_L_REC], ids=["prompt tuning", "RAPT"])
def test_tuning_learns_a_task_and_answers_unseen_records(backbone, file, config):
    adapter = tune(backbone, file, config=config)
    assert accuracy(backbone, adapter, separable_file(backbone, plain=4, seed=9)) > 0.9


@pytest.mark.parametrize("config", [SHORT, WITH_L_REC], ids=["prompt tuning", "RAPT"])
def test_a_gradient_reaches_the_prompt_and_none_reaches_the_backbone(backbone, file, config):
    # A public re-implementation ran the backbone under no_grad: its prompt never moved.
    tuning = Tuning(backbone, file.manifest, config)
    tuning.losses(list(file.records[:8])).combined(weight=0.5).backward()
    assert tuning.method.vectors.grad is not None
    assert (tuning.method.vectors.grad.abs().sum(dim=1) > 0).all()
    assert not any(weight.requires_grad or weight.grad is not None for weight in backbone.encoder.parameters())
    assert not backbone.word_embeddings.requires_grad


def test_reconstruction_alone_moves_the_prompt(backbone, file):
    tuning = Tuning(backbone, file.manifest, WITH_L_REC)
    losses = tuning.losses(list(file.records[:8]))
    assert losses.reconstruction is not None
    losses.reconstruction.backward()
    assert (tuning.method.vectors.grad.abs().sum(dim=1) > 0).all()
    assert all(weight.grad is None for weight in tuning.task_head.parameters())


def test_no_weight_of_the_backbone_changes(backbone, file):
    before = {name: value.clone() for name, value in backbone.encoder.state_dict().items()}
    tune(backbone, file, config=WITH_L_REC)
    assert all(torch.equal(before[name], value) for name, value in backbone.encoder.state_dict().items())


def test_the_loss_is_task_plus_weight_times_reconstruction(backbone, file):
    losses = Tuning(backbone, file.manifest, WITH_L_REC).losses(list(file.records[:8]))
    assert losses.combined(weight=0.5).item() == pytest.approx(losses.task.item() + 0.5 * losses.reconstruction.item())


def test_the_same_seed_gives_the_same_adapter(backbone, file):
    first, second = (tune(backbone, file, config=WITH_L_REC) for _ in range(2))
    assert torch.equal(first.prompt, second.prompt)
    assert torch.equal(first.head_weight, second.head_weight)


def test_without_reconstruction_plain_tokens_are_as_if_they_were_not_there(backbone, file):
    bare_records = [
        dataclasses.replace(record, privatized_plain_tokens=(), plain_tokens=None) for record in file.records
    ]
    bare = PrivatizedFile(manifest=seal_manifest(manifest_for(backbone), bare_records), records=tuple(bare_records))
    with_them, without = tune(backbone, file, config=SHORT), tune(backbone, bare, config=SHORT)
    assert torch.equal(with_them.prompt, without.prompt)
    assert with_them.card.plain_tokens == 0


def test_fixed_plain_tokens_train_too(backbone):
    adapter = tune(backbone, separable_file(backbone, plain=4, fixed=True), config=WITH_L_REC)
    assert adapter.card.plain_tokens == 4
    assert adapter.card.metrics["reconstruction_loss"] < 2.5


def test_the_reconstruction_head_is_thrown_away(backbone, file):
    adapter = tune(backbone, file, config=WITH_L_REC)
    assert adapter.prompt.shape == (4, backbone.hidden_size)
    kept = {"tuned", "head_weight", "head_bias", "card", "label_shares", "taught"}
    assert {field.name for field in dataclasses.fields(adapter)} == kept


def test_progress_counts_every_step_to_the_last(backbone, file):
    seen = []
    tune(backbone, file, config=WITH_L_REC, on_progress=seen.append)
    assert [progress.step for progress in seen] == list(range(1, 25))
    assert {progress.steps for progress in seen} == {24}
    assert seen[-1].losses["train_loss"] < seen[0].losses["train_loss"]
    assert seen[-1].losses["reconstruction_loss"] < seen[0].losses["reconstruction_loss"]


def test_a_run_stops_when_asked(backbone, file):
    steps = []
    with pytest.raises(TuningCancelled, match="step=3 of 24"):
        tune(backbone, file, config=SHORT, on_progress=steps.append, should_stop=lambda: len(steps) == 3)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(backbone, file):
    with pytest.raises(TuningError, match="the loss must stay finite, got nan or infinity after step="):
        tune(backbone, file, config=dataclasses.replace(SHORT, learning_rate=1e30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, f"the method must be one of {', '.join(METHODS)}, got"),
        ({"prompt_length": 0}, "prompt_length must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite and above 0"),
        ({"warmup": 1.0}, "warmup must be a share"),
    ],
)
def test_a_setting_that_cannot_be_trained_is_refused(change, message):
    with pytest.raises(TuningError, match=message):
        dataclasses.replace(SHORT, **change)


@pytest.mark.parametrize("change", [{"weight": -1.0}, {"weight": float("inf")}, {"head_size": 0}])
def test_a_reconstruction_that_cannot_be_trained_is_refused(change):
    with pytest.raises(TuningError, match="the reconstruction"):
        ReconstructionConfig(**change)


def test_one_class_only_is_refused(backbone, file):
    ones = tuple(record for record in file.records if record.label == 1)
    with pytest.raises(TuningError, match="two classes at least, got 1"):
        tune(backbone, PrivatizedFile(manifest=file.manifest, records=ones), config=SHORT)


def test_a_file_without_labels_is_refused(backbone):
    records = (PrivatizedRecord(token_ids=(2001,)),)
    bare = PrivatizedFile(manifest=manifest_for(backbone, labels=None), records=records)
    with pytest.raises(TuningError, match="must have labels"):
        tune(backbone, bare, config=SHORT)


def test_reconstruction_without_plain_tokens_is_refused(backbone):
    with pytest.raises(TuningError, match="reconstruction needs plain tokens"):
        tune(backbone, separable_file(backbone), config=WITH_L_REC)


def test_a_file_of_another_vocabulary_is_refused(backbone, file):
    other = dataclasses.replace(file.manifest, vocabulary_hash="sha256:" + "0" * 64)
    with pytest.raises(VocabularyError, match="vocabulary hashes must be equal"):
        tune(backbone, PrivatizedFile(manifest=other, records=file.records), config=SHORT)


def test_a_record_longer_than_the_backbone_is_refused_before_any_step(backbone, file):
    long = (*file.records, dataclasses.replace(file.records[0], token_ids=(2001,) * 600))
    steps = []
    with pytest.raises(UsageError, match="record 65 must fit into 512 positions"):
        tune(
            backbone,
            PrivatizedFile(manifest=file.manifest, records=long),
            config=SHORT,
            on_progress=steps.append,
        )
    assert steps == []
