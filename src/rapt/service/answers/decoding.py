"""Writing text row by row in one batch: rows join while others are in the middle of theirs, and leave when they end.

Every row has its own adapter, its own length and its own generator. What it writes does not depend on who shares the
batch. A prefix is never in a cache (`injection`), so a change of the batch only rebuilds its steering.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from rapt.errors import UsageError
from rapt.service.answers.generation import Choice, GenerationRow, choose
from rapt.service.answers.rows import lay_out_rows
from rapt.service.backbone.architectures import Kind
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import embed_with_prompts, encode_with_prompts
from rapt.service.backbone.library import empty_cache, list_cache_layers, make_cache_arguments, place_rows_at
from rapt.service.backbone.placement import send
from rapt.service.backbone.steering import NOTHING, Steering, apply_steering, steer

if TYPE_CHECKING:
    from transformers import DynamicCache, EncoderDecoderCache


# Keys and values of rows that are being written, each filled up to its own length: rows come and go.
#
# It is what `transformers` calls a cache, as far as its decoders ask for one: `update` for each layer of a pass.


# Columns that are added when the longest row is full: growing copies everything.
_GROWTH: Final = 32


class RowCache:
    """The keys and values of B rows, (B, H, W, d) a layer; row b has filled the first `lengths[b]` columns."""

    def __init__(self, lengths: Tensor) -> None:
        """For a first pass over rows padded on the right, (B,) real positions each; it fills the cache as it is."""
        self.lengths = lengths
        self._filled = False
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer: int, **extras: Any) -> tuple[Tensor, Tensor]:
        """Add what a layer computed for the new positions; returns what it may see.

        Args:
            keys: (B, H, 1, d), or of a first pass (B, H, T, d).
            values: Values that belong to the keys, of the same shape.
            layer: Index of the layer.
            extras: Further arguments that a version of `transformers` hands to its caches; not used here.
        """
        if not self._filled:
            self._keys.append(keys)
            self._values.append(values)
            return keys, values
        rows = torch.arange(len(self.lengths), device=keys.device)
        places = self.lengths.to(keys.device)  # a layer may be on a device of its own
        self._keys[layer][rows, :, places] = keys[:, :, 0]
        self._values[layer][rows, :, places] = values[:, :, 0]
        return self._keys[layer], self._values[layer]

    def get_seq_length(self, layer: int = 0) -> int:
        """How many positions a layer holds at most."""
        return self._keys[layer].shape[2] if layer < len(self._keys) else 0

    def filled(self) -> RowCache:
        """After the first pass: from now on, one position a row is added at a time."""
        self._filled = True
        return self

    def make_room(self) -> Tensor:
        """Room for one more position a row; returns what the new position of each row sees, (B, 1, 1, W)."""
        width = self.get_seq_length()
        if int(self.lengths.max()) >= width:
            self._widen(width + _GROWTH)
        columns = torch.arange(self.get_seq_length(), device=self.lengths.device)
        return (columns <= self.lengths[:, None])[:, None, None]

    def advance(self) -> None:
        """Every row has one position more."""
        self.lengths = self.lengths + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        chosen = torch.tensor(rows, device=self.lengths.device, dtype=torch.long)
        self.lengths = self.lengths[chosen]
        width = int(self.lengths.max()) if rows else 0
        self._keys = [keys[chosen.to(keys.device), :, :width] for keys in self._keys]
        self._values = [values[chosen.to(values.device), :, :width] for values in self._values]

    def part(self, rows: Sequence[int]) -> RowCache:
        """A cache of these rows alone."""
        found = RowCache(self.lengths).filled()
        found._keys, found._values = self._keys, self._values
        found.keep(rows)
        return found

    def join(self, other: RowCache) -> None:
        """Append the rows of another cache."""
        width = max(self.get_seq_length(), other.get_seq_length())
        self._widen(width)
        other._widen(width)
        self.lengths = torch.cat([self.lengths, other.lengths])
        self._keys = [torch.cat(pair) for pair in zip(self._keys, other._keys, strict=True)]
        self._values = [torch.cat(pair) for pair in zip(self._values, other._values, strict=True)]

    def _widen(self, width: int) -> None:
        more = (0, 0, 0, width - self.get_seq_length())
        self._keys = [pad(keys, more) for keys in self._keys]
        self._values = [pad(values, more) for values in self._values]


# Rows of a decoder in the middle of their answers: text and answer are one sequence, one more position at a time.


class DecoderRows:
    """State of the rows, read and written: keys and values, each row up to its own length."""

    def __init__(self, backbone: Backbone, cache: RowCache) -> None:
        """Rows whose texts are in the cache."""
        self._backbone, self._cache = backbone, cache

    def step(self, last: Tensor, *, steering: Steering | None) -> Tensor:
        """Read one more token a row, (B,); returns the states that the next ones are chosen from, (B, h)."""
        seen = self._cache.make_room()
        states = _run_forward(
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
        """Return a copy of these rows alone; the rows here stay as they are."""
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
    states = _run_forward(backbone, inputs, seen=seen, positions=layout.position_ids, cache=cache, steering=steering)
    cache.filled().keep(range(len(rows)))
    return DecoderRows(backbone, cache), states[torch.arange(len(rows), device=states.device), layout.lengths - 1]


def _run_forward(
    backbone: Backbone, inputs: Tensor, *, seen: Tensor, positions: Tensor, cache: RowCache, steering: Steering | None
) -> Tensor:
    with apply_steering(steering):
        states: Tensor = backbone.encoder(
            inputs_embeds=inputs.to(backbone.dtype),
            attention_mask=seen,
            position_ids=positions,
            **make_cache_arguments(backbone.encoder, cache),
        ).last_hidden_state
    return states


# Rows of an encoder-decoder in the middle of their answers: each text was read once, each word is one more step.
#
# The keys and values of the answers are aligned at their last words: row b has filled the last `written[b]` columns. T5
# knows distances only, and so the columns of a batch are at the right distance from the next word of every row; BART is
# told the position of each row's next word. Keys of the texts have no positions; they are aligned at their beginnings.


class EncoderDecoderRows:
    """State of the rows, read and written: of each layer the keys and values of the texts and of the answers."""

    def __init__(self, backbone: Backbone, cache: EncoderDecoderCache, *, read: Tensor) -> None:
        """Rows that have read nothing of their answers.

        Args:
            backbone: Backbone with an encoder and a decoder.
            cache: Empty; the first step fills in what the decoder sees of the texts.
            read: Real positions of each row in the encoder, (B,).
        """
        self._backbone, self._cache = backbone, cache
        self._read, self._written = read, torch.zeros_like(read)

    def step(self, last: Tensor, *, steering: Steering | None, texts: Tensor | None = None) -> Tensor:
        """Read one more word a row, (B,); returns the states that the next ones are chosen from, (B, h).

        Args:
            last: Words that were written last.
            steering: Steering of the rows; None leaves the model as it is.
            texts: Encoder states of the texts with the first step, (B, S, h); from then on they are in the cache.
        """
        assert self._backbone.decoder is not None
        inputs = self._backbone.embed(last[:, None]).to(self._backbone.dtype)
        before = self._cache.get_seq_length()
        own = torch.arange(before + 1, device=last.device) >= before - self._written[:, None]
        seen_texts = torch.arange(int(self._read.max()), device=last.device) < self._read[:, None]
        with apply_steering(steering), place_rows_at(self._written[:, None]):
            states: Tensor = self._backbone.decoder(
                inputs_embeds=inputs,
                attention_mask=own[:, None, None],
                # Once they are in the cache, all that is asked is whether there are any.
                encoder_hidden_states=inputs if texts is None else texts,
                encoder_attention_mask=seen_texts[:, None, None],
                **make_cache_arguments(self._backbone.decoder, self._cache),
            ).last_hidden_state
        self._written = self._written + 1
        return states[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        chosen = torch.tensor(rows, device=self._read.device, dtype=torch.long)
        self._read, self._written = self._read[chosen], self._written[chosen]
        first = self._cache.get_seq_length() - int(self._written.max())
        width = int(self._read.max())
        for layer in list_cache_layers(self._cache.self_attention_cache):
            here = chosen.to(layer.keys.device)  # a layer may be on a device of its own
            layer.keys, layer.values = layer.keys[here, :, first:], layer.values[here, :, first:]
        for layer in list_cache_layers(self._cache.cross_attention_cache):
            here = chosen.to(layer.keys.device)
            layer.keys, layer.values = layer.keys[here, :, :width], layer.values[here, :, :width]

    def part(self, rows: Sequence[int]) -> EncoderDecoderRows:
        """Return a copy of these rows alone; the rows here stay as they are."""
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
    for layer, added in zip(list_cache_layers(cache), list_cache_layers(other), strict=True):
        layer.keys = torch.cat([_widen_cache(keys, width, at_end=at_end) for keys in (layer.keys, added.keys)])
        layer.values = torch.cat(
            [_widen_cache(values, width, at_end=at_end) for values in (layer.values, added.values)]
        )


def _widen_cache(tensor: Tensor, width: int, *, at_end: bool) -> Tensor:
    more = width - tensor.shape[2]
    return pad(tensor, (0, 0, 0, more) if at_end else (0, 0, more, 0))


class RowsRead(Protocol):
    """State of B rows, read and written, as a kind of backbone keeps it."""

    def step(self, last: Tensor, *, steering: Steering | None) -> Tensor:
        """Read one more token a row, (B,); returns the states that the next ones are chosen from, (B, h)."""

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, of which there is one at least."""

    def part(self, rows: Sequence[int]) -> Self:
        """These rows alone, of which there is one at least; the others stay where they are."""

    def join(self, other: Self) -> None:
        """Append the rows of another of the same backbone."""


