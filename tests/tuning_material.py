"""Privatized files made by hand for the tests of the service room: token ids only, no mechanism runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from manifest_material import hand_made_manifest
from rapt.service.adapter.adapter import adapter_to_files
from rapt.service.tuning.run import Run
from rapt.service.tuning.tuner import TuningCancelled, tune
from rapt.wire.manifest import NO_PLAIN_TOKENS, PlainTokens
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest

POOL = (2204, 2919, 2307, 6659, 3376, 3866, 2312, 2235)


def manifest_for(backbone, **others):
    mechanism = MechanismSetting(name="laplace", parameters={"eta": 60.0})
    return hand_made_manifest(model=backbone.model, vocabulary_hash=backbone.bundle.hash, mechanism=mechanism, **others)


def separable_file(backbone, *, records=64, plain=0, fixed=False, seed=0):
    """Two classes told apart by the words they are drawn from; plain tokens stand for themselves half of the time."""
    rng = np.random.default_rng(seed)
    words = (np.array([2204, 2307, 6659, 3376]), np.array([2919, 6659 + 1, 9202, 10231]))
    pool = PlainTokens(count=plain, pool=POOL, fixed=POOL[:plain] if fixed else None) if plain else NO_PLAIN_TOKENS
    made = []
    for position in range(records):
        label = position % 2
        length = int(rng.integers(3, 12))
        own = tuple(int(i) for i in rng.choice(POOL, size=plain))
        true = pool.fixed or own
        noisy = tuple(int(i) if rng.random() < 0.5 else int(rng.integers(2000, 20000)) for i in true)
        made.append(
            PrivatizedRecord(
                token_ids=tuple(int(i) for i in rng.choice(words[label], size=length)),
                label=label,
                privatized_plain_tokens=noisy if plain else (),
                plain_tokens=own if plain and not fixed else None,
            )
        )
    return PrivatizedFile(manifest=seal_manifest(manifest_for(backbone, plain_tokens=pool), made), records=tuple(made))


def few_words_file(backbone, *, targets=False):
    """Eight records of a backbone of any vocabulary: two classes of different words, and perhaps a text to write."""
    ids = backbone.bundle.eligible.tolist()
    words = (ids[5:10], ids[15:20])
    records = tuple(
        PrivatizedRecord(
            token_ids=tuple(words[place % 2][: 3 + place % 3]),
            label=place % 2,
            target_ids=tuple(words[place % 2][:2]) if targets else None,
        )
        for place in range(8)
    )
    manifest = replace(manifest_for(backbone), targets="public" if targets else None)
    return PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)


def check_recomputed_gradient(backbone, file, *, config):
    """The gradient of a step has the same bits where layers are computed again, and that less is kept is seen."""
    found, kept = [], []
    for recompute in (False, True):
        run = Run(backbone, file, validation=None, config=config, warn=print, recompute=recompute)
        counted = set()

        def count(tensor, counted=counted):
            counted.add((tensor.data_ptr(), tensor.nbytes))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            next(run.make_steps())
        found.append({name: value.grad for name, value in run._tuning.trained().items()})
        kept.append(sum(size for _, size in counted))
    for name, gradient in found[0].items():  # that of a part which the task does not use is None
        again = found[1][name]
        assert torch.equal(gradient, again) if gradient is not None else again is None, name
    assert kept[1] < kept[0]


def tune_stop_and_resume(backbone, file, *, config):
    """The adapter of a run that was stopped and resumed, and the state it was resumed from.

    The loss of the run falls, and without a stop the run ends in the same bits.
    """
    steps, kept = [], []
    whole = tune(backbone, file, config=config, on_progress=steps.append)
    assert steps[-1].losses["train_loss"] < steps[0].losses["train_loss"]
    with pytest.raises(TuningCancelled):
        tune(
            backbone,
            file,
            config=config,
            should_stop=iter([False, False, True]).__next__,
            on_run_state=lambda state, adapter: kept.append(state),
        )
    resumed = tune(backbone, file, config=config, resume_from=kept[-1])
    assert adapter_to_files(resumed) == adapter_to_files(whole)
    return resumed, kept[-1]
