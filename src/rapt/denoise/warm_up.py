"""The warm-up: privatize public text, batch after batch, and let the student catch up with its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from rapt.denoise.plan import WarmUpPlan
from rapt.denoise.public_text import PublicTexts
from rapt.denoise.soft_embeddings import DRAWS, kept_soft_embeddings, mean_of_settings, word_prior
from rapt.denoise.steps import Tokens, batches, privatize, rate
from rapt.errors import TuningError
from rapt.local.mechanisms import make_mechanism
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import Vocabulary
from rapt.service.model.denoising import Student

_LONGEST_GRADIENT: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Share of the teacher's variance that a backbone gets right on held-out privatized text, 1 at best.

    It is below 0 for one that would do better to answer with a constant.

    Attributes:
        eta: At which the text was privatized.
        before: Of the backbone as it was.
        after: Of the backbone that expects noise.
    """

    eta: float
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step; the errors are those of `Agreement`."""

    step: int
    steps: int
    text_error: float
    token_error: float


def warm_up(
    student: Student,
    texts: PublicTexts,
    *,
    vocabulary: Vocabulary,
    plan: WarmUpPlan,
    soft_draws: int = DRAWS,
    on_step: Callable[[Step], None] = lambda step: None,
) -> tuple[Explained, ...]:
    """Train the student in place; returns what it explains of held-out text at each η, before and after.

    Args:
        student: Of the plan's model.
        texts: Public.
        vocabulary: Of the same model.
        plan: What is done.
        soft_draws: For soft embeddings at each η, where the channel has no closed form.
        on_step: Called after each step.

    Raises:
        MechanismError: The mechanism is unknown or its options do not fit.
        TuningError: The loss is not finite.
    """
    rng = insecure_stream(plan.seed).generator
    noise = [
        make_mechanism(plan.mechanism, vocabulary=vocabulary, eta=eta, options=dict(plan.options), allow_unproved=True)
        for eta in plan.etas
    ]
    # The same noise before and after, so the two differ by the student alone.
    queries = [privatize(mechanism, texts.held_out, rng=rng) for mechanism in noise]
    before = [_explained(student, texts.held_out, query) for query in queries]
    if plan.soft_embeddings:
        prior = word_prior(texts.training, vocabulary=vocabulary)
        settings = [
            kept_soft_embeddings(vocabulary, mechanism, prior=prior, seed=plan.seed, draws=soft_draws)
            for mechanism in noise
        ]
        student.see_words_as(torch.from_numpy(mean_of_settings(settings)))
    steps = math.ceil(plan.epochs * len(texts.training) / plan.batch_size)
    # No dropout: fresh noise in every batch is what keeps the student from learning texts by heart.
    optimizer = torch.optim.AdamW(student.parameters(), lr=plan.learning_rate, fused=True)
    for step, batch in enumerate(batches(texts.training, size=plan.batch_size, steps=steps, rng=rng), start=1):
        noisy = privatize(noise[int(rng.integers(len(noise)))], batch, rng=rng)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate(step, steps)
        agreement = student.agreement(batch, noisy)
        if not torch.isfinite(agreement.loss):
            raise TuningError(f"the loss must be finite, got another at step={step}; lower the learning rate")
        optimizer.zero_grad()
        torch.autograd.backward(agreement.loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), _LONGEST_GRADIENT)
        optimizer.step()
        on_step(Step(step=step, steps=steps, text_error=agreement.text.item(), token_error=agreement.tokens.item()))
    after = [_explained(student, texts.held_out, query) for query in queries]
    return tuple(
        Explained(eta=eta, before=first, after=last) for eta, first, last in zip(plan.etas, before, after, strict=True)
    )


@torch.no_grad()
def _explained(student: Student, clear: Tokens, noisy: Tokens) -> float:
    agreement = student.agreement(clear, noisy)
    return 1.0 - agreement.text.item()
