"""Prediction: one batch serves many tenants, each row with its own adapter.

An adapter is a value that a row carries. Nothing is switched on the backbone, so rows of different tenants, prompt
lengths and numbers of classes share a forward pass and cannot meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from rapt.errors import UsageError
from rapt.service.model.adapter import Adapter
from rapt.service.model.backbone import Backbone
from rapt.service.model.layout import check_length, encode_with_prompts, lay_out
from rapt.service.model.task_head import pool_text

# Rows of one forward pass; longer requests are cut into passes of similar length.
MAX_ROWS: Final = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationRow:
    """One privatized query and the adapter that answers it."""

    adapter: Adapter
    token_ids: tuple[int, ...]
    privatized_plain_tokens: tuple[int, ...] = ()


def classify(backbone: Backbone, rows: Sequence[ClassificationRow]) -> list[tuple[float, ...]]:
    """Class probabilities of each row, in the order of the rows and of each row's labels.

    Args:
        backbone: The one that every adapter was tuned on.
        rows: May mix adapters freely.

    Raises:
        UsageError: A row does not fit the backbone, or lacks the plain tokens that its adapter was tuned with.
    """
    for position, row in enumerate(rows):
        _check_row(backbone, row, position=position)
    answers: dict[int, tuple[float, ...]] = {}
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].token_ids))
    for start in range(0, len(by_length), MAX_ROWS):
        chosen = by_length[start : start + MAX_ROWS]
        answers |= dict(zip(chosen, _one_pass(backbone, [rows[index] for index in chosen]), strict=True))
    return [answers[index] for index in range(len(rows))]


@torch.inference_mode()
def _one_pass(backbone: Backbone, rows: list[ClassificationRow]) -> list[tuple[float, ...]]:
    layout = lay_out(
        backbone,
        prompt_lengths=[len(row.adapter.prompt) for row in rows],
        privatized_plain_tokens=[_plain(row) for row in rows],
        texts=[row.token_ids for row in rows],
    )
    states = encode_with_prompts(backbone, layout, torch.cat([row.adapter.prompt for row in rows]))
    pooled = pool_text(states, layout.text_mask)  # (B, h)
    answers = []
    for vector, row in zip(pooled, rows, strict=True):
        logits = row.adapter.head_weight @ vector + row.adapter.head_bias
        answers.append(tuple(torch.softmax(logits, dim=0).tolist()))
    return answers


def _plain(row: ClassificationRow) -> tuple[int, ...]:
    # An adapter tuned without reconstruction has never seen plain tokens: they are left out, whatever the file holds.
    return row.privatized_plain_tokens if row.adapter.card.plain_tokens else ()


def _check_row(backbone: Backbone, row: ClassificationRow, *, position: int) -> None:
    expected = row.adapter.card.plain_tokens
    if len(_plain(row)) != expected:
        raise UsageError(
            f"record {position} must have {expected} privatized plain tokens as in tuning, got {len(_plain(row))}; "
            "privatize queries with the settings of the training file"
        )
    check_length(
        backbone,
        prompt_length=len(row.adapter.prompt),
        plain_tokens=expected,
        text_tokens=len(row.token_ids),
        position=position,
    )