class Read(Protocol):
    """Reads the texts of new rows: returns them, and the states that their first tokens are chosen from, (B, h)."""

    def __call__(
        self, backbone: Backbone, rows: Sequence[GenerationRow], *, steering: Steering
    ) -> tuple[RowsRead, Tensor]:
        """Return the rows after their texts, and the states that their first tokens are chosen from, (B, h)."""


READ: Final[Mapping[Kind, Read]] = {"decoder": read_with_decoder, "encoder-decoder": read_with_encoder_decoder}


_LAW_LENGTHS: Final = (5, 3)


@torch.inference_mode()
def check_cached_writing(backbone: Backbone) -> None:
    """Refuse a model whose next states are others when what came before is kept and not computed again.

    The law is computed on public tokens, for two texts of different lengths. The second joins after the first word of
    the answer to the first, so that the next words stand at different positions of different columns.

    Raises:
        UsageError: The law is broken, or the model cannot be given our caches at all.
    """
    ids = [int(token) for token in backbone.vocabulary.eligible[: max(_LAW_LENGTHS) + 2]]
    texts, (first, second) = [ids[:length] for length in _LAW_LENGTHS], ids[-2:]
    rows = [GenerationRow(token_ids=tuple(text), most_tokens=1) for text in texts]
    nothing = steer([NOTHING])
    try:
        read, joining = (READ[backbone.kind](backbone, [row], steering=nothing)[0] for row in rows)
        read.step(torch.tensor([first], device=backbone.device), steering=nothing)
        read.join(joining)
        found = read.step(torch.tensor([second, second], device=backbone.device), steering=steer([NOTHING] * 2))
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError, KeyError):
        found = torch.full((len(rows), 1), torch.nan, device=backbone.device)
    answers = ([first, second], [second])
    wanted = torch.stack([_write_anew(backbone, *row) for row in zip(texts, answers, strict=True)])
    apart = (found - wanted).abs().mean() / wanted.abs().mean().clamp(min=1e-12)
    if not bool(apart <= (1e-3 if backbone.dtype == torch.float32 else 0.05)):
        raise UsageError(
            f"a model of architecture {backbone.architecture!r} cannot be served: what it writes must not depend on "
            "whether keys and values are kept; choose another model"
        )


