"""Tuning: a soft prompt and a task head, on privatized text, with L = L_task + λ L_rec (RAPT, Eq. 10).

The backbone stays as it is. What is trained is the prompt, the task head and, with reconstruction, a head that is
thrown away at the end. Everything here works on token ids that were privatized before they arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import Tensor, nn

from rapt.errors import TuningError
from rapt.service.model.adapter import Adapter
from rapt.service.model.backbone import Backbone
from rapt.service.model.label_correction import task_loss
from rapt.service.model.layout import check_length, encode_with_prompts, lay_out
from rapt.service.model.reconstruction import (
    ReconstructionHead,
    plain_states,
    plain_token_targets,
    reconstruction_loss,
)
from rapt.service.model.soft_prompt import prompt_from_vocabulary
from rapt.service.model.task_head import TaskHead, pool_text
from rapt.version import __version__
from rapt.wire.adapter_card import AdapterCard
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord
from rapt.wire.vocabulary_bundle import check_hash

PROMPT_TUNING: Final = "prompt_tuning"
# Rows of one length share a batch: sorting within this many batches keeps padding low and order random enough.
_BATCHES_SORTED_TOGETHER: Final = 16


class TuningCancelled(TuningError):
    """Somebody asked the run to stop; nothing was kept."""

    code = "cancelled"


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """How privatized tokens are reconstructed.

    Attributes:
        weight: λ; 0 keeps the plain tokens in the sequence and trains nothing on them (a control).
        head_size: c, width between the head's two linear layers.
    """

    # Paper: 1 with a loss summed over m. Ours is a mean; see docs/results.md for how 0.1 was chosen.
    weight: float = 0.1
    head_size: int = 96

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if not math.isfinite(self.weight) or self.weight < 0:
            raise TuningError(f"the reconstruction weight must be finite and >= 0, got weight={self.weight}; lower it")
        if self.head_size < 1:
            raise TuningError(f"the reconstruction head must have a size >= 1, got head_size={self.head_size}")


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """One run, all of it public.

    Attributes:
        method: `prompt_tuning`.
        prompt_length: P.
        epochs: Passes over the records.
        batch_size: Records a step.
        learning_rate: Of the soft prompt, at its peak; AdamW with warm-up and linear decay to 0.
        head_learning_rate: Of both heads.
        warmup: Share of the steps that the rate takes to rise.
        seed: Of initialization and order. It protects nothing and hides nothing.
        reconstruction: None trains on the text alone and ignores the file's plain tokens.
    """

    method: str = PROMPT_TUNING
    prompt_length: int = 10
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 0.02
    head_learning_rate: float = 0.01
    warmup: float = 0.06
    seed: int = 0
    reconstruction: ReconstructionConfig | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.method != PROMPT_TUNING:
            raise TuningError(f"the method must be {PROMPT_TUNING!r}, got method={self.method!r}")
        for name in ("prompt_length", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise TuningError(f"{name} must be at least 1, got {name}={getattr(self, name)}; raise it")
        for name in ("learning_rate", "head_learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise TuningError(f"{name} must be finite and above 0, got {name}={getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise TuningError(f"warmup must be a share from 0 to 1, got warmup={self.warmup}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a run. Losses in nats; accuracy is that of the step's own batch, by the labels in the file."""

    step: int
    steps: int
    epoch: int
    task_loss: float
    reconstruction_loss: float | None
    accuracy: float


@dataclass(frozen=True, eq=False)
class Losses:
    """The parts of L for one batch, and how many rows were right."""

    task: Tensor
    reconstruction: Tensor | None
    correct: Tensor

    def total(self, config: TuningConfig) -> Tensor:
        """L = L_task + λ L_rec (RAPT, Eq. 10)."""
        if self.reconstruction is None or config.reconstruction is None:
            return self.task
        return self.task + config.reconstruction.weight * self.reconstruction


