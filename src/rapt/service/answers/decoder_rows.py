"""Rows of a decoder in the middle of their answers: text and answer are one sequence, one more position at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rapt.service.answers.generation_row import GenerationRow
from rapt.service.answers.private_row import lay_out_rows
from rapt.service.answers.row_cache import RowCache
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import embed_with_prompts
from rapt.service.backbone.library import with_cache
from rapt.service.backbone.steering import Steering, steered


class DecoderRows:
    """What the rows have read and written: keys and values, each row up to its own length."""

    def __init__(self, backbone: Backbone, cache: RowCache) -> None:
        """Rows whose texts are in the cache."""
        self._backbone, self._cache = backbone, cache

    def step(self, last: Tensor, *, steering: Steering | None) -> Tensor:
        """Read one more token a row, (B,); returns the states that the next ones are chosen from, (B, h)."""
        seen = self._cache.make_room()
        states = _forward(
            self._backbone,
            self._backbone.embed(last[:, None]),
            seen=seen,
            positions=self._cache.lengths[:, None],
            cache=self._cache,
            steering=steering,
        )
        self._cache.advance()
        return states[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._cache.keep(rows)

    def part(self, rows: Sequence[int]) -> DecoderRows:
        """These rows alone."""
        return DecoderRows(self._backbone, self._cache.part(rows))

    def join(self, other: DecoderRows) -> None:
        """Append the rows of another."""
        self._cache.join(other._cache)


def read_with_decoder(
    backbone: Backbone, rows: Sequence[GenerationRow], *, steering: Steering
) -> tuple[DecoderRows, Tensor]:
    """The rows after their texts, and the states that their first tokens are chosen from, (B, h)."""
    layout = lay_out_rows(backbone, rows, steering=steering, cues=[row.cue(backbone) for row in rows])
    inputs = embed_with_prompts(backbone, layout, steering.prompts)
    width = inputs.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=backbone.device).tril()
    seen = causal & layout.attention_mask[:, None, None, :].bool()  # (B, 1, T, T)
    cache = RowCache(layout.lengths)
    states = _forward(backbone, inputs, seen=seen, positions=layout.position_ids, cache=cache, steering=steering)
    cache.filled().keep(range(len(rows)))
    return DecoderRows(backbone, cache), states[torch.arange(len(rows), device=states.device), layout.lengths - 1]


def _forward(
    backbone: Backbone, inputs: Tensor, *, seen: Tensor, positions: Tensor, cache: RowCache, steering: Steering | None
) -> Tensor:
    with steered(steering):
        states: Tensor = backbone.encoder(
            inputs_embeds=inputs.to(backbone.dtype),
            attention_mask=seen,
            position_ids=positions,
            **with_cache(backbone.encoder, cache),
        ).last_hidden_state
    return states
