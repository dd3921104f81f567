"""Prediction: one batch serves many tenants, each row with its own adapter, or with none.

An adapter is a value that a row carries. Nothing is switched on the backbone, so rows of different tenants, prompt
lengths, methods and numbers of classes share a forward pass and cannot meet. Rows with a low-rank change have passes of
their own, because it costs every row of a pass; so have those with a long prefix or a high rank, to which the others
would be filled up, and those whose answer is read elsewhere or otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from rapt.errors import UsageError, record_at
from rapt.service.adapter.adapter import Adapter, check_plain_tokens
from rapt.service.answers.pass_plan import SHORT_PREFIX, SHORT_RANK, cut_into_passes, size_class
from rapt.service.answers.private_row import PrivateRow, lay_out_rows
from rapt.service.answers.row_heads import class_probabilities
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import check_texts, embed_with_prompts
from rapt.service.backbone.steering import steer
from rapt.service.tuning.tasks import TASKS, Classes
from rapt.wire.privatized_file import PrivatizedRecord

BARE_TASK = "classification"


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationRow(PrivateRow):
    """A row that is answered by one of some classes, or by the state of the bare backbone."""

    @property
    def task(self) -> str:
        """How the answer is read off the backbone."""
        return BARE_TASK if self.adapter is None else self.adapter.card.task

    @property
    def compares(self) -> bool:
        """Whether its answer is read off how its two texts differ."""
        return self.adapter is not None and self.adapter.compares


def row_of(record: PrivatizedRecord, *, adapter: Adapter | None) -> ClassificationRow:
    """The row that asks an adapter about a record."""
    return ClassificationRow(
        adapter=adapter,
        token_ids=record.token_ids,
        privatized_plain_tokens=record.privatized_plain_tokens,
        second_token_ids=record.second_token_ids,
    )


def check_row(backbone: Backbone, row: ClassificationRow, *, position: int) -> None:
    """Refuse a row before it can spoil a batch.

    Raises:
        UsageError: It does not fit the backbone, lacks the plain tokens or the second text that its adapter was tuned
            with, or asks an adapter for classes that has none.
    """
    check_plain_tokens(row.adapter, row.plain, position=position)
    if row.compares and row.second_token_ids is None:
        raise UsageError(
            f"{record_at(position)} must have two texts as in tuning, got one; privatize it with --text-column-2"
        )
    check_texts(
        backbone,
        row.token_ids,
        row.second_token_ids,
        prompt_length=row.tuned.prompt_length,
        plain_tokens=len(row.plain),
        position=position,
        other_tokens=len(_classes(row.task).cue(backbone)),
    )


def plan(rows: Sequence[ClassificationRow], *, device: str = "cpu") -> list[list[int]]:
    """Which rows share a pass on a kind of device, as positions."""
    return cut_into_passes([row.positions for row in rows], lanes=[_lane(row) for row in rows], device=device)


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
    for chosen in plan(rows, device=backbone.device.type):
        answers |= dict(zip(chosen, classify_pass(backbone, [rows[index] for index in chosen]), strict=True))
    return [answers[index] for index in range(len(rows))]


@torch.inference_mode()
def classify_pass(backbone: Backbone, rows: Sequence[ClassificationRow]) -> list[tuple[float, ...]]:
    """Answers of checked rows of one lane in one forward pass; as `classify`."""
    task = _classes(rows[0].task)
    steering = steer([row.tuned for row in rows])
    layout = lay_out_rows(backbone, rows, steering=steering, cues=[task.cue(backbone)] * len(rows))
    states = backbone.encode(
        embed_with_prompts(backbone, layout, steering.prompts),
        attention_mask=layout.attention_mask,
        position_ids=layout.position_ids,
        steering=steering,
        wanted=task.wanted(backbone, layout),
    )
    vectors = task.vectors(backbone, states, layout, steering=steering, compared=rows[0].compares)  # (B, h or 3h)
    tuned = [index for index, row in enumerate(rows) if row.adapter is not None]
    heads = [(row.adapter.head_weight, row.adapter.head_bias) for row in rows if row.adapter is not None]
    if len(tuned) == len(rows):
        return class_probabilities(vectors, heads)
    answers = [tuple(vector) for vector in vectors.tolist()]
    if tuned:
        for index, answer in zip(tuned, class_probabilities(vectors[tuned], heads), strict=True):
            answers[index] = answer
    return answers


def _lane(row: ClassificationRow) -> Hashable:
    tuned = row.tuned
    prefix = size_class(tuned.prefix_length, short=SHORT_PREFIX)
    rank = size_class(tuned.highest_rank, short=SHORT_RANK) if tuned.lora else None
    return row.task, prefix, rank, row.compares


def _classes(name: str) -> Classes:
    task = TASKS[name]
    if not isinstance(task, Classes):
        raise UsageError("the model must choose among classes, got one that writes text; ask it for a completion")
    return task