def _write_anew(backbone: Backbone, text: list[int], answer: list[int]) -> Tensor:
    """The state after a text and the words of its answer, (h,), with nothing kept."""
    frame, decodes = backbone.frame, backbone.kind == "encoder-decoder"
    ids = torch.tensor([[*frame.start, *text, *(frame.end if decodes else answer)]], device=backbone.device)
    mask, places = torch.ones_like(ids), torch.arange(ids.shape[1], device=backbone.device)[None]
    states = backbone.encode(backbone.embed(ids), attention_mask=mask, position_ids=places)
    if decodes:
        words = torch.tensor([[*frame.decoder_start, *answer]], device=backbone.device)
        states = backbone.decode(words, encoder_states=states, encoder_mask=mask)
    return states[0, -1]


class DecodingBatch:
    """Rows of one backbone in the middle of their answers."""

    def __init__(self, backbone: Backbone) -> None:
        """Start a batch that has no rows yet."""
        self._backbone = backbone
        self._rows: list[GenerationRow] = []
        self._generators: list[torch.Generator] = []
        self._last: list[int] = []
        self._read: RowsRead | None = None
        self._steering: Steering | None = None

    def __len__(self) -> int:
        """How many rows are being written."""
        return len(self._rows)

    @torch.inference_mode()
    def join(self, rows: Sequence[GenerationRow]) -> list[Choice]:
        """Read new rows, checked by `check_generation`, which come last in the batch; returns their first tokens."""
        read, states = READ[self._backbone.kind](self._backbone, rows, steering=steer([row.tuned for row in rows]))
        new = DecodingBatch(self._backbone)
        new._rows, new._read = list(rows), read
        new._generators = [torch.Generator().manual_seed(row.sampling.seed) for row in rows]
        choices = self._choose(states, rows, new._generators)
        new._last = [choice.token_id for choice in choices]
        self.put_in(new)
        return choices

    @torch.inference_mode()
    def step(self) -> list[Choice]:
        """The next token of every row, in their order."""
        assert self._read is not None
        (last,) = send([torch.tensor(self._last)], self._backbone.device)
        choices = self._choose(self._read.step(last, steering=self._steering), self._rows, self._generators)
        self._last = [choice.token_id for choice in choices]
        return choices

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Let all rows go but those at these places."""
        if len(places) == len(self._rows):
            return
        self._rows = [self._rows[place] for place in places]
        self._generators = [self._generators[place] for place in places]
        self._last = [self._last[place] for place in places]
        if not places:
            self._read = None
        elif self._read is not None:
            self._read.keep(places)
        self._steer()

    @torch.inference_mode()
    def take_out(self, place: int) -> DecodingBatch:
        """Let one row go, to be put back later into this batch or another; returns it as a batch of its own."""
        assert self._read is not None
        found = DecodingBatch(self._backbone)
        found._rows, found._last = [self._rows[place]], [self._last[place]]
        found._generators = [self._generators[place]]
        found._read = self._read.part([place])
        found._steer()
        self.keep([other for other in range(len(self._rows)) if other != place])
        return found

    @torch.inference_mode()
    def put_in(self, other: DecodingBatch) -> None:
        """Append the rows of another batch, in the middle of their answers; nothing is left there."""
        if self._read is None or not self._rows:
            self._read = other._read
        elif other._read is not None:
            self._read.join(other._read)
        self._rows += other._rows
        self._generators += other._generators
        self._last += other._last
        self._steer()

    def _steer(self) -> None:
        self._steering = steer([row.tuned for row in self._rows]) if self._rows else None

    def _choose(
        self, states: Tensor, rows: Sequence[GenerationRow], generators: Sequence[torch.Generator]
    ) -> list[Choice]:
        draws = [float(torch.rand((), generator=generator)) for generator in generators]
        return choose(self._backbone.word_logits(states.float()), [row.sampling for row in rows], draws=draws)
