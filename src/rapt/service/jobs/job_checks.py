"""Decisions and refusals when a job is asked for, and not hours later, when its turn has come.

Method `auto` is what this service knows to work best for a file: prompt tuning. The backbone is, of those that are
served with the vocabulary that was asked for, one that was distilled for the noise of the file (`rapt denoise`): on
SST-2 that is worth more than anything else that was tried at no cost in privacy (docs/results/tuning.md). Where none is
served, it is the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from rapt.service.adapter.methods import METHODS
from rapt.service.backbone.backbone import Backbone
from rapt.service.jobs.hyperparameters import check_fit
from rapt.service.jobs.job_limits import JobLimits, check_cost
from rapt.service.storage.file_rows import StoredFile, open_file
from rapt.service.storage.store import Store
from rapt.service.tuning.code_head import check_code_config, is_solved
from rapt.service.tuning.tasks import TASKS, label_word_ids
from rapt.service.tuning.tuner import TuningConfig, check_validation_manifest
from rapt.wire.manifest import Manifest
from rapt.wire.mechanism_setting import parse_mechanism
from rapt.wire.privatized_file import iterate_privatized_lines, read_bounded_lines


def choose_backbone(asked: Backbone, served: Iterable[Backbone], *, file: StoredFile) -> Backbone:
    """The served backbone to tune on; of several that expect the file's noise, the one for the fewest settings."""
    setting = parse_mechanism(file.mechanism)
    if asked.expects is not None and asked.expects.covers(setting):
        return asked
    fitting = [
        (len(backbone.expects.etas), backbone.model, backbone)
        for backbone in served
        if backbone.expects is not None
        and backbone.bundle.hash == asked.bundle.hash
        and backbone.expects.covers(setting)
    ]
    return min(fitting, key=lambda item: item[:2])[2] if fitting else asked


def check_job(
    config: TuningConfig,
    store: Store,
    *,
    training: StoredFile,
    validation: StoredFile | None,
    backbone: Backbone,
    limits: JobLimits,
) -> None:
    """Refuse a job that would take too much, or whose files, targets or words do not go with its backbone.

    Args:
        config: Settings of the run.
        store: Store of the files; their manifests are read, and not their records.
        training: Checked by itself already.
        validation: Validation file; None without one.
        backbone: Backbone of the run.
        limits: Limits of one job.

    Raises:
        LimitError: It would take too much.
        TuningError: The validation file is not one for the training file, or the method does not fit the backbone.
        UsageError: A record, or a word, does not fit the backbone.
    """
    files = [training] if validation is None else [training, validation]
    check_cost(config, files=files, manifest=None, backbone=backbone, limits=limits)
    manifest = _read_manifest(store, training)
    check_cost(config, files=files, manifest=manifest, backbone=backbone, limits=limits)
    TASKS[config.task].check(backbone, manifest)
    if is_solved(config, backbone=backbone):
        check_code_config(config)
    if validation is not None:
        check_validation_manifest(manifest, _read_manifest(store, validation))
        check_fit(config, file=validation, backbone=backbone)
    labels = manifest.labels or ()
    if config.task == "label_words":
        label_word_ids(backbone, config.label_words or labels, classes=len(labels))
    # What would be trained is made as the run makes it, but for its sizes: a network of the asked size takes memory.
    small = replace(config, prompt_length=1, lora_rank=1, reparametrization_size=1)
    METHODS[config.method].make(backbone, small, labels, torch.Generator().manual_seed(config.seed))


def _read_manifest(store: Store, file: StoredFile) -> Manifest:
    with open_file(store, file) as stream:
        manifest = next(iterate_privatized_lines(read_bounded_lines(stream)))
    assert isinstance(manifest, Manifest)
    return manifest
