"""Training a word head: on public text that is privatized here, which word stood where another arrived.

Only the head is trained. The backbone is one that expects noise, its layers stay as they are, and a batch costs one
forward pass of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rapt.denoise.plan import WordHeadPlan
from rapt.denoise.soft_embeddings import word_prior
from rapt.denoise.steps import Tokens, batches, privatize, rate
from rapt.errors import TuningError
from rapt.local.mechanisms import Mechanism, make_mechanism
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import Vocabulary
from rapt.service.model.backbone import Backbone
from rapt.service.model.noise_expected import NoiseExpected
from rapt.service.model.posterior import AT_ONCE, text_states
from rapt.service.model.word_head import WordHead

# Share of a batch's positions that the loss is taken at: logits over a vocabulary are most of the memory.
_POSITIONS: Final = 0.5
_LONGEST_GRADIENT: Final = 1.0
# Of a word that can never be put out, such as a special one: finite, so that a text that has it can be learned.
_NEVER: Final = 1e-9
_READ_AT_ONCE: Final = 32  # texts


@dataclass(frozen=True, kw_only=True)
class WordsRead:
    """What is read right of held-out privatized text, as shares of its tokens.

    Attributes:
        eta: At which the text was privatized.
        unchanged: Tokens that the mechanism left alone: right for who takes every word at its word.
        read: Tokens whose most likely word is the true one.
        nats_without_context: Cross-entropy of the true words, nats a token, before training: by frequency and copying.
        nats: The same after training.
    """

    eta: float
    unchanged: float
    read: float
    nats_without_context: float
    nats: float


def expected_mechanisms(noise: NoiseExpected, *, vocabulary: Vocabulary) -> list[Mechanism]:
    """The mechanism at each η that a backbone expects.

    Raises:
        MechanismError: It is unknown or its options do not fit.
    """
    return [
        make_mechanism(
            noise.mechanism, vocabulary=vocabulary, eta=eta, options=dict(noise.options), allow_unproved=True
        )
        for eta in noise.etas
    ]


def new_word_head(backbone: Backbone, texts: Tokens, *, vocabulary: Vocabulary, seed: int) -> WordHead:
    """A head before its training, with the frequencies of words in public texts."""
    prior = np.log(word_prior(texts, vocabulary=vocabulary) + _NEVER)
    return WordHead(
        torch.from_numpy(backbone.bundle.embeddings.copy()),
        log_prior=torch.from_numpy(prior).float(),
        generator=torch.Generator().manual_seed(seed),
    ).to(backbone.device)


def train_word_head(
    head: WordHead,
    backbone: Backbone,
    texts: Tokens,
    *,
    mechanisms: Sequence[Mechanism],
    plan: WordHeadPlan,
    on_step: Callable[[int, int, float], None] = lambda step, steps, nats: None,
) -> None:
    """Train the head in place.

    Args:
        head: New.
        backbone: Frozen; left as it is found.
        texts: Public, as content tokens.
        mechanisms: Each batch is privatized afresh by one of them.
        plan: How.
        on_step: Called after each step with its number, their number, and the loss in nats a token.

    Raises:
        TuningError: The loss is not finite.
    """
    rng = insecure_stream(plan.seed).generator
    steps = math.ceil(plan.epochs * len(texts) / plan.batch_size)
    # No dropout: fresh noise in every batch is what keeps the head from learning texts by heart.
    optimizer = torch.optim.AdamW(head.parameters(), lr=plan.learning_rate)
    for step, batch in enumerate(batches(texts, size=plan.batch_size, steps=steps, rng=rng), start=1):
        noisy = privatize(mechanisms[int(rng.integers(len(mechanisms)))], batch, rng=rng)
        states, arrived = text_states(backbone, noisy)
        chosen = torch.from_numpy(rng.permutation(len(arrived))[: math.ceil(_POSITIONS * len(arrived))])
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate(step, steps)
        loss = cross_entropy(head(states[chosen], arrived[chosen]), _flat(batch, like=arrived)[chosen])
        if not torch.isfinite(loss):
            raise TuningError(f"the loss must be finite, got another at step={step}; lower the learning rate")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(head.parameters(), _LONGEST_GRADIENT)
        optimizer.step()
        on_step(step, steps, loss.item())
    head.requires_grad_(False)


@torch.no_grad()
def words_read(
    heads: tuple[WordHead, WordHead], backbone: Backbone, texts: Tokens, *, mechanism: Mechanism, eta: float, seed: int
) -> WordsRead:
    """What two heads read of texts that are privatized once.

    Args:
        heads: Before and after training.
        backbone: Theirs.
        texts: Public and held out.
        mechanism: That privatizes them.
        eta: Its η.
        seed: Of the noise.
    """
    noisy = privatize(mechanism, texts, rng=insecure_stream(seed).generator)
    nats, read, unchanged, count = [0.0, 0.0], 0, 0, 0
    for start in range(0, len(texts), _READ_AT_ONCE):
        part = slice(start, start + _READ_AT_ONCE)
        states, arrived = text_states(backbone, noisy[part])
        true = _flat(texts[part], like=arrived)
        count += len(true)
        unchanged += int((arrived == true).sum())
        for first in range(0, len(true), AT_ONCE):
            places = slice(first, first + AT_ONCE)
            before, after = (head(states[places], arrived[places]) for head in heads)
            for which, logits in enumerate((before, after)):
                nats[which] += cross_entropy(logits, true[places], reduction="sum").item()
            read += int((after.argmax(dim=1) == true[places]).sum())
    return WordsRead(
        eta=eta,
        unchanged=unchanged / count,
        read=read / count,
        nats_without_context=nats[0] / count,
        nats=nats[1] / count,
    )


def _flat(texts: Tokens, *, like: Tensor) -> Tensor:
    return torch.tensor([token for text in texts for token in text]).to(like)
