"""Writing text row by row in one batch: rows join while others are in the middle of theirs, and leave when they end.

Every row has its own adapter, its own length and its own generator. What it writes does not depend on who shares the
batch. A prefix is never in a cache (`injection`), so a change of the batch only rebuilds its steering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, Self

import torch
from torch import Tensor

from rapt.service.answers.decoder_rows import read_with_decoder
from rapt.service.answers.encoder_decoder_rows import read_with_encoder_decoder
from rapt.service.answers.generation_row import GenerationRow
from rapt.service.answers.sampling import Choice, choose
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.backbone_parts import Kind
from rapt.service.backbone.steering import Steering, steer


class RowsRead(Protocol):
    """What B rows have read and written, as a kind of backbone keeps it."""

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
        """See the class."""


READ: Final[Mapping[Kind, Read]] = {"decoder": read_with_decoder, "encoder-decoder": read_with_encoder_decoder}


class DecodingBatch:
    """Rows of one backbone in the middle of their answers."""

    def __init__(self, backbone: Backbone) -> None:
        """Start without rows."""
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
        last = torch.tensor(self._last, device=self._backbone.device)
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