class Tuning(nn.Module):
    """All that a run trains: soft prompt, task head, and the reconstruction head if there is one."""

    def __init__(self, backbone: Backbone, manifest: Manifest, config: TuningConfig) -> None:
        """Initialize from the seed; the same seed gives the same prompt and task head with and without L_rec."""
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        assert manifest.labels is not None
        self.prompt = prompt_from_vocabulary(backbone, length=config.prompt_length, generator=generator)
        self.task_head = TaskHead(hidden_size=backbone.hidden_size, classes=len(manifest.labels), generator=generator)
        self.reconstruction_head: ReconstructionHead | None = None
        if config.reconstruction is not None:
            self.reconstruction_head = ReconstructionHead(
                hidden_size=backbone.hidden_size,
                head_size=config.reconstruction.head_size,
                classes=len(manifest.plain_tokens.pool),
                generator=generator,
            )
        self.to(backbone.device)
        self._backbone = (backbone,)  # in a tuple, so that its weights are not parameters of this module
        self._plain = manifest.plain_tokens
        self._label_privacy = manifest.label_privacy

    def losses(self, records: list[PrivatizedRecord]) -> Losses:
        """Both losses of one batch."""
        (backbone,) = self._backbone
        head, m = self.reconstruction_head, self._plain.count
        layout = lay_out(
            backbone,
            prompt_lengths=[len(self.prompt.vectors)] * len(records),
            privatized_plain_tokens=[record.privatized_plain_tokens if head else () for record in records],
            texts=[record.token_ids for record in records],
        )
        states = encode_with_prompts(backbone, layout, self.prompt(len(records)))
        labels = torch.tensor([record.label for record in records], device=states.device)
        logits = self.task_head(pool_text(states, layout.text_mask))
        reconstruction = None
        if head is not None:
            targets = plain_token_targets(records, self._plain, device=states.device)
            reconstruction = reconstruction_loss(plain_states(states, layout, count=m), targets, head)
        return Losses(
            task=task_loss(logits, labels, label_privacy=self._label_privacy),
            reconstruction=reconstruction,
            correct=(logits.argmax(dim=1) == labels).sum(),
        )


