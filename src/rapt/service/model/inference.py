"""Prediction: one batch serves many tenants, each row with its own adapter, or with none.

An adapter is a value that a row carries. Nothing is switched on the backbone, so rows of different tenants, prompt
lengths and numbers of classes share a forward pass and cannot meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rapt.errors import UsageError
from rapt.service.model.adapter import Adapter
from rapt.service.model.backbone import Backbone
from rapt.service.model.layout import check_length, encode_with_prompts, lay_out, sequence_length
from rapt.service.model.pass_plan import cut_into_passes
from rapt.service.model.row_heads import class_probabilities
from rapt.service.model.steering import NOTHING, steer
from rapt.service.model.task_head import pool_text


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationRow:
    """One privatized text, and the adapter that answers it; without one, the bare backbone does."""

    token_ids: tuple[int, ...]
    adapter: Adapter | None = None
    privatized_plain_tokens: tuple[int, ...] = ()

    @property
    def plain(self) -> tuple[int, ...]:
        """The plain tokens that take part: an adapter tuned without reconstruction has never seen any."""
        return self.privatized_plain_tokens if self.adapter is not None and self.adapter.card.plain_tokens else ()

    @property
    def prompt_length(self) -> int:
        """Positions that the soft prompt takes."""
        return 0 if self.adapter is None else len(self.adapter.prompt)

    @property
    def positions(self) -> int:
        """Length of the row in the backbone, everything counted."""
        return sequence_length(
            prompt_length=self.prompt_length, plain_tokens=len(self.plain), text_tokens=len(self.token_ids)
        )


def check_row(backbone: Backbone, row: ClassificationRow, *, position: int) -> None:
    """Refuse a row before it can spoil a batch.

    Raises:
        UsageError: It does not fit the backbone, or lacks the plain tokens that its adapter was tuned with.
    """
    expected = 0 if row.adapter is None else row.adapter.card.plain_tokens
    if len(row.plain) != expected:
        raise UsageError(
            f"record {position} must have {expected} privatized plain tokens as in tuning, got {len(row.plain)}; "
            "privatize queries with the settings of the training file"
        )
    check_length(
        backbone,
        prompt_length=row.prompt_length,
        plain_tokens=expected,
        text_tokens=len(row.token_ids),
        position=position,
    )


def plan(rows: Sequence[ClassificationRow]) -> list[list[int]]:
    """Which rows share a pass, as positions."""
    return cut_into_passes([row.positions for row in rows], lanes=[None] * len(rows))


def classify(backbone: Backbone, rows: Sequence[ClassificationRow]) -> list[tuple[float, ...]]:
    """Answers in the order of the rows: class probabilities, or of a bare row the mean state of its text, (h,).

    Args:
        backbone: The one that every adapter was tuned on.
        rows: May mix adapters, and rows without one, freely.

    Raises:
        UsageError: As `check_row`.
    """
    for position, row in enumerate(rows):
        check_row(backbone, row, position=position)
    answers: dict[int, tuple[float, ...]] = {}
    for chosen in plan(rows):
        answers |= dict(zip(chosen, classify_pass(backbone, [rows[index] for index in chosen]), strict=True))
    return [answers[index] for index in range(len(rows))]


@torch.inference_mode()
def classify_pass(backbone: Backbone, rows: Sequence[ClassificationRow]) -> list[tuple[float, ...]]:
    """Answers of checked rows in one forward pass; as `classify`."""
    pooled = _pooled(backbone, rows)
    tuned = [index for index, row in enumerate(rows) if row.adapter is not None]
    heads = [(row.adapter.head_weight, row.adapter.head_bias) for row in rows if row.adapter is not None]
    if len(tuned) == len(rows):
        return class_probabilities(pooled, heads)
    answers = [tuple(vector) for vector in pooled.tolist()]
    if tuned:
        for index, answer in zip(tuned, class_probabilities(pooled[tuned], heads), strict=True):
            answers[index] = answer
    return answers


def _pooled(backbone: Backbone, rows: Sequence[ClassificationRow]) -> Tensor:
    steering = steer([NOTHING if row.adapter is None else row.adapter.tuned for row in rows])
    layout = lay_out(
        backbone,
        prompt_lengths=steering.prompt_lengths,
        privatized_plain_tokens=[row.plain for row in rows],
        texts=[row.token_ids for row in rows],
    )
    states = encode_with_prompts(backbone, layout, steering.prompts, steering=steering)
    return pool_text(states, layout.text_mask)  # (B, h)
