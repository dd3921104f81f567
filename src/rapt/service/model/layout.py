"""Where everything stands in a sequence: [CLS] P k' x [SEP], then padding.

[CLS] stays first, because the backbone was trained with it there. Then the soft prompt P, the privatized plain tokens
k' and the privatized text x, in one run of explicit positions. Each row may have a prompt of its own, of its own
length: that is what lets one batch serve many tenants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rapt.errors import UsageError
from rapt.service.model.backbone import Backbone


@dataclass(frozen=True, eq=False)
class Layout:
    """The positions of a batch; B rows, padded to T.

    Attributes:
        token_ids: Real tokens, with the pad token where a prompt vector or padding stands, (B, T).
        attention_mask: 1 at real positions, prompt included, (B, T).
        position_ids: 0, 1, 2, ... in every row, (B, T).
        prompt_rows: Row of each prompt vector, in the order of the concatenated prompts, (sum of lengths,).
        prompt_columns: Its column, (sum of lengths,).
        text_mask: 1.0 at the tokens of x, (B, T).
        plain_start: Column of the first plain token in each row, (B,).
    """

    token_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    prompt_rows: Tensor
    prompt_columns: Tensor
    text_mask: Tensor
    plain_start: Tensor


def sequence_length(*, prompt_length: int, plain_tokens: int, text_tokens: int) -> int:
    """Positions that a row takes, [CLS] and [SEP] included."""
    return 2 + prompt_length + plain_tokens + text_tokens


def check_length(backbone: Backbone, *, prompt_length: int, plain_tokens: int, text_tokens: int, position: int) -> None:
    """Refuse a row that the backbone cannot hold.

    Raises:
        UsageError: It takes more positions than the backbone has, or holds no text.
    """
    if text_tokens == 0:
        raise UsageError(f"record {position} must have at least one token; leave it out")
    needed = sequence_length(prompt_length=prompt_length, plain_tokens=plain_tokens, text_tokens=text_tokens)
    if needed > backbone.max_positions:
        raise UsageError(
            f"record {position} must fit into {backbone.max_positions} positions, got {needed} "
            f"({text_tokens} text, {plain_tokens} plain, {prompt_length} prompt, 2 special); "
            "privatize with a lower --truncate, or shorten the prompt"
        )


def lay_out(
    backbone: Backbone,
    *,
    prompt_lengths: Sequence[int],
    privatized_plain_tokens: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
) -> Layout:
    """The layout of a batch; the three sequences have one entry a row."""
    rows: list[list[int]] = []
    for length, plain, text in zip(prompt_lengths, privatized_plain_tokens, texts, strict=True):
        rows.append([backbone.cls_id, *[backbone.pad_id] * length, *plain, *text, backbone.sep_id])
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    token_ids = torch.tensor([row + [backbone.pad_id] * (width - len(row)) for row in rows])
    columns = torch.arange(width).expand(len(rows), width)
    prompts = torch.tensor(prompt_lengths)
    plain_start = 1 + prompts
    text_start = plain_start + torch.tensor([len(plain) for plain in privatized_plain_tokens])
    place = backbone.device
    return Layout(
        token_ids=token_ids.to(place),
        attention_mask=(columns < lengths[:, None]).long().to(place),
        position_ids=columns.to(place),
        prompt_rows=torch.repeat_interleave(torch.arange(len(rows)), prompts).to(place),
        prompt_columns=torch.cat([torch.arange(1, 1 + length) for length in prompt_lengths]).to(place),
        text_mask=((columns >= text_start[:, None]) & (columns < lengths[:, None] - 1)).float().to(place),
        plain_start=plain_start.to(place),
    )


def embed_with_prompts(backbone: Backbone, layout: Layout, prompts: Tensor) -> Tensor:
    """Input vectors with each row's soft prompt in its place, (B, T, h); differentiable in `prompts`.

    Args:
        backbone: Whose table embeds the tokens.
        layout: Where things stand.
        prompts: The prompts of all rows, one after the other, (sum of lengths, h).
    """
    vectors = backbone.embed(layout.token_ids)
    return vectors.index_put((layout.prompt_rows, layout.prompt_columns), prompts)


def encode_with_prompts(backbone: Backbone, layout: Layout, prompts: Tensor) -> Tensor:
    """Last-layer states G = f([P; Z]), (B, T, h): RAPT, Eq. 5, with [CLS] and [SEP] around it."""
    return backbone.encode(
        embed_with_prompts(backbone, layout, prompts),
        attention_mask=layout.attention_mask,
        position_ids=layout.position_ids,
    )
