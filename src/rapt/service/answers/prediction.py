"""Prediction: one batch serves many tenants, each row with its own adapter, or with none.

An adapter is a value that a row carries. Nothing is switched on the backbone, so rows of different tenants, prompt
lengths, methods and numbers of classes share a forward pass and cannot meet. Rows with a low-rank change have passes of
their own, because it costs every row of a pass; so have those with a long prefix or a high rank, to which the others
would be filled up, and those whose answer is read elsewhere or otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor

from rapt.errors import UsageError, name_record
from rapt.service.adapter.adapter import Adapter, check_plain_tokens
from rapt.service.answers.batching import Batcher, BatchLimits, Ticket
from rapt.service.answers.rows import (
    SHORT_PREFIX,
    SHORT_RANK,
    PrivateRow,
    check_fit,
    choose_size_class,
    cut_into_passes,
    lay_out_rows,
    spell_row,
)
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import embed_with_prompts
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
            f"{name_record(position)} must have two texts as in tuning, got one; privatize it with `second_column`"
        )
    check_fit(backbone, row, position=position, other_tokens=len(_find_classes(row.task).cue(backbone)))


def plan(rows: Sequence[ClassificationRow], *, device: str = "cpu") -> list[list[int]]:
    """Choose the rows that share a pass on a kind of device, as positions."""
    return cut_into_passes([row.positions for row in rows], lanes=[_choose_lane(row) for row in rows], device=device)


def classify(backbone: Backbone, rows: Sequence[ClassificationRow]) -> list[tuple[float, ...]]:
    """Answers in the order of the rows: class probabilities, or of a bare row the mean state of its text, (h,).

    Args:
        backbone: The one that every adapter was tuned on.
        rows: May mix adapters, and rows without one, freely.

    Raises:
        UsageError: A row is one that `check_row` refuses.
    """
    rows = [spell_row(backbone, row) for row in rows]
    for position, row in enumerate(rows):
        check_row(backbone, row, position=position)
    answers: dict[int, tuple[float, ...]] = {}
    for chosen in plan(rows, device=backbone.device.type):
        answers |= dict(zip(chosen, classify_pass(backbone, [rows[index] for index in chosen]), strict=True))
    return [answers[index] for index in range(len(rows))]


@torch.inference_mode()
def classify_pass(backbone: Backbone, rows: Sequence[ClassificationRow]) -> list[tuple[float, ...]]:
    """Answers of spelled and checked rows of one lane in one forward pass; as `classify`."""
    task = _find_classes(rows[0].task)
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
        return compute_class_probabilities(vectors, heads)
    answers = [tuple(vector) for vector in vectors.tolist()]
    if tuned:
        for index, answer in zip(tuned, compute_class_probabilities(vectors[tuned], heads), strict=True):
            answers[index] = answer
    return answers


def _choose_lane(row: ClassificationRow) -> Hashable:
    tuned = row.tuned
    prefix = choose_size_class(tuned.prefix_length, short=SHORT_PREFIX)
    rank = choose_size_class(tuned.highest_rank, short=SHORT_RANK) if tuned.lora else None
    return row.task, prefix, rank, row.compares


def _find_classes(name: str) -> Classes:
    task = TASKS[name]
    if not isinstance(task, Classes):
        raise UsageError("the model must choose among classes, got one that writes text; ask it for a completion")
    return task


# The task heads of a batch are computed at once: every row has its own, of its own number of classes.


# Numbers in one slice of gathered heads, 64 MiB: rows of a thousand classes are computed a few at a time.
_SLICE: Final = 16 * 1024 * 1024


def compute_class_probabilities(pooled: Tensor, heads: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[float, ...]]:
    """softmax(W_i g_i + b_i) of each row i, as many numbers as the row has classes.

    Args:
        pooled: States g, (B, h).
        heads: W (C_i, h) and b (C_i,) of each row; rows of one adapter give the same objects.
    """
    different = {id(weight): (weight, bias) for weight, bias in heads}
    weights = torch.cat([weight for weight, _ in different.values()])  # (S, h)
    biases = torch.cat([bias for _, bias in different.values()])
    first, at = {}, 0
    for key, (_, bias) in different.items():
        first[key] = at
        at += len(bias)
    starts = torch.tensor([first[id(weight)] for weight, _ in heads], device=pooled.device)
    counts = torch.tensor([len(bias) for _, bias in heads], device=pooled.device)
    columns = torch.arange(int(counts.max()), device=pooled.device)
    beyond = columns >= counts[:, None]  # (B, C)
    index = starts[:, None] + torch.where(beyond, 0, columns)
    rows = max(1, _SLICE // (index.shape[1] * pooled.shape[1]))
    logits = torch.cat(
        [
            (weights[index[start : start + rows]] @ pooled[start : start + rows, :, None])[:, :, 0]
            for start in range(0, len(pooled), rows)
        ]
    )
    logits = (logits + biases[index]).masked_fill(beyond, -torch.inf)
    found = torch.softmax(logits, dim=1).tolist()
    return [tuple(row[:count]) for row, count in zip(found, counts.tolist(), strict=True)]


Answer = tuple[float, ...]


class Batches(Protocol):
    """What answers rows of many callers, as a `Batcher` does."""

    def submit(self, rows: Sequence[ClassificationRow], *, tenant: str) -> Ticket[Answer]:
        """Let rows wait for their turn."""

    def cancel(self, ticket: Ticket[Answer]) -> None:
        """Forget a caller, whose rows are not computed any more."""

    def close(self) -> None:
        """Refuse the rows that wait, and take no more."""


class Predictor:
    """Predictions of one backbone; safe to use from many threads and event loops."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        limits: BatchLimits | None = None,
        beside: Predictor | None = None,
        elsewhere: Batches | None = None,
    ) -> None:
        """Start the thread that computes.

        Args:
            backbone: Backbone of the rows.
            limits: Limits of what waits.
            beside: Predictor of the same backbone behind a reader, whose passes then take these rows too.
            elsewhere: What computes spelled and checked rows in place of a thread here.
        """
        self._backbone = backbone
        self._own = beside is None
        self._batcher: Batches
        if elsewhere is not None:
            self._batcher = elsewhere
        elif beside is not None:
            self._batcher = beside._batcher
        else:
            self._batcher = Batcher(
                lambda rows: classify_pass(backbone, rows),
                plan=partial(plan, device=backbone.device.type),
                cost=lambda row: row.positions,
                limits=limits,
                name=f"rapt-predictor-{backbone.model}",
            )

    def submit(self, rows: Sequence[ClassificationRow], *, tenant: str) -> Ticket[Answer]:
        """Let a caller's rows wait for their turn; the answers are those of `classify`.

        Raises:
            UsageError: A row cannot be answered.
            BusyError: Too much waits already.
            UnavailableError: The service is stopping.
        """
        rows = [spell_row(self._backbone, row) for row in rows]
        for position, row in enumerate(rows):
            check_row(self._backbone, row, position=position)
        return self.submit_spelled(rows, tenant=tenant)

    def submit_spelled(self, rows: Sequence[ClassificationRow], *, tenant: str) -> Ticket[Answer]:
        """Submit, as `submit` does, rows that another predictor of the same model has spelled and checked."""
        return self._batcher.submit(rows, tenant=tenant)

    def cancel(self, ticket: Ticket[Answer]) -> None:
        """Forget a caller that has left."""
        self._batcher.cancel(ticket)

    def close(self) -> None:
        """Finish the pass that runs, refuse what waits, end the thread; one beside another leaves that to it."""
        if self._own:
            self._batcher.close()
