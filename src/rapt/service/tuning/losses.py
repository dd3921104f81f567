"""Parts that a run trains, and its loss on a batch: L = L_task + λ L_rec (RAPT, Eq. 10).

The backbone stays as it is. What is trained is the method, the task head and, with reconstruction, a head that is
thrown away at the end. Everything here works on token ids that were privatized before they arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rapt.service.adapter.methods import METHODS
from rapt.service.adapter.task_head import pool_text
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.codewords import Reader
from rapt.service.backbone.layout import Layout, encode_with_prompts
from rapt.service.backbone.placement import send
from rapt.service.backbone.steering import Steering, Tuned, steer
from rapt.service.tuning.tasks import TASKS
from rapt.service.tuning.tuning_config import TuningConfig
from rapt.wire.manifest import Manifest, PlainTokens
from rapt.wire.privatized_file import PrivatizedRecord


@dataclass(frozen=True, eq=False)
class Losses:
    """The parts of L for one batch.

    Attributes:
        task: L_task, the mean over `total` answers; carries a gradient.
        reconstruction: L_rec, the mean over the plain tokens of the rows, or None.
        right: Number of right answers, a scalar.
        total: Number of answers that the batch asks for.
        rows: Records of the batch.
    """

    task: Tensor
    reconstruction: Tensor | None
    right: Tensor
    total: int
    rows: int

    def combined(self, *, weight: float, of_answers: float = 1.0, of_rows: float = 1.0) -> Tensor:
        """L = L_task + λ L_rec; of a part of a batch, by its shares of answers and rows.

        Args:
            weight: Weight λ of the reconstruction loss.
            of_answers: Share of the batch's answers.
            of_rows: Share of its rows.
        """
        loss = self.task * of_answers
        if self.reconstruction is not None:
            loss = loss + self.reconstruction * (of_rows * weight)
        return loss


class Tuning(nn.Module):
    """All that a run trains: the method, the task head, and the reconstruction head if there is one."""

    def __init__(self, backbone: Backbone, manifest: Manifest, config: TuningConfig) -> None:
        """Initialize from the seed; the same seed gives the same method and task head with and without L_rec."""
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        labels = manifest.labels or ()
        self.method = METHODS[config.method].make(backbone, config, labels, generator)
        self.task_head = TASKS[config.task].make_head(
            backbone,
            labels=labels,
            label_words=config.label_words or None,
            pairs=manifest.pairs,
            generator=generator,
        )
        self.reconstruction_head: ReconstructionHead | None = None
        if config.reconstruction is not None:
            self.reconstruction_head = ReconstructionHead(
                hidden_size=backbone.hidden_size,
                head_size=config.reconstruction.head_size,
                classes=len(manifest.plain_tokens.pool) if backbone.reader is None else len(backbone.reader.plain),
                generator=generator,
            )
        self.to(backbone.device)
        self._backbone = (backbone,)  # in a tuple, so that its weights are not parameters of this module
        self._task = TASKS[config.task]
        self._generates = config.task == "generation"
        self._plain = manifest.plain_tokens
        self._mechanism = manifest.mechanism
        self._seed = config.seed
        self._label_privacy = manifest.label_privacy

    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that takes a gradient, by name, in a fixed order."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def tuned(self) -> Tuned:
        """Return what the method puts into a forward pass, differentiable in its parameters."""
        tuned: Tuned = self.method()
        return tuned

    def answers(self, records: Sequence[PrivatizedRecord]) -> int:
        """Count the answers that a batch asks for, before it is computed: its rows, or the tokens of its targets."""
        (backbone,) = self._backbone
        closing = 0 if backbone.frame.eos_id is None else 1
        if self._generates:
            return sum(len(record.target_ids or ()) + closing for record in records)
        return len(records)

    def losses(self, records: Sequence[PrivatizedRecord], *, draws: Sequence[tuple[int, int]] | None = None) -> Losses:
        """The losses of one batch of B records.

        Args:
            records: Records, codes in them spelled.
            draws: Two numbers for each record, of which the noise of plain texts is drawn; behind a reader nothing is
                reconstructed without.
        """
        (backbone,) = self._backbone
        steering = steer([self.tuned()] * len(records))
        head, reader = self.reconstruction_head, backbone.reader
        plain = head is not None and reader is None
        layout = self._task.lay_out(backbone, records, prompt_lengths=steering.prompt_lengths, plain=plain)
        # A method without parameters has nothing to learn from the pass, so none of it is kept for a gradient.
        learns = torch.is_grad_enabled() and any(True for _ in self.method.parameters())
        with torch.set_grad_enabled(learns):
            states = encode_with_prompts(backbone, layout, steering.prompts, steering=steering)
        outcome = self._task.outcome(
            backbone, states, layout, records, self.task_head, label_privacy=self._label_privacy, steering=steering
        )
        reconstruction = None
        if head is not None and reader is not None:
            if draws is not None:
                reconstruction = self._reconstruct_plain_texts(backbone, reader, head, draws, steering=steering)
        elif head is not None:
            targets = find_plain_token_targets(records, self._plain, device=states.device)
            reconstruction = reconstruction_loss(
                select_plain_states(states, layout, count=self._plain.count), targets, head
            )
        return Losses(
            task=outcome.loss,
            reconstruction=reconstruction,
            right=outcome.right,
            total=outcome.total,
            rows=len(records),
        )

    def _reconstruct_plain_texts(
        self,
        backbone: Backbone,
        reader: Reader,
        head: ReconstructionHead,
        draws: Sequence[tuple[int, int]],
        *,
        steering: Steering,
    ) -> Tensor:
        """L_rec of codes: cross-entropy of public texts given the mean states of their codes, as many as records.

        RAPT puts privatized plain tokens before each text; a code has no place for them, and the mechanism is public.
        So plain texts are rows of their own, released anew in each step, and queries need none.
        """
        epsilon, drawn = self._mechanism.epsilon, []
        for pair in draws:
            drawn.append(reader.draw_plain(self._mechanism, rng=np.random.default_rng([self._seed, *pair])))
        rows = [PrivatizedRecord(token_ids=reader.spell(ids, epsilon=epsilon)) for _, ids in drawn]
        layout = self._task.lay_out(backbone, rows, prompt_lengths=steering.prompt_lengths, plain=False)
        states = encode_with_prompts(backbone, layout, steering.prompts, steering=steering)
        targets = torch.tensor([text for text, _ in drawn], device=states.device)
        return nn.functional.cross_entropy(head(pool_text(states, layout.text_mask)), targets)


# Privatized token reconstruction: a head that is trained to undo the noise on public plain tokens, then thrown away.
#
# The user sends plain tokens k with their privatized forms M(k). The head predicts k from the last-layer states at the
# positions of M(k), so that the soft prompt learns to steer the backbone through the noise (RAPT, Sec. 3 and Eq. 5-7).


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


def select_plain_states(states: Tensor, layout: Layout, *, count: int) -> Tensor:
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


def find_plain_token_targets(
    records: Sequence[PrivatizedRecord], plain: PlainTokens, *, device: torch.device
) -> Tensor:
    """Index in the pool of each record's true plain tokens, (B, m), int64."""
    index = plain.pool_index
    rows = [record.plain_tokens if plain.fixed is None else plain.fixed for record in records]
    (targets,) = send([torch.tensor([[index[token] for token in row or ()] for row in rows])], device)
    return targets
