"""What a run will take is known before it begins, and never less than it takes."""

import gc
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from job_material import LIMITS
from rapt.errors import LimitError
from rapt.service.adapter.methods import METHODS
from rapt.service.backbone.opening import load_backbone
from rapt.service.jobs.job_limits import Sizes, bound_memory, check_cost, parameters_of
from rapt.service.tuning.run import Run
from rapt.service.tuning.tuner import ReconstructionConfig, Tuning
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.manifest import NO_PLAIN_TOKENS, PlainTokens
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from tiny_backbones import TINY, tiny_backbone
from tuning_material import POOL, manifest_for
from warm_processes import run_warm

LSTM = {"reparametrization": "lstm", "reparametrization_size": 512}
WIDE = ReconstructionConfig(head_size=65)
SIZES = Sizes(batch=32, text=100, second=0, target=0, plain_tokens=0, pool=0, classes=2, tokens=0, records=0)

# Model, batch, tokens a record, method, task, changes of the run, plain tokens, tokens of a target; and `again`, where
# layers are computed again.
CASES = [
    ("bert-tiny", 64, 300, "prompt_tuning", "classification", {}, 40, 0),
    ("minilm", 8, 200, "prompt_tuning", "classification", {}, 0, 0, "again"),
    ("gpt2", 512, 40, "prompt_tuning", "classification", {}, 0, 0),
]
MORE_CASES = [
    ("minilm", 16, 200, "prompt_tuning", "classification", {}, 0, 0, "again"),
    ("bert-tiny", 32, 100, "p_tuning", "classification", LSTM, 0, 0),
    ("minilm", 16, 200, "prompt_tuning", "classification", {}, 0, 0),
    ("minilm", 8, 100, "prefix_tuning", "classification", {"prompt_length": 256}, 0, 0),
    ("minilm", 16, 100, "lora", "classification", {"lora_rank": 256}, 0, 0),
    ("llama", 512, 20, "prompt_tuning", "generation", {}, 0, 20),
    ("t5", 512, 40, "prompt_tuning", "generation", {}, 0, 40),
    ("t5", 512, 40, "prompt_tuning", "generation", {}, 0, 40, "again"),
    ("minilm", 16, 100, "lora", "classification", {"lora_rank": 256}, 0, 0, "again"),
    ("minilm", 8, 100, "prefix_tuning", "classification", {"prompt_length": 256}, 0, 0, "again"),
]


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(model, batch, tokens, method, task, changes, plain, target, again=None):
    """By how much two steps raise the resident memory beyond what it was after a small one, and the estimate."""
    if model in TINY:
        with tempfile.TemporaryDirectory() as folder:
            backbone = tiny_backbone(model, Path(folder) / "model")
    else:
        backbone = load_backbone(model, precision="float32", device="cpu")
    eligible = [int(token) for token in backbone.bundle.eligible]
    pool = NO_PLAIN_TOKENS
    if plain:
        pool = PlainTokens(count=plain, pool=tuple(eligible[:1000]), fixed=tuple(eligible[:plain]))
    records = tuple(
        PrivatizedRecord(
            token_ids=tuple(eligible[(7 * row + place) % len(eligible)] for place in range(tokens)),
            label=None if target else row % 2,
            privatized_plain_tokens=tuple(eligible[:plain]),
            target_ids=tuple(eligible[:target]) if target else None,
        )
        for row in range(batch)
    )
    manifest = manifest_for(backbone, plain_tokens=pool, labels=None if target else ("no", "yes"))
    if target:
        manifest = replace(manifest, targets="privatized")
    file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
    config = replace(make_default_config(method), task=task, batch_size=batch, epochs=2, **changes)
    if plain:
        config = replace(config, reconstruction=ReconstructionConfig())
    small = PrivatizedFile(manifest=file.manifest, records=records[:2])
    small_run = Run(backbone, small, validation=None, config=replace(config, batch_size=2), warn=print)
    next(small_run.make_steps())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run = Run(backbone, file, validation=None, config=config, warn=print, recompute=bool(again))
    steps = run.make_steps()
    next(steps)
    run.state()
    next(steps)
    sizes = replace(SIZES, batch=batch, text=tokens, target=target, plain_tokens=plain, pool=len(pool.pool))
    return status("VmHWM") - before, bound_memory(backbone, config, sizes=sizes, recompute=bool(again))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what the peak was")
