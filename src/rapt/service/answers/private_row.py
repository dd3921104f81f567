"""A privatized text on its way through a backbone, with what a tenant's adapter adds to it: a row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapt.service.adapter.adapter import Adapter
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import Layout, lay_out, sequence_length
from rapt.service.backbone.steering import NOTHING, Steering, Tuned


@dataclass(frozen=True, eq=False, kw_only=True)
class PrivateRow:
    """One privatized text or pair, and the adapter that answers it; without one, the bare backbone does.

    Attributes:
        token_ids: M(x).
        adapter: Or None.
        privatized_plain_tokens: M(k).
        second_token_ids: M(x2), or None.
    """

    token_ids: tuple[int, ...]
    adapter: Adapter | None = None
    privatized_plain_tokens: tuple[int, ...] = ()
    second_token_ids: tuple[int, ...] | None = None

    @property
    def plain(self) -> tuple[int, ...]:
        """The plain tokens that take part: an adapter tuned without reconstruction has never seen any."""
        return self.privatized_plain_tokens if self.adapter is not None and self.adapter.card.plain_tokens else ()

    @property
    def tuned(self) -> Tuned:
        """What the adapter adds to every pass."""
        return NOTHING if self.adapter is None else self.adapter.tuned

    @property
    def added_positions(self) -> int:
        """What a pass computes for the row beside its texts: prompt, prefix and plain tokens."""
        return self.tuned.prompt_length + self.tuned.prefix_length + len(self.plain)

    @property
    def positions(self) -> int:
        """What a pass computes for the row: its length in the backbone, up to a cue of a few tokens, and its prefix."""
        return sequence_length(
            prompt_length=self.tuned.prompt_length + self.tuned.prefix_length,
            plain_tokens=len(self.plain),
            text_tokens=len(self.token_ids) + len(self.second_token_ids or ()),
        )


def lay_out_rows(
    backbone: Backbone,
    rows: Sequence[PrivateRow],
    *,
    steering: Steering,
    cues: Sequence[Sequence[int]] | None = None,
) -> Layout:
    """The layout of rows that share a pass.

    Args:
        backbone: Whose frame goes around the texts.
        rows: Of the pass.
        steering: Of these rows.
        cues: As of `lay_out`.
    """
    return lay_out(
        backbone,
        prompt_lengths=steering.prompt_lengths,
        privatized_plain_tokens=[row.plain for row in rows],
        texts=[row.token_ids for row in rows],
        second_texts=[row.second_token_ids for row in rows],
        cues=cues,
    )