def tune(
    backbone: Backbone,
    training: PrivatizedFile,
    *,
    config: TuningConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Adapter:
    """A soft prompt and a task head tuned on a privatized file.

    Args:
        backbone: Frozen; left as it is found.
        training: Privatized with the backbone's vocabulary, with labels.
        config: The run.
        on_progress: Called after each step.
        should_stop: Asked before each step.

    Raises:
        TuningError: The file has no labels or one class only, no plain tokens to reconstruct, or a loss that is
            not finite.
        TuningCancelled: `should_stop` said yes.
        VocabularyError: The file was privatized with another vocabulary.
        UsageError: A record does not fit the backbone.
    """
    check_training_file(backbone, training, config=config)
    tuning = Tuning(backbone, training.manifest, config)
    optimizer, schedule = _optimizer(tuning, config, steps=_steps(training, config))
    step, steps, latest = 0, _steps(training, config), None
    order = torch.Generator().manual_seed(config.seed + 1)
    for epoch in range(config.epochs):
        for batch in _bucketed_batches(training.records, size=config.batch_size, generator=order):
            if should_stop():
                raise TuningCancelled(f"tuning was asked to stop at step={step} of {steps}; start a new job")
            losses = tuning.losses(batch)
            total = losses.total(config)
            if not torch.isfinite(total):
                raise TuningError(
                    f"the loss must stay finite, got nan or infinity at step={step}; lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
            latest = Progress(
                step=step,
                steps=steps,
                epoch=epoch,
                task_loss=losses.task.item(),
                reconstruction_loss=None if losses.reconstruction is None else losses.reconstruction.item(),
                accuracy=losses.correct.item() / len(batch),
            )
            on_progress(latest)
    assert latest is not None
    return _adapter(tuning, training.manifest, config=config, latest=latest)


def check_training_file(backbone: Backbone, training: PrivatizedFile, *, config: TuningConfig) -> None:
    """Refuse a file that cannot be tuned on, before any work. Raises as `tune`."""
    manifest, records = training.manifest, training.records
    check_hash(backbone.bundle, expected=manifest.vocabulary_hash)
    if manifest.labels is None:
        raise TuningError("a file to tune on must have labels; privatize it again with --label-column")
    if not records:
        raise TuningError("a file to tune on must have at least one record, got records=0")
    present = {record.label for record in records}
    if len(present) < 2:
        raise TuningError(f"a file to tune on must have two classes at least, got {len(present)}; add the other class")
    if config.reconstruction is not None and manifest.plain_tokens.count == 0:
        raise TuningError(
            "reconstruction needs plain tokens, got plain_tokens=0; privatize with --plain-tokens, or tune without it"
        )
    plain = manifest.plain_tokens.count if config.reconstruction is not None else 0
    for position, record in enumerate(records):
        check_length(
            backbone,
            prompt_length=config.prompt_length,
            plain_tokens=plain,
            text_tokens=len(record.token_ids),
            position=position,
        )


def _optimizer(
    tuning: Tuning, config: TuningConfig, *, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    heads = [*tuning.task_head.parameters()]
    if tuning.reconstruction_head is not None:
        heads += tuning.reconstruction_head.parameters()
    optimizer = torch.optim.AdamW(
        [
            {"params": [tuning.prompt.vectors], "lr": config.learning_rate, "weight_decay": 0.0},
            {"params": heads, "lr": config.head_learning_rate, "weight_decay": 0.01},
        ]
    )
    warm = max(1, round(config.warmup * steps))

    def scale(step: int) -> float:
        return min((step + 1) / warm, (steps - step) / max(1, steps - warm))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def _steps(training: PrivatizedFile, config: TuningConfig) -> int:
    return config.epochs * math.ceil(len(training.records) / config.batch_size)


def _bucketed_batches(
    records: tuple[PrivatizedRecord, ...], *, size: int, generator: torch.Generator
) -> Iterator[list[PrivatizedRecord]]:
    """Every record once, in batches of similar length, in random order."""
    shuffled = torch.randperm(len(records), generator=generator).tolist()
    span = size * _BATCHES_SORTED_TOGETHER
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), span):
        near = sorted(shuffled[start : start + span], key=lambda index: len(records[index].token_ids))
        batches += [near[first : first + size] for first in range(0, len(near), size)]
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield [records[row] for row in batches[index]]


def _adapter(tuning: Tuning, manifest: Manifest, *, config: TuningConfig, latest: Progress) -> Adapter:
    """What is kept: the prompt and the task head. The reconstruction head is dropped here (RAPT, Sec. 3)."""
    assert manifest.labels is not None
    settings = {name: value for name, value in asdict(config).items() if name != "reconstruction"}
    if config.reconstruction is not None:
        settings |= {f"reconstruction_{name}": value for name, value in asdict(config.reconstruction).items()}
    if manifest.label_privacy is not None:
        settings |= {"label_epsilon": float(manifest.label_privacy.epsilon)}
    card = AdapterCard(
        model=manifest.model,
        vocabulary_hash=manifest.vocabulary_hash,
        method=config.method,
        labels=manifest.labels,
        mechanism=manifest.mechanism,
        plain_tokens=0 if config.reconstruction is None else manifest.plain_tokens.count,
        prompt_length=config.prompt_length,
        training=settings | {"records": manifest.records},
        metrics={"final_task_loss": latest.task_loss, "steps": latest.steps}
        | ({} if latest.reconstruction_loss is None else {"final_reconstruction_loss": latest.reconstruction_loss}),
        weights_sha256="",
        created_by=f"rapt {__version__}",
    )
    return Adapter(
        prompt=tuning.prompt.vectors.detach().clone(),
        head_weight=tuning.task_head.linear.weight.detach().clone(),
        head_bias=tuning.task_head.linear.bias.detach().clone(),
        card=card,
    )
