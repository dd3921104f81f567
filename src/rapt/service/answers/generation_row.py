"""A text to be written, and what is checked before it may join a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from rapt.errors import UsageError, record_at
from rapt.service.adapter.adapter import check_plain_tokens
from rapt.service.answers.private_row import PrivateRow
from rapt.service.answers.sampling import Sampling
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import check_texts


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRow(PrivateRow):
    """A row whose answer is written; its adapter is of the task `generation`.

    Attributes:
        most_tokens: Most that are written.
        sampling: How.
    """

    most_tokens: int
    sampling: Sampling = field(default_factory=Sampling)

    def cue(self, backbone: Backbone) -> tuple[int, ...]:
        """What stands between text and answer: as in tuning; a bare decoder goes on where the text ends."""
        return backbone.frame.between if self.adapter is not None and backbone.kind == "decoder" else ()


def check_generation(backbone: Backbone, row: GenerationRow, *, position: int) -> None:
    """Refuse a row before it can spoil a batch.

    Raises:
        UsageError: The backbone writes no text, the adapter does something else or was tuned with other plain tokens,
            or the row does not fit.
    """
    if backbone.kind == "encoder":
        raise UsageError(
            f"text can be written by a decoder or an encoder-decoder, got model={backbone.model!r}, an encoder; "
            "choose another model"
        )
    if row.adapter is not None and row.adapter.card.task != "generation":
        raise UsageError("the model must write text, got one that chooses among classes; ask it for a label")
    check_plain_tokens(row.adapter, row.plain, position=position)
    shares = backbone.kind == "decoder"  # one sequence for text and answer; the other kind has one for each
    if not shares and row.most_tokens > backbone.max_positions:
        raise UsageError(
            f"the answer to {record_at(position)} must fit into {backbone.max_positions} positions, got "
            f"max_tokens={row.most_tokens}; ask for less"
        )
    check_texts(
        backbone,
        row.token_ids,
        row.second_token_ids,
        prompt_length=row.tuned.prompt_length,
        plain_tokens=len(row.plain),
        position=position,
        other_tokens=len(row.cue(backbone)) + row.most_tokens if shares else 0,
    )
