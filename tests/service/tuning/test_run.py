import dataclasses
import sys

import pytest
import torch

from closeness import assert_close
from rapt.errors import TuningError, UsageError
from rapt.service.adapter.adapter import adapter_to_files
from rapt.service.backbone.opening import load_backbone
from rapt.service.backbone.placement import is_out_of_memory
from rapt.service.jobs.tuning_process import limit_memory
from rapt.service.tuning.run import Run, list_batches, split_batch
from rapt.service.tuning.tuner import ReconstructionConfig, TuningCancelled, TuningConfig, tune
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.privatized_file import PrivatizedFile, seal_manifest
from tiny_backbones import write_family
from tuning_material import few_words_file, manifest_for, separable_file
from warm_processes import run_warm

SHORT = TuningConfig(prompt_length=4, epochs=2, batch_size=16, seed=1)
WITH_L_REC = dataclasses.replace(SHORT, reconstruction=ReconstructionConfig(weight=0.5, head_size=8))


@pytest.fixture(scope="module")
def file(backbone):
    return separable_file(backbone, records=32, plain=4)


def gradients_of(backbone, file, config):
    run = Run(backbone, file, validation=None, config=config, warn=print)
    step = next(run.make_steps())
    return step, {name: value.grad.clone() for name, value in run._tuning.trained().items()}


@pytest.mark.parametrize("micro", [1, 5, 16])
def test_parts_of_a_batch_have_the_gradient_and_the_losses_of_the_whole(backbone, file, micro):
    whole, expected = gradients_of(backbone, file, WITH_L_REC)
    parts, found = gradients_of(backbone, file, dataclasses.replace(WITH_L_REC, micro_batch_size=micro))
    assert parts.losses.keys() == whole.losses.keys()
    for name, value in whole.losses.items():
        assert_close(parts.losses[name], value, of=backbone)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, of=backbone)


def test_parts_of_a_batch_hold_every_record_once():
    assert [list(part) for part in split_batch(range(5), size=2)] == [[0, 1], [2, 3], [4]]
    assert [list(part) for part in split_batch(range(5), size=0)] == [[0, 1, 2, 3, 4]]


def test_memory_that_is_too_small_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as too_much:
        torch.empty(1 << 50)
    assert is_out_of_memory(too_much.value)
    with pytest.raises(RuntimeError) as wrong:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(wrong.value)
    # What torch says of a GPU, whose memory it does not take all by itself.
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_has_every_record_once_and_an_order_of_its_own(epoch):
    lengths = [3 + position % 7 for position in range(50)]
    batches = list_batches(lengths, size=8, seed=1, epoch=epoch)
    assert sorted(position for batch in batches for position in batch) == list(range(50))
    assert len(batches) == 7
    assert batches == list_batches(lengths, size=8, seed=1, epoch=epoch)
    assert batches != list_batches(lengths, size=8, seed=1, epoch=epoch + 1)
    assert batches != list_batches(lengths, size=8, seed=2, epoch=epoch)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [0.5, 0.5]), ("rise", [0.0, 0.25]), ("fall", [0.5, 0.25])]
)
def test_the_weight_of_reconstruction_follows_its_schedule(schedule, expected):
    config = ReconstructionConfig(weight=0.5, schedule=schedule)
    assert [config.weight_at(0.0), config.weight_at(0.5)] == expected


def test_patience_ends_a_run_and_the_adapter_is_the_best_one(backbone, file):
    # The validation file has the labels the wrong way round: what is learned makes it worse, epoch by epoch.
    other = separable_file(backbone, records=16, plain=4, seed=5)
    wrong = tuple(dataclasses.replace(record, label=1 - record.label) for record in other.records)
    validation = PrivatizedFile(manifest=seal_manifest(other.manifest, wrong), records=wrong)
    steps, kept = [], {}
    adapter = tune(
        backbone,
        file,
        config=dataclasses.replace(SHORT, epochs=30, patience=2, warmup=0.0),
        validation=validation,
        on_progress=steps.append,
        on_run_state=lambda state, adapter: kept.update({state.step: adapter}),
    )
    found = {progress.step: progress.validation for progress in steps if progress.validation}
    best = min(found, key=lambda step: found[step]["full_valid_loss"])
    assert len(steps) == best + 2 * 2  # two epochs of two batches after the best
    assert len(steps) < 60
    assert adapter.card.metrics == {"step": len(steps), **steps[-1].losses, "best_step": best, **found[best]}
    assert torch.equal(adapter.prompt, kept[best].prompt)


