"""Rows of an encoder-decoder in the middle of their answers: each text was read once, each word is one more step.

The keys and values of the answers are aligned at their last words: row b has filled the last `written[b]` columns. T5
knows distances only, and so the columns of a batch are at the right distance from the next word of every row. Those of
the texts have no positions; they are aligned at their beginnings.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from rapt.service.answers.generation_row import GenerationRow
from rapt.service.answers.private_row import lay_out_rows
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import encode_with_prompts
from rapt.service.backbone.library import cache_layers, empty_cache, with_cache
from rapt.service.backbone.steering import Steering, steered

if TYPE_CHECKING:
    from transformers import DynamicCache, EncoderDecoderCache


class EncoderDecoderRows:
    """What the rows have read and written: of each layer the keys and values of the texts and of the answers."""

    def __init__(self, backbone: Backbone, cache: EncoderDecoderCache, *, read: Tensor) -> None:
        """Rows that have read nothing of their answers.

        Args:
            backbone: An encoder-decoder.
            cache: Empty; the first step fills in what the decoder sees of the texts.
            read: Real positions of each row in the encoder, (B,).
        """
        self._backbone, self._cache = backbone, cache
        self._read, self._written = read, torch.zeros_like(read)

    def step(self, last: Tensor, *, steering: Steering | None, texts: Tensor | None = None) -> Tensor:
        """Read one more word a row, (B,); returns the states that the next ones are chosen from, (B, h).

        Args:
            last: The words.
            steering: Of the rows.
            texts: With the first one, what the encoder made of the texts, (B, S, h); from then on it is in the cache.
        """
        assert self._backbone.decoder is not None
        inputs = self._backbone.embed(last[:, None]).to(self._backbone.dtype)
        before = self._cache.get_seq_length()
        own = torch.arange(before + 1, device=last.device) >= before - self._written[:, None]
        seen_texts = torch.arange(int(self._read.max()), device=last.device) < self._read[:, None]
        with steered(steering):
            states: Tensor = self._backbone.decoder(
                inputs_embeds=inputs,
                attention_mask=own[:, None, None],
                # Once they are in the cache, all that is asked is whether there are any.
                encoder_hidden_states=inputs if texts is None else texts,
                encoder_attention_mask=seen_texts[:, None, None],
                **with_cache(self._backbone.decoder, self._cache),
            ).last_hidden_state
        self._written = self._written + 1
        return states[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        chosen = torch.tensor(rows, device=self._read.device, dtype=torch.long)
        self._read, self._written = self._read[chosen], self._written[chosen]
        first = self._cache.get_seq_length() - int(self._written.max())
        width = int(self._read.max())
        for layer in cache_layers(self._cache.self_attention_cache):
            layer.keys, layer.values = layer.keys[chosen, :, first:], layer.values[chosen, :, first:]
        for layer in cache_layers(self._cache.cross_attention_cache):
            layer.keys, layer.values = layer.keys[chosen, :, :width], layer.values[chosen, :, :width]

    def part(self, rows: Sequence[int]) -> EncoderDecoderRows:
        """These rows alone."""
        found = EncoderDecoderRows(self._backbone, copy.deepcopy(self._cache), read=self._read)
        found._written = self._written
        found.keep(rows)
        return found

    def join(self, other: EncoderDecoderRows) -> None:
        """Append the rows of another."""
        self._read = torch.cat([self._read, other._read])
        self._written = torch.cat([self._written, other._written])
        _append(self._cache.self_attention_cache, other._cache.self_attention_cache, at_end=False)
        _append(self._cache.cross_attention_cache, other._cache.cross_attention_cache, at_end=True)


def read_with_encoder_decoder(
    backbone: Backbone, rows: Sequence[GenerationRow], *, steering: Steering
) -> tuple[EncoderDecoderRows, Tensor]:
    """The rows after their texts, and the states that their first tokens are chosen from, (B, h)."""
    layout = lay_out_rows(backbone, rows, steering=steering)
    texts = encode_with_prompts(backbone, layout, steering.prompts, steering=steering).to(backbone.dtype)
    read = EncoderDecoderRows(backbone, empty_cache(), read=layout.lengths)
    for word in backbone.frame.decoder_start:
        first = torch.full((len(rows),), word, device=backbone.device)
        states = read.step(first, steering=steering, texts=texts)
    return read, states


def _append(cache: DynamicCache, other: DynamicCache, *, at_end: bool) -> None:
    """Append rows, all filled up with columns to one width."""
    width = max(cache.get_seq_length(), other.get_seq_length())
    for layer, added in zip(cache_layers(cache), cache_layers(other), strict=True):
        layer.keys = torch.cat([_widened(keys, width, at_end=at_end) for keys in (layer.keys, added.keys)])
        layer.values = torch.cat([_widened(values, width, at_end=at_end) for values in (layer.values, added.values)])


def _widened(tensor: Tensor, width: int, *, at_end: bool) -> Tensor:
    more = width - tensor.shape[2]
    return pad(tensor, (0, 0, 0, more) if at_end else (0, 0, more, 0))