@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)])
def test_an_estimate_is_not_below_what_is_measured_and_not_far_above(case, tmp_path):
    measured, estimated = run_warm(measure, *case, folder=tmp_path)
    assert measured <= estimated
    # Of what is small, what a run takes whatever its sizes are.
    assert estimated <= 6 * measured + 64 * 2**20


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_count_of_what_is_trained_is_not_below_what_is_made(method, backbones):
    backbone = backbones["bert-tiny"]
    networks = METHODS[method].reparametrizations
    for network in networks:
        changes = {"reparametrization": network, "reparametrization_size": 0 if network == "none" else 24}
        config = replace(make_default_config(method), **changes)
        if METHODS[method].reconstructs:
            config = replace(config, reconstruction=ReconstructionConfig())
        manifest = manifest_for(backbone, plain_tokens=PlainTokens(count=2, pool=POOL, fixed=POOL[:2]))
        made = sum(parameter.numel() for parameter in Tuning(backbone, manifest, config).trained().values())
        sizes = replace(SIZES, pool=len(POOL), plain_tokens=2)
        assert made <= parameters_of(backbone, config, sizes=sizes) <= 4 * made + 10_000


def file_of(**changes):
    row = {"labels": 2, "records": 100, "longest": 50, "tokens": 5000, "plain_tokens": 0}
    return SimpleNamespace(**{**row, **changes})


def refused(backbones, config, limits=LIMITS, **changes):
    with pytest.raises(LimitError) as caught:
        check_cost(config, files=[file_of(**changes)], manifest=None, backbone=backbones["bert-tiny"], limits=limits)
    return caught.value


@pytest.mark.parametrize(
    ("method", "changes", "limits", "param"),
    [
        ("prompt_tuning", {"batch_size": 1024}, {"memory_bytes": 64 * 2**20}, "batch_size"),
        ("p_tuning", LSTM, {"hidden_size": 64}, "encoder_hidden_size"),
        ("prompt_tuning", {"reconstruction": WIDE}, {"hidden_size": 64}, "reconstruction.hidden_size"),
        ("prefix_tuning", {"prompt_length": 33}, {"virtual_tokens": 32}, "num_virtual_tokens"),
        ("lora", {"lora_rank": 9}, {"rank": 8}, "r"),
        ("prompt_tuning", {"batch_size": 1, "epochs": 11}, {"steps": 1000}, "n_epochs"),
        ("prompt_tuning", {"epochs": 11}, {"records": 1000}, "n_epochs"),
    ],
)
def test_what_a_job_may_not_take_is_named_with_what_to_lower(backbones, method, changes, limits, param):
    config = replace(make_default_config(method), **changes)
    error = refused(backbones, config, replace(LIMITS, **limits), longest=400, records=100)
    assert error.param == f"method.{method}.hyperparameters.{param}"
    assert f"lower {param}, or ask the provider for a higher job_" in str(error)


def test_too_many_classes_are_refused(backbones):
    assert "at most 10000 classes" in str(refused(backbones, make_default_config("prompt_tuning"), labels=64_000))


def test_a_validation_file_that_is_read_for_hours_is_refused(backbones):
    """It is read in one go after each epoch: no other tenant's job gets its turn meanwhile."""
    config, limits = make_default_config("prompt_tuning"), replace(LIMITS, validation_records=1000)
    files = [file_of(), file_of(records=1000)]
    check_cost(config, files=files, manifest=None, backbone=backbones["bert-tiny"], limits=limits)
    files = [file_of(), file_of(records=1001)]
    with pytest.raises(LimitError, match="job_validation_records") as caught:
        check_cost(config, files=files, manifest=None, backbone=backbones["bert-tiny"], limits=limits)
    assert caught.value.param == "validation_file"


def test_layers_are_computed_again_where_memory_or_the_provider_asks_for_it():
    backbone = load_backbone("minilm", precision="float32", device="cpu")
    config = make_default_config("prompt_tuning")
    less, more = (bound_memory(backbone, config, sizes=SIZES, recompute=again) for again in (True, False))
    assert less < 0.7 * more
    row = file_of(longest=SIZES.text, tokens=0, records=SIZES.batch)

    def ask(way, memory):
        limits = replace(LIMITS, memory_bytes=memory, gradient_checkpointing=way)
        return check_cost(config, files=[row], manifest=None, backbone=backbone, limits=limits)

    between = (less + more) // 2
    assert [ask("auto", 2 * more), ask("auto", between)] == [False, True]
    assert [ask("never", 2 * more), ask("always", 2 * more)] == [False, True]
    for way, memory in (("never", between), ("auto", less // 2)):
        with pytest.raises(LimitError, match="lower batch_size"):
            ask(way, memory)


def test_memory_rises_with_the_batch_the_records_and_the_vocabulary_that_is_written(backbones):
    backbone, config = backbones["bert-tiny"], make_default_config("prompt_tuning")
    least = bound_memory(backbone, config, sizes=SIZES)
    for larger in ({"batch": 64}, {"text": 200}, {"classes": 10**6}, {"tokens": 10**7}, {"records": 10**6}):
        assert bound_memory(backbone, config, sizes=replace(SIZES, **larger)) > 1.2 * least