def test_a_validation_file_of_another_mechanism_is_refused(backbone, file):
    other = separable_file(backbone, records=8, plain=4)
    mechanism = dataclasses.replace(other.manifest.mechanism, parameters={"eta": 9.0})
    strange = PrivatizedFile(manifest=dataclasses.replace(other.manifest, mechanism=mechanism), records=other.records)
    with pytest.raises(TuningError, match="must be privatized as the training file, got another value of mechanism"):
        tune(backbone, file, config=SHORT, validation=strange)


def test_a_label_that_never_occurs_is_refused(backbone, file):
    bare = tuple(dataclasses.replace(item, privatized_plain_tokens=(), plain_tokens=None) for item in file.records)
    manifest = seal_manifest(manifest_for(backbone, labels=("no", "yes", "maybe")), bare)
    with pytest.raises(TuningError, match="every label must occur in a file to tune on, got 2 of 3"):
        tune(backbone, PrivatizedFile(manifest=manifest, records=bare), config=SHORT)


def test_a_record_that_was_privatized_to_nothing_is_refused_by_its_position(backbone, file):
    empty = (*file.records[:3], dataclasses.replace(file.records[3], token_ids=()), *file.records[4:])
    with pytest.raises(UsageError, match="record 4 must have at least one token"):
        tune(backbone, PrivatizedFile(manifest=file.manifest, records=empty), config=SHORT)


def test_a_run_that_is_resumed_may_compute_its_layers_again_and_ends_in_the_same_bits(backbone, file):
    kept = []
    whole = tune(backbone, file, config=WITH_L_REC)
    with pytest.raises(TuningCancelled):
        tune(
            backbone,
            file,
            config=WITH_L_REC,
            recompute=True,
            should_stop=iter([False, False, True]).__next__,
            on_run_state=lambda state, adapter: kept.append(state),
        )
    assert adapter_to_files(tune(backbone, file, config=WITH_L_REC, resume_from=kept[-1])) == adapter_to_files(whole)


def tune_short_of_memory(folder, mebibytes):
    backbone = load_backbone(str(folder), precision="float32", device="cpu")
    file = few_words_file(backbone)
    ids = backbone.bundle.eligible.tolist()
    long = tuple(dataclasses.replace(record, token_ids=tuple((ids * 250)[:250])) for record in file.records[:2])
    config = dataclasses.replace(make_default_config("prompt_tuning"), prompt_length=2, epochs=1, batch_size=2)
    tune(backbone, file, config=config)
    limit_memory(mebibytes * 2**20)
    warnings = []
    tune(backbone, PrivatizedFile(manifest=file.manifest, records=long), config=config, on_warning=warnings.append)
    return warnings


@pytest.mark.skipif(sys.platform != "linux", reason="the limit holds for all memory on Linux alone")
def test_where_one_record_is_too_large_its_layers_are_computed_again(tmp_path):
    """A record keeps about 90 MiB for its gradient, and 10 MiB where only what goes into layers is kept.

    The C library must give the blocks of failed steps back: what it keeps counts within the limit.
    """
    sizes = {"num_hidden_layers": 40, "hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": 300}
    folder = write_family("roberta", tmp_path / "deep", **sizes)
    assert run_warm(tune_short_of_memory, folder, 32, folder=tmp_path) == [
        "memory is too small for 2 records at once: computing 1 at a time from step=0 on, with the same gradient",
        "memory is too small for one record: computing each layer again in place of keeping what it holds from step=0 "
        "on, with the same gradient",
    ]
