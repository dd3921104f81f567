"""A text to be written: what is checked before it may join a batch, and how its next tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rapt.errors import UsageError, name_record
from rapt.service.adapter.adapter import check_plain_tokens
from rapt.service.answers.rows import PrivateRow, check_fit
from rapt.service.backbone.backbone import Backbone

# The next token of each row: the likeliest, or a draw from the likeliest few, from the row's own generator.
#
# A row has a generator of its own. Its likelihoods may differ in the last bits with what shares its batch, in bfloat16
# by enough to turn many a draw; so a row that is to be drawn again is computed in passes of its own (`writing`).


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a row chooses.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest.
        top_p: Only the likeliest tokens of this total probability are drawn from (Holtzman et al. 2020).
        seed: Seed of the row's own generator.
        repeatable: Whether the seed was asked for: the row is then computed alone, to the same bits in any company.
        top_logprobs: Number of alternatives that are reported with each token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    repeatable: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A chosen token and how likely it was, in nats, at temperature 1; alternatives likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def choose(logits: Tensor, samplings: Sequence[Sampling], *, draws: Sequence[float]) -> list[Choice]:
    """One choice a row.

    Args:
        logits: (B, V), float32.
        samplings: Sampling of each row, B of them.
        draws: A number from [0, 1) for each row, of its own generator.
    """
    logprobs = torch.log_softmax(logits, dim=1)
    chosen = logits.argmax(dim=1)
    drawing = [index for index, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawing:
        temperatures = torch.tensor([samplings[index].temperature for index in drawing], device=logits.device)
        tops = torch.tensor([samplings[index].top_p for index in drawing], device=logits.device)
        uniform = torch.tensor([draws[index] for index in drawing], device=logits.device)
        found, order = torch.softmax(logits[drawing] / temperatures[:, None], dim=1).sort(dim=1, descending=True)
        before = found.cumsum(dim=1) - found
        found = torch.where(before < tops[:, None], found, 0.0)  # the likeliest is always among them
        reached = found.cumsum(dim=1)
        # Of the first place whose cumulative probability is above the draw: the inverse of the distribution function.
        places = (reached <= uniform[:, None] * reached[:, -1:]).sum(dim=1).clamp(max=found.shape[1] - 1)
        chosen[drawing] = order.gather(1, places[:, None])[:, 0]
    likely = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    most = max(sampling.top_logprobs for sampling in samplings)
    values, ids = logprobs.topk(most, dim=1) if most else (logprobs[:, :0], chosen[:, None][:, :0])
    return [
        Choice(token_id=token, logprob=own, top=tuple(zip(tokens, numbers, strict=True))[: sampling.top_logprobs])
        for token, own, tokens, numbers, sampling in zip(
            chosen.tolist(), likely, ids.tolist(), values.tolist(), samplings, strict=True
        )
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRow(PrivateRow):
    """A row whose answer is written; its adapter is of the task `generation`.

    Attributes:
        most_tokens: Most that are written.
        sampling: Rule by which the tokens are chosen.
    """

    most_tokens: int
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def cost(self) -> int:
        """Positions that it takes at most, about."""
        return self.positions + self.most_tokens

    def cue(self, backbone: Backbone) -> tuple[int, ...]:
        """Return the tokens between text and answer: as in tuning; a bare decoder goes on where the text ends."""
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
    if not shares and len(backbone.frame.decoder_start) + row.most_tokens > backbone.max_positions + 1:
        raise UsageError(
            f"the answer to {name_record(position)} must fit into {backbone.max_positions} positions, got "
            f"max_tokens={row.most_tokens}; ask for less"
        )
    other_tokens = len(row.cue(backbone)) + row.most_tokens if shares else 0
    check_fit(backbone, row, position=position, other_tokens=other_tokens)
