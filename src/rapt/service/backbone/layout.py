"""Where everything stands in a sequence: start, P, k', x, [between, x2], [cue], end, [continuation], and padding.

The soft prompt P, the privatized plain tokens k' and the privatized text x stand in one run of explicit positions,
inside what the backbone was trained to see around a text: [CLS] stays first in BERT, <s> in Llama. Padding is never
between a prompt and its text, whichever side it is on. Each row may have a prompt of its own, of its own length, a
second text or none, a cue or none: that is what lets one batch serve many tenants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rapt.errors import UsageError, name_record
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.placement import send
from rapt.service.backbone.steering import Steering

Padding = Literal["right", "left"]
_NOTHING: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Layout:
    """The positions of a batch; B rows, padded to T.

    Attributes:
        token_ids: Real tokens, with the pad token where a prompt vector or padding stands, (B, T).
        attention_mask: 1 at real positions, prompt included, (B, T).
        position_ids: 0, 1, 2, ... from each row's first real position on, (B, T).
        prompt_rows: Row of each prompt vector, in the order of the concatenated prompts, (sum of lengths,).
        prompt_columns: Column of each prompt vector, in the same order, (sum of lengths,).
        text_mask: 1.0 at the tokens of x and x2, (B, T).
        segments: 1.0 from the second text on to the end, in a row that has one, (B, T).
        plain_start: Column of the first plain token in each row, (B,).
        answer_column: Column where a word is to be predicted: the [MASK] of a cue that has one, else the last real
            position before the continuation, (B,).
        lengths: Real positions of each row, continuation included, (B,).
    """

    token_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    prompt_rows: Tensor
    prompt_columns: Tensor
    text_mask: Tensor
    segments: Tensor
    plain_start: Tensor
    answer_column: Tensor
    lengths: Tensor


def sequence_length(*, prompt_length: int, plain_tokens: int, text_tokens: int, special_tokens: int = 2) -> int:
    """Positions that a row takes; the special tokens are those around a text: BERT 2, T5 1, GPT-2 0."""
    return special_tokens + prompt_length + plain_tokens + text_tokens


def check_length(
    backbone: Backbone,
    *,
    prompt_length: int,
    plain_tokens: int,
    text_tokens: int,
    position: int,
    other_tokens: int = 0,
) -> None:
    """Refuse a row that the backbone cannot hold.

    Args:
        backbone: Backbone whose positions are counted.
        prompt_length: Number P of prompt vectors.
        plain_tokens: Number m of plain tokens.
        text_tokens: Number of tokens of the text; of a pair, of both texts together.
        position: Place of the record in its file, for the message.
        other_tokens: Whatever else stands in the row: what is between two texts, a cue, a continuation.

    Raises:
        UsageError: It takes more positions than the backbone has, or holds no text.
    """
    if text_tokens == 0:
        raise UsageError(f"{name_record(position)} must have at least one token; leave it out")
    special = len(backbone.frame.start) + len(backbone.frame.end)
    needed = other_tokens + sequence_length(
        prompt_length=prompt_length, plain_tokens=plain_tokens, text_tokens=text_tokens, special_tokens=special
    )
    if needed > backbone.max_positions:
        raise UsageError(
            f"{name_record(position)} must fit into {backbone.max_positions} positions, got {needed} "
            f"({text_tokens} text, {plain_tokens} plain, {prompt_length} prompt, {special} special, {other_tokens} to "
            "write and of templates); privatize with a lower `truncate_to`, shorten the prompt, or lower max_tokens"
        )


def check_texts(
    backbone: Backbone,
    token_ids: Sequence[int],
    second_token_ids: Sequence[int] | None,
    *,
    prompt_length: int,
    plain_tokens: int,
    position: int,
    other_tokens: int = 0,
) -> None:
    """Refuse a row whose texts do not fit, with what stands between them and `other_tokens`, or of which one is empty.

    Raises:
        UsageError: The row takes more positions than the backbone has, or one of its texts is empty.
    """
    one_is_empty = len(token_ids) == 0 or (second_token_ids is not None and len(second_token_ids) == 0)
    check_length(
        backbone,
        prompt_length=prompt_length,
        plain_tokens=plain_tokens,
        text_tokens=0 if one_is_empty else len(token_ids) + len(second_token_ids or ()),
        position=position,
        other_tokens=other_tokens + (0 if second_token_ids is None else len(backbone.frame.between)),
    )


def lay_out(
    backbone: Backbone,
    *,
    prompt_lengths: Sequence[int],
    privatized_plain_tokens: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    second_texts: Sequence[Sequence[int] | None] | None = None,
    cues: Sequence[Sequence[int]] | None = None,
    continuations: Sequence[Sequence[int]] | None = None,
    padding: Padding = "right",
) -> Layout:
    """The layout of a batch; every sequence has one entry a row.

    Args:
        backbone: Backbone whose frame goes around the texts.
        prompt_lengths: P of each row, 0 for none.
        privatized_plain_tokens: k' of each row, empty for none.
        texts: x of each row.
        second_texts: x2 of each row, None for a row of one text.
        cues: Public tokens behind the text that ask for the answer.
        continuations: Tokens that a decoder is to say, behind everything else: for teacher forcing.
        padding: Side on which a shorter row is filled up. It changes no state at a real position.
    """
    frame, count = backbone.frame, len(texts)
    rows = [
        _Row(prompt, plain, text, second, cue, continuation)
        for prompt, plain, text, second, cue, continuation in zip(
            prompt_lengths,
            privatized_plain_tokens,
            texts,
            second_texts or [None] * count,
            cues or [_NOTHING] * count,
            continuations or [_NOTHING] * count,
            strict=True,
        )
    ]
    ids = [row.token_ids(backbone) for row in rows]
    lengths = torch.tensor([len(row) for row in ids])
    width = int(lengths.max())
    offsets = width - lengths if padding == "left" else torch.zeros_like(lengths)
    filled = [[frame.pad_id] * offset + row for offset, row in zip(offsets.tolist(), ids, strict=True)]
    token_ids = torch.tensor([row + [frame.pad_id] * (width - len(row)) for row in filled])
    columns = torch.arange(width) - offsets[:, None]  # (B, T), counted from each row's own start

    def at(place: list[int]) -> Tensor:
        return torch.tensor(place)[:, None]

    text_start = at([row.text_start(backbone) for row in rows])
    text_end = text_start + at([len(row.text) for row in rows])
    second_start = text_end + at([0 if row.second is None else len(frame.between) for row in rows])
    second_end = second_start + at([len(row.second or ()) for row in rows])
    real_end = lengths[:, None] - at([len(row.continuation) for row in rows])
    in_text = ((columns >= text_start) & (columns < text_end)) | ((columns >= second_start) & (columns < second_end))
    has_second = at([row.second is not None for row in rows])
    prompts, starts = torch.tensor(prompt_lengths), offsets + len(frame.start)
    answers = second_end[:, 0] + torch.tensor([row.answer(backbone) for row in rows])
    numbers = {
        "token_ids": token_ids,
        "attention_mask": ((columns >= 0) & (columns < lengths[:, None])).long(),
        # Behind the end it counts on, but never past what the backbone has: padding may reach further than any row.
        "position_ids": columns.clamp(min=0),
        "prompt_rows": torch.repeat_interleave(torch.arange(count), prompts),
        "prompt_columns": torch.cat(
            [torch.arange(start, start + row.prompt) for start, row in zip(starts.tolist(), rows, strict=True)]
        ),
        "text_mask": in_text.long(),
        "segments": (has_second & (columns >= second_start) & (columns < real_end)).long(),
        "plain_start": starts + prompts,
        "answer_column": offsets + answers,
        "lengths": lengths,
    }
    there = dict(zip(numbers, send(list(numbers.values()), backbone.device), strict=True))
    masks = {name: there.pop(name).float() for name in ("text_mask", "segments")}
    return Layout(**there, **masks)


@dataclass(frozen=True)
class _Row:
    prompt: int
    plain: Sequence[int]
    text: Sequence[int]
    second: Sequence[int] | None
    cue: Sequence[int]
    continuation: Sequence[int]

    def text_start(self, backbone: Backbone) -> int:
        return len(backbone.frame.start) + self.prompt + len(self.plain)

    def token_ids(self, backbone: Backbone) -> list[int]:
        frame = backbone.frame
        second = [] if self.second is None else [*frame.between, *self.second]
        before = [*frame.start, *[frame.pad_id] * self.prompt, *self.plain]
        return [*before, *self.text, *second, *self.cue, *frame.end, *self.continuation]

    def answer(self, backbone: Backbone) -> int:
        """How far behind the last token of the texts a word is predicted."""
        mask = backbone.frame.mask_id
        if mask is not None and mask in self.cue:
            return list(self.cue).index(mask)
        return len(self.cue) + len(backbone.frame.end) - 1


def embed_with_prompts(backbone: Backbone, layout: Layout, prompts: Tensor | None) -> Tensor:
    """Input vectors with each row's soft prompt in its place, (B, T, h); differentiable in `prompts`.

    Args:
        backbone: Backbone whose table embeds the tokens.
        layout: Layout of the batch.
        prompts: The prompts of all rows, one after the other, (sum of lengths, h); None when no row has one.
    """
    vectors = backbone.embed(layout.token_ids)
    if backbone.segment_shift is not None:
        vectors = vectors + layout.segments[:, :, None] * backbone.segment_shift
    if prompts is None:
        return vectors
    return vectors.index_put((layout.prompt_rows, layout.prompt_columns), prompts)


def encode_with_prompts(
    backbone: Backbone, layout: Layout, prompts: Tensor | None, *, steering: Steering | None = None
) -> Tensor:
    """Last-layer states G = f([P; Z]), (B, T, h): RAPT, Eq. 5, with the frame around it."""
    return backbone.encode(
        embed_with_prompts(backbone, layout, prompts),
        attention_mask=layout.attention_mask,
        position_ids=layout.position_ids,
        steering=steering,
    )
