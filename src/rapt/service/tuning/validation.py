"""Early stopping: a privatized validation file says when a run was at its best, and when it will not be better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rapt.errors import TuningError
from rapt.service.tuning.losses import Tuning
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedFile


@dataclass(frozen=True)
class Evaluation:
    """Mean L_task in nats and share of right answers, over a validation file."""

    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Best:
    """The best evaluation so far.

    Attributes:
        loss: Its validation loss; infinite before the first.
        accuracy: Its validation accuracy.
        step: Steps made by then.
        since: Evaluations after it.
        parameters: What was trained by then.
    """

    loss: float = float("inf")
    accuracy: float = 0.0
    step: int = 0
    since: int = 0
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    def after(self, evaluation: Evaluation, *, step: int, tuning: Tuning) -> Best:
        """The best of this and a new evaluation of what `tuning` holds now; a tie keeps the earlier."""
        if not evaluation.loss < self.loss:
            return replace(self, since=self.since + 1)
        parameters = {name: value.detach().clone() for name, value in tuning.trained().items()}
        return Best(loss=evaluation.loss, accuracy=evaluation.accuracy, step=step, parameters=parameters)


@torch.no_grad()
def evaluate(tuning: Tuning, validation: PrivatizedFile, *, batch_size: int) -> Evaluation:
    """L_task and accuracy of what `tuning` holds now, in batches of similar length."""
    records = sorted(validation.records, key=lambda record: len(record.token_ids))
    loss, right, total = 0.0, 0.0, 0
    for first in range(0, len(records), batch_size):
        losses = tuning.losses(records[first : first + batch_size])
        loss += losses.task.item() * losses.total
        right += losses.right.item()
        total += losses.total
    return Evaluation(loss=loss / total, accuracy=right / total)


def check_validation_file(training: PrivatizedFile, validation: PrivatizedFile) -> None:
    """Refuse a validation file that says nothing about the training file. Raises as `check_validation_manifest`."""
    if not validation.records:
        raise TuningError("a validation file must have at least one record, got records=0")
    check_validation_manifest(training.manifest, validation.manifest)


def check_validation_manifest(training: Manifest, validation: Manifest) -> None:
    """Refuse a validation file that was made otherwise than the training file, by what the two say of themselves.

    Raises:
        TuningError: It has no records, or another vocabulary, mechanism, labels, targets, texts or plain tokens.
    """
    if not validation.records:
        raise TuningError("a validation file must have at least one record, got records=0")
    for name in ("vocabulary_hash", "mechanism", "labels", "targets", "pairs"):
        if getattr(training, name) != getattr(validation, name):
            raise TuningError(
                f"a validation file must be privatized as the training file, got another {name}; "
                "privatize it with the same settings"
            )
    ours, theirs = training.plain_tokens, validation.plain_tokens
    if (ours.count, ours.pool) != (theirs.count, theirs.pool):
        raise TuningError(
            f"a validation file must have the training file's plain tokens, got {theirs.count} of a pool of "
            f"{len(theirs.pool)} for {ours.count} of {len(ours.pool)}; privatize it with the same settings"
        )
