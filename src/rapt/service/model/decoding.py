"""Writing text row by row in one batch: rows join while others are in the middle of theirs, and leave when they end.

Every row has its own adapter, its own length and its own generator. What it writes does not depend on who shares the
batch. A prefix is never in the cache (`injection`), so a change of the batch only rebuilds its steering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rapt.errors import UsageError
from rapt.service.model.adapter import Adapter, check_plain_tokens
from rapt.service.model.backbone import Backbone
from rapt.service.model.layout import check_texts, embed_with_prompts, lay_out
from rapt.service.model.row_cache import RowCache
from rapt.service.model.sampling import Choice, Sampling, choose
from rapt.service.model.steering import NOTHING, Steering, Tuned, steer, steered


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRow:
    """A privatized text to be continued, and the adapter that continues it; without one, the bare backbone does.

    Attributes:
        token_ids: M(x).
        adapter: Of the task `generation`, or None.
        privatized_plain_tokens: M(k).
        second_token_ids: M(x2), or None.
        most_tokens: Most that are written.
        sampling: How.
    """

    token_ids: tuple[int, ...]
    adapter: Adapter | None = None
    privatized_plain_tokens: tuple[int, ...] = ()
    second_token_ids: tuple[int, ...] | None = None
    most_tokens: int
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def plain(self) -> tuple[int, ...]:
        """The plain tokens that take part: an adapter tuned without reconstruction has never seen any."""
        return self.privatized_plain_tokens if self.adapter is not None and self.adapter.card.plain_tokens else ()

    @property
    def tuned(self) -> Tuned:
        """What the adapter adds to every pass."""
        return NOTHING if self.adapter is None else self.adapter.tuned

    def cue(self, backbone: Backbone) -> tuple[int, ...]:
        """What stands between text and answer: as in tuning; a bare backbone goes on where the text ends."""
        return () if self.adapter is None else backbone.frame.between


def check_generation(backbone: Backbone, row: GenerationRow, *, position: int) -> None:
    """Refuse a row before it can spoil a batch.

    Raises:
        UsageError: The backbone does not continue text, the adapter does something else, or the row does not fit.
    """
    if backbone.kind != "decoder":
        raise UsageError(
            f"text can be continued by a decoder, got model={backbone.model!r} of kind {backbone.kind}; "
            "choose another model"
        )
    check_adapter(row, position=position)
    check_texts(
        backbone,
        row.token_ids,
        row.second_token_ids,
        prompt_length=row.tuned.prompt_length,
        plain_tokens=len(row.plain),
        position=position,
        other_tokens=len(row.cue(backbone)) + row.most_tokens,
    )


def check_adapter(row: GenerationRow, *, position: int) -> None:
    """Refuse a row whose adapter does something else, or was tuned with other plain tokens (`UsageError`)."""
    if row.adapter is not None and row.adapter.card.task != "generation":
        raise UsageError("the model must write text, got one that chooses among classes; ask it for a label")
    check_plain_tokens(row.adapter, row.plain, position=position)


class DecodingBatch:
    """Rows of one decoder in the middle of their answers."""

    def __init__(self, backbone: Backbone) -> None:
        """Start without rows."""
        self._backbone = backbone
        self._rows: list[GenerationRow] = []
        self._generators: list[torch.Generator] = []
        self._last: list[int] = []
        self._cache: RowCache | None = None
        self._steering: Steering | None = None

    def __len__(self) -> int:
        """How many rows are being written."""
        return len(self._rows)

    @torch.inference_mode()
    def join(self, rows: Sequence[GenerationRow]) -> list[Choice]:
        """Read new rows, which come last in the batch; returns their first tokens."""
        backbone = self._backbone
        steering = steer([row.tuned for row in rows])
        layout = lay_out(
            backbone,
            prompt_lengths=steering.prompt_lengths,
            privatized_plain_tokens=[row.plain for row in rows],
            texts=[row.token_ids for row in rows],
            second_texts=[row.second_token_ids for row in rows],
            cues=[row.cue(backbone) for row in rows],
        )
        inputs = embed_with_prompts(backbone, layout, steering.prompts)
        width = inputs.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=backbone.device).tril()
        seen = causal & layout.attention_mask[:, None, None, :].bool()  # (B, 1, T, T)
        cache = RowCache(layout.lengths)
        states = self._forward(inputs, seen=seen, positions=layout.position_ids, cache=cache, steering=steering)
        cache.filled().keep(range(len(rows)))
        ends = states[torch.arange(len(rows), device=states.device), layout.lengths - 1]
        generators = [torch.Generator().manual_seed(row.sampling.seed) for row in rows]
        choices = self._choose(ends, rows, generators)
        if self._cache is None or not self._rows:
            self._cache = cache
        else:
            self._cache.join(cache)
        self._rows += rows
        self._generators += generators
        self._last += [choice.token_id for choice in choices]
        self._steer()
        return choices

    @torch.inference_mode()
    def step(self) -> list[Choice]:
        """The next token of every row, in their order."""
        assert self._cache is not None
        inputs = self._backbone.embed(torch.tensor(self._last, device=self._backbone.device)[:, None])
        seen = self._cache.make_room()
        states = self._forward(
            inputs, seen=seen, positions=self._cache.lengths[:, None], cache=self._cache, steering=self._steering
        )
        self._cache.advance()
        choices = self._choose(states[:, 0], self._rows, self._generators)
        self._last = [choice.token_id for choice in choices]
        return choices

    def keep(self, places: Sequence[int]) -> None:
        """Let all rows go but those at these places."""
        if len(places) == len(self._rows):
            return
        self._rows = [self._rows[place] for place in places]
        self._generators = [self._generators[place] for place in places]
        self._last = [self._last[place] for place in places]
        if self._cache is not None and places:
            self._cache.keep(places)
        self._steer()

    def _steer(self) -> None:
        self._steering = steer([row.tuned for row in self._rows]) if self._rows else None

    def _forward(
        self, inputs: Tensor, *, seen: Tensor, positions: Tensor, cache: RowCache, steering: Steering | None
    ) -> Tensor:
        with steered(steering):
            states: Tensor = self._backbone.encoder(
                inputs_embeds=inputs.to(self._backbone.dtype),
                attention_mask=seen,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        return states

    def _choose(
        self, states: Tensor, rows: Sequence[GenerationRow], generators: Sequence[torch.Generator]
    ) -> list[Choice]:
        draws = [float(torch.rand((), generator=generator)) for generator in generators]
        return choose(self._backbone.word_logits(states.float()), [row.sampling for row in rows], draws=draws)
