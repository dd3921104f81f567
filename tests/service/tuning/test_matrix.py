"""Every backbone × method × task: it trains, stops, resumes, is saved, is loaded, and predicts the same."""

import dataclasses
from itertools import product

import pytest
import torch

from rapt.service.adapter.adapter import adapter_to_files, load_adapter, save_adapter
from rapt.service.adapter.methods import METHODS
from rapt.service.answers.prediction import classify, row_of
from rapt.service.backbone.layout import encode_with_prompts
from rapt.service.backbone.steering import steer
from rapt.service.tuning.run_state import load_run_state, save_run_state
from rapt.service.tuning.tasks import TASKS
from rapt.service.tuning.tuner import ReconstructionConfig, TuningCancelled, tune
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.manifest import PlainTokens
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from tiny_backbones import TINY
from tuning_material import check_recomputed_gradient, manifest_for

# A pair is a layout, not a task, and gets its own row of the matrix.
TASK_ROWS = ("classification", "pairs", "label_words", "generation")
CELLS = [
    (architecture, method, row)
    for architecture, method, row in product(TINY, METHODS, TASK_ROWS)
    if (architecture, row) != ("bert", "generation")
    and ("classification" if row == "pairs" else row) in METHODS[method].tasks
]
RECORDS, PLAIN = 16, 3


def file_for(backbone, row):
    """Two classes of different words; the target of a text is its own class's words."""
    eligible = backbone.bundle.eligible.tolist()
    words = (eligible[5:9], eligible[15:19])
    pool = tuple(eligible[:5])
    made = []
    for position in range(RECORDS):
        own = words[position % 2]
        made.append(
            PrivatizedRecord(
                token_ids=tuple(own[(position + step) % 4] for step in range(2 + position % 3)),
                label=position % 2,
                privatized_plain_tokens=pool[1 : PLAIN + 1],
                plain_tokens=pool[:PLAIN],
                second_token_ids=tuple(own[:2]) if row == "pairs" else None,
                target_ids=tuple(own[:2]) if row == "generation" else None,
            )
        )
    manifest = manifest_for(backbone, plain_tokens=PlainTokens(count=PLAIN, pool=pool, fixed=None))
    manifest = dataclasses.replace(manifest, pairs=row == "pairs", targets="public" if row == "generation" else None)
    return PrivatizedFile(manifest=seal_manifest(manifest, made), records=tuple(made))


def config_for(method, row):
    return dataclasses.replace(
        make_default_config(method),
        task="classification" if row == "pairs" else row,
        label_words=("good", "bad") if row == "label_words" else (),
        prompt_length=2,
        epochs=6,
        batch_size=RECORDS,  # every step sees every record, so that one loss can be held against another
        reconstruction=None if not METHODS[method].reconstructs else ReconstructionConfig(weight=0.1, head_size=4),
    )


def answers(backbone, file, adapter):
    """Class probabilities, or the loss of the targets: a number of each record."""
    if adapter.card.task != "generation":
        return torch.tensor(classify(backbone, [row_of(record, adapter=adapter) for record in file.records]))
    task, losses = TASKS["generation"], []
    for record in file.records:
        steering = steer([adapter.tuned])
        layout = task.lay_out(backbone, [record], prompt_lengths=steering.prompt_lengths, plain=True)
        states = encode_with_prompts(backbone, layout, steering.prompts, steering=steering)
        outcome = task.outcome(
            backbone, states, layout, [record], torch.nn.Identity(), label_privacy=None, steering=steering
        )
        losses.append(outcome.loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.reconstructs])
@pytest.mark.parametrize("architecture", TINY)
def test_layers_that_are_computed_again_give_the_same_gradient(tiny, architecture, method):
    backbone = tiny(architecture)
    row = "classification" if architecture == "bert" else "generation"
    check_recomputed_gradient(backbone, file_for(backbone, row), config=config_for(method, row))


@pytest.mark.parametrize(("architecture", "method", "row"), CELLS, ids=map("-".join, CELLS))
def test_every_cell_trains_resumes_is_saved_and_predicts(tiny, tmp_path, architecture, method, row):
    backbone = tiny(architecture)
    file, config, steps, kept = file_for(backbone, row), config_for(method, row), [], []
    whole = tune(backbone, file, config=config, on_progress=steps.append)
    losses = [progress.losses["train_loss"] for progress in steps]
    assert losses[-1] < losses[0]

    seen = []
    with pytest.raises(TuningCancelled):
        tune(
            backbone,
            file,
            config=config,
            on_progress=seen.append,
            should_stop=lambda: len(seen) == 2,
            on_run_state=lambda state, adapter: kept.append(state),
        )
    save_run_state(kept[-1], tmp_path / "state")
    resumed = tune(backbone, file, config=config, resume_from=load_run_state(tmp_path / "state"))

    save_adapter(resumed, tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", backbone=backbone)
    assert loaded.card.task == config.task
    assert loaded.card.kind == backbone.kind
    assert adapter_to_files(loaded) == adapter_to_files(resumed)  # what goes out comes in, and out again
    torch.testing.assert_close(answers(backbone, file, loaded), answers(backbone, file, whole), atol=0, rtol=0)
