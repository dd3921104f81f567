"""Privatized token reconstruction: a head that is trained to undo the noise on public plain tokens, then thrown away.

The user sends plain tokens k with their privatized forms M(k). The head predicts k from the last-layer states at the
positions of M(k), so that the soft prompt learns to steer the backbone through the noise (RAPT, Sec. 3 and Eq. 5-7).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rapt.service.backbone.layout import Layout
from rapt.wire.manifest import PlainTokens
from rapt.wire.privatized_file import PrivatizedRecord


class ReconstructionHead(nn.Module):
    """Scores of the |T| plain tokens: W1 W2 g, two linear layers without a non-linearity (RAPT, Eq. 6).

    W2 is (c, h) and W1 is (|T|, c): their product has rank at most c.
    """

    def __init__(self, *, hidden_size: int, head_size: int, classes: int, generator: torch.Generator) -> None:
        """Take h, c and |T|; start at small random weights."""
        super().__init__()
        self.w2 = nn.Linear(hidden_size, head_size, bias=False)
        self.w1 = nn.Linear(head_size, classes, bias=False)
        with torch.no_grad():
            self.w2.weight.normal_(std=hidden_size**-0.5, generator=generator)
            self.w1.weight.normal_(std=head_size**-0.5, generator=generator)

    def forward(self, states: Tensor) -> Tensor:
        """Logits (..., |T|) of states (..., h)."""
        logits: Tensor = self.w1(self.w2(states))
        return logits


def plain_states(states: Tensor, layout: Layout, *, count: int) -> Tensor:
    """The states at the plain-token positions, (B, T, h) -> (B, m, h)."""
    columns = layout.plain_start[:, None] + torch.arange(count, device=states.device)
    return states.gather(1, columns[:, :, None].expand(-1, -1, states.shape[2]))


def reconstruction_loss(states: Tensor, targets: Tensor, head: ReconstructionHead) -> Tensor:
    """Mean cross-entropy of the plain tokens given their privatized forms, in nats a token (RAPT, Eq. 7).

    Paper says: the sum over the m plain tokens. We use: their mean, because a sum makes the weight of the task depend
    on m. Effect: the paper's L_task + L_rec is a reconstruction weight of m here.

    Args:
        states: Last-layer states at the plain-token positions, (B, m, h).
        targets: Index of the true plain token in the pool, (B, m), int64. Public: drawn before any text is read.
        head: The reconstruction head, h -> |T|.
    """
    return nn.functional.cross_entropy(head(states).flatten(0, 1), targets.flatten())


def plain_token_targets(records: Sequence[PrivatizedRecord], plain: PlainTokens, *, device: torch.device) -> Tensor:
    """Index in the pool of each record's true plain tokens, (B, m), int64."""
    index = plain.pool_index
    rows = [record.plain_tokens if plain.fixed is None else plain.fixed for record in records]
    return torch.tensor([[index[token] for token in row or ()] for row in rows], device=device)
