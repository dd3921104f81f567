"""Tuning: what a method trains on a frozen backbone, on privatized text, with L = L_task + λ L_rec (RAPT, Eq. 10)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from rapt.errors import TuningError
from rapt.service.adapter.adapter import Adapter
from rapt.service.adapter.methods import PROMPT_TUNING
from rapt.service.backbone.backbone import Backbone
from rapt.service.tuning.code_head import is_solved, tune_code_head
from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.processes import ALONE, Processes, join_processes
from rapt.service.tuning.result import Progress, TuningCancelled, check_validation_file, check_validation_manifest
from rapt.service.tuning.run import Run, batches_per_epoch
from rapt.service.tuning.run_state import RunState
from rapt.service.tuning.tasks import TASKS
from rapt.service.tuning.tuning_config import ReconstructionConfig, TuningConfig
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord
from rapt.wire.vocabulary_bundle import check_hash

# One import for whoever tunes; what is not listed is for the room.
__all__ = [
    "PROMPT_TUNING",
    "Processes",
    "Progress",
    "ReconstructionConfig",
    "Tuning",
    "TuningCancelled",
    "TuningConfig",
    "batches_per_epoch",
    "check_training_file",
    "check_validation_manifest",
    "join_processes",
    "tune",
]

log = logging.getLogger(__name__)


def tune(
    backbone: Backbone,
    training: PrivatizedFile,
    *,
    config: TuningConfig,
    validation: PrivatizedFile | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_run_state: Callable[[RunState, Adapter], None] | None = None,
    run_state_every: int = 0,
    on_epoch: Callable[[Progress, Adapter], None] | None = None,
    resume_from: RunState | None = None,
    on_warning: Callable[[str], None] = log.warning,
    processes: Processes = ALONE,
    recompute: bool = False,
) -> Adapter:
    """An adapter tuned on a privatized file.

    Args:
        backbone: Frozen; left as it is found.
        training: Privatized with the backbone's vocabulary, with labels or targets.
        config: Settings of the run.
        validation: Privatized likewise. It is evaluated after every epoch, and the adapter is the one of the lowest
            loss on it; `config.patience` may end the run early.
        on_progress: Called after each step.
        should_stop: Asked before each step.
        on_run_state: Given the state of the run, and the adapter that it would leave, every so many steps and when
            the run is asked to stop.
        run_state_every: Steps between run states; 0 makes them at the end of each epoch.
        on_epoch: Given the last step of each epoch, and the adapter of what is trained by then.
        resume_from: Goes on from there, to the same numbers as a run that was never stopped.
        on_warning: Told what went otherwise than asked, such as memory that was too small for a batch.
        processes: Result of `join_processes`, where several train together; each must be given all the same. Only the
            first one reports, is asked whether to stop, and hands anything over; every one has the adapter at last.
        recompute: Whether layers are computed again on the way back, which takes a third more time and much less
            memory, and gives the same gradient. Without it a run does so once memory is too small for one record.

    Raises:
        TuningError: The file has no labels or one class only, no plain tokens to reconstruct, or a loss that is
            not finite; or the run state is of another run.
        TuningCancelled: `should_stop` said yes.
        VocabularyError: The file was privatized with another vocabulary, or the run state made on another backbone.
        UsageError: A record does not fit the backbone.
    """
    training = spell_file(backbone, training)
    check_training_file(backbone, training, config=config)
    if validation is not None:
        validation = spell_file(backbone, validation)
        check_validation_file(training, validation)
        check_records(backbone, validation, config=config)
    if is_solved(config, backbone=backbone):
        return tune_code_head(
            backbone,
            training,
            config=config,
            validation=validation,
            on_progress=on_progress if processes.first else lambda progress: None,
            should_stop=lambda: processes.as_first_says(should_stop()),
            on_warning=on_warning if processes.first else lambda message: None,
        )
    run = Run(
        backbone,
        training,
        validation=validation,
        config=config,
        warn=on_warning,
        processes=processes,
        recompute=recompute,
    )
    if resume_from is not None:
        run.restore(resume_from)

    def hand_over() -> None:
        if on_run_state is not None and processes.first:
            on_run_state(run.state(), run.adapter())

    for progress in run.make_steps(should_stop):
        if processes.first:
            on_progress(progress)
        if on_epoch is not None and run.at_end_of_epoch and processes.first:
            on_epoch(progress, run.adapter())
        if run.step % run_state_every == 0 if run_state_every else run.at_end_of_epoch:
            hand_over()
    if not run.done:
        hand_over()
        raise TuningCancelled(f"tuning was asked to stop at step={run.step} of {run.steps}; start a new job")
    run.take_best()
    return run.adapter()


def spell_file(backbone: Backbone, file: PrivatizedFile) -> PrivatizedFile:
    """Spell the codes of a file for the reader of a backbone; without one the file is as it was."""
    reader = backbone.reader
    if reader is None or file.manifest.unit != "text":
        return file
    epsilon, spelled = file.manifest.mechanism.epsilon, dict[int, PrivatizedRecord]()

    def spell(record: PrivatizedRecord) -> PrivatizedRecord:
        # By identity: of a file that was read, texts of one codeword and label share a record.
        if (known := spelled.get(id(record))) is not None:
            return known
        second = record.second_token_ids
        spelled[id(record)] = made = replace(
            record,
            token_ids=reader.spell(record.token_ids, epsilon=epsilon),
            second_token_ids=None if second is None else reader.spell(second, epsilon=epsilon),
        )
        return made

    records = tuple(map(spell, file.records))
    return replace(file, records=records)


def check_training_file(backbone: Backbone, training: PrivatizedFile, *, config: TuningConfig) -> None:
    """Refuse a file that cannot be tuned on, before any work. Raises as `tune`."""
    manifest, records = training.manifest, training.records
    check_hash(backbone.bundle, expected=manifest.vocabulary_hash)
    if config.task not in TASKS:
        raise TuningError(f"the task must be one of {', '.join(TASKS)}, got task={config.task!r}")
    TASKS[config.task].check(backbone, manifest)
    if not records:
        raise TuningError("a file to tune on must have at least one record, got records=0")
    if config.task != "generation":
        _check_labels(training)
    if config.reconstruction is not None and manifest.plain_tokens.count == 0 and not backbone.plain_texts:
        raise TuningError(
            "reconstruction needs plain tokens, got plain_tokens=0; privatize with `plain_tokens`, or tune without it"
        )
    check_records(backbone, training, config=config)


def check_records(backbone: Backbone, file: PrivatizedFile, *, config: TuningConfig) -> None:
    """Refuse a record that is empty or does not fit the backbone (`UsageError`)."""
    plain = file.manifest.plain_tokens.count if config.reconstruction is not None else 0
    for position, record in enumerate(file.records):
        TASKS[config.task].check_record(
            backbone, record, prompt_length=config.prompt_positions, plain_tokens=plain, position=position
        )


def _check_labels(training: PrivatizedFile) -> None:
    named, present = training.manifest.labels or (), {record.label for record in training.records}
    if len(present) < 2:
        raise TuningError(f"a file to tune on must have two classes at least, got {len(present)}; add the other class")
    if len(present) < len(named):
        raise TuningError(
            f"every label must occur in a file to tune on, got {len(present)} of {len(named)}; "
            "privatize again without the labels that do not occur"
        )
