"""Results of a run: its figures of each step, those of validation, and the adapter that it leaves with its card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rapt.errors import TuningError
from rapt.service.adapter.adapter import Adapter
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import LoraPair, Tuned
from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.tuning_config import TuningConfig, list_card_settings
from rapt.training import Losses
from rapt.version import __version__
from rapt.wire.adapter_files import AdapterCard
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedFile


class TuningCancelled(TuningError):
    """Somebody asked the run to stop. What was reached was handed to `on_run_state`."""

    code = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a run.

    Losses have one name from here to the event of a job, to a checkpoint, to the card and to the page. The names are
    those of OpenAI's API: `train_loss`, L_task, and `full_valid_loss` in nats, and the shares of right answers
    `train_mean_token_accuracy`, on the step's own batch, and `full_valid_mean_token_accuracy`; ours is
    `reconstruction_loss`, L_rec, where there is one.

    Attributes:
        step: Steps made, this one included.
        steps: Number of steps of the whole run.
        epoch: Epoch of the step, from 0.
        losses: Losses and accuracy of the step, by name.
        validation: Loss and accuracy on the validation file, at a step after which it was evaluated; empty otherwise.
        last: Whether no step follows: all were made, or validation says that none is worth making.
    """

    step: int
    steps: int
    epoch: int
    losses: Losses
    validation: Losses = field(default_factory=dict)
    last: bool = False


# Early stopping: a privatized validation file says when a run was at its best, and when it will not be better.


@dataclass(frozen=True, eq=False)
class Best:
    """The best evaluation so far.

    Attributes:
        losses: Loss and accuracy on the validation file, by name; empty before the first evaluation.
        step: Steps made by then.
        since: Evaluations after it.
        parameters: Trained parameters of that step.
    """

    losses: Losses = field(default_factory=dict)
    step: int = 0
    since: int = 0
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    def after(self, losses: Losses, *, step: int, tuning: Tuning) -> Best:
        """The best of this and a new evaluation of what `tuning` holds now; a tie keeps the earlier."""
        if not losses["full_valid_loss"] < self.losses.get("full_valid_loss", math.inf):
            return replace(self, since=self.since + 1)
        parameters = {name: value.detach().clone() for name, value in tuning.trained().items()}
        return Best(losses=losses, step=step, parameters=parameters)


@torch.no_grad()
def evaluate(tuning: Tuning, validation: PrivatizedFile, *, batch_size: int) -> Losses:
    """Mean L_task and accuracy of what `tuning` holds now, in batches of similar length."""
    records = sorted(validation.records, key=lambda record: len(record.token_ids))
    loss, right, total = 0.0, 0.0, 0
    for first in range(0, len(records), batch_size):
        losses = tuning.losses(records[first : first + batch_size])
        loss += losses.task.item() * losses.total
        right += losses.right.item()
        total += losses.total
    return {"full_valid_loss": loss / total, "full_valid_mean_token_accuracy": right / total}


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
                f"a validation file must be privatized as the training file, got another value of {name}; "
                "privatize it with the same settings"
            )
    ours, theirs = training.plain_tokens, validation.plain_tokens
    if (ours.count, ours.pool) != (theirs.count, theirs.pool):
        raise TuningError(
            f"a validation file must have the training file's plain tokens, got {theirs.count} of a pool of "
            f"{len(theirs.pool)} for {ours.count} of {len(ours.pool)}; privatize it with the same settings"
        )


@torch.no_grad()
def adapter_of(
    backbone: Backbone,
    training: PrivatizedFile,
    tuning: Tuning,
    *,
    config: TuningConfig,
    metrics: Mapping[str, float | int],
) -> Adapter:
    """A copy of what `tuning` holds now. The reconstruction head is dropped here (RAPT, Sec. 3)."""
    manifest = training.manifest
    tuned = _detach(tuning.tuned())
    settings = list_card_settings(config) | {"records": manifest.records}
    if manifest.label_privacy is not None:
        settings |= {"label_epsilon": float(manifest.label_privacy.epsilon)}
    card = AdapterCard(
        model=backbone.model,  # not the file's: it may name another of the same vocabulary
        vocabulary_hash=manifest.vocabulary_hash,
        reader=None if backbone.reader is None else backbone.reader.hash,
        kind=backbone.kind,
        method=config.method,
        task=config.task,
        pairs=manifest.pairs,
        labels=() if config.task == "generation" else manifest.labels or (),
        mechanism=manifest.mechanism,
        plain_tokens=0 if config.reconstruction is None else manifest.plain_tokens.count,
        prompt_length=tuned.prompt_length if tuned.prefix is None else tuned.prefix.shape[3],
        training=settings,
        metrics=dict(metrics),
        weights_sha256="",
        created_by=f"rapt {__version__}",
    )
    head = dict(tuning.task_head.named_parameters())
    none = torch.zeros(0, backbone.hidden_size, device=backbone.device)
    return Adapter(
        tuned=tuned,
        head_weight=head["linear.weight"].detach().clone() if head else none,
        head_bias=head["linear.bias"].detach().clone() if head else none[:, 0],
        card=card,
    )


def _detach(tuned: Tuned) -> Tuned:
    return Tuned(
        prompt=None if tuned.prompt is None else tuned.prompt.detach().clone(),
        prefix=None if tuned.prefix is None else tuned.prefix.detach().clone(),
        lora={
            name: LoraPair(a=pair.a.detach().clone(), b=pair.b.detach().clone()) for name, pair in tuned.lora.items()
        },
    )
