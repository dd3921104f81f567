"""The warm-up: privatize public text, batch after batch, and let the student catch up with its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rapt.denoise.model_folder import check_source, check_target, save_denoised
from rapt.denoise.plan import Explained, PublicTexts, WarmUpPlan, read_public_texts
from rapt.denoise.soft_embeddings import DRAWS, average_settings, count_word_prior, load_soft_embeddings
from rapt.denoise.student import Student
from rapt.local.mechanisms import Mechanism, make_mechanism
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.narration import SILENT, Narrator
from rapt.service.backbone.opening import Precision
from rapt.training import Losses, ParameterGroup, Trainer, back_propagate, batch_by_length, scale_rate

RISE: Final = 0.05  # share of the steps that the rate takes to its peak
_SORTED_TOGETHER: Final = 16  # batches: texts of one length share a batch, in an order that stays random enough

Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class DenoisedBackbone:
    """A backbone that was made to expect noise.

    Attributes:
        folder: Folder that `rapt serve --model` serves.
        texts: Public windows trained on.
        tokens: Tokens in them.
        explained: Agreement with the teacher at each η.
    """

    folder: Path
    texts: int
    tokens: int
    explained: tuple[Explained, ...]


def denoise_model(
    plan: WarmUpPlan,
    public: Sequence[Path],
    *,
    out: Path,
    text_column: str = "text",
    precision: Precision = "auto",
    threads: int | None = None,
    narrator: Narrator = SILENT,
) -> DenoisedBackbone:
    """Teach a backbone to understand privatized text and write its folder, whole or not at all.

    Args:
        plan: Plan of the warm-up, with the model.
        public: Files of public text; never a user's.
        out: New or empty folder.
        text_column: Column that holds the text.
        precision: Precision of the products; what is trained stays float32.
        threads: Threads of torch; None leaves them.
        narrator: Takes the progress.

    Raises:
        UsageError: The folder holds something, or the model cannot be trained.
        CorpusError: There is too little public text.
        MechanismError: The mechanism is unknown, or its options do not fit.
        TuningError: The loss is not finite.
        VocabularyError: The model is not here.
    """
    check_target(out)
    check_source(plan.model)
    if threads is not None:
        torch.set_num_threads(threads)
    vocabulary = load_vocabulary(plan.model)
    texts = read_public_texts(public, vocabulary=vocabulary, text_column=text_column)
    student = Student(plan.model, precision=precision)
    with narrator.meter("denoising", unit="steps") as meter:
        explained = warm_up(
            student,
            texts,
            vocabulary=vocabulary,
            plan=plan,
            on_step=lambda step, steps, losses: meter(step, total=steps, note=f"error {losses['text_error']:.2f}"),
        )
    count, tokens = len(texts.training), sum(len(text) for text in texts.training)
    save_denoised(student, out, plan=plan, explained=explained, texts=count, tokens=tokens)
    narrator.say(f"backbone: {out}")
    return DenoisedBackbone(folder=out, texts=count, tokens=tokens, explained=explained)


def privatize(mechanism: Mechanism, texts: Tokens, *, rng: np.random.Generator) -> list[list[int]]:
    """The texts privatized, token for token, in one call."""
    flat = np.array([token for text in texts for token in text], dtype=np.int64)
    ends = np.cumsum([len(text) for text in texts])
    return [ids.tolist() for ids in np.split(mechanism.privatize(flat, rng=rng), ends[:-1])]


def draw_batches(texts: Tokens, *, size: int, steps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Places of so many batches, pass after pass, of two texts or more: the variance of one text is no measure."""
    lengths, done = [len(text) for text in texts], 0
    while done < steps:
        for places in batch_by_length(lengths, size=size, permute=rng.permutation, sorted_together=_SORTED_TOGETHER):
            if len(places) > 1:
                yield places
                done += 1
            if done == steps:
                return


def warm_up(
    student: Student,
    texts: PublicTexts,
    *,
    vocabulary: Vocabulary,
    plan: WarmUpPlan,
    soft_draws: int = DRAWS,
    on_step: Callable[[int, int, Losses], None] = lambda step, steps, losses: None,
) -> tuple[Explained, ...]:
    """Train the student in place; returns what it explains of held-out text at each η, before and after.

    Args:
        student: Student of the plan's model.
        texts: Public texts.
        vocabulary: Vocabulary of the same model.
        plan: Plan of the warm-up.
        soft_draws: Draws for soft embeddings at each η, where the channel has no closed form.
        on_step: Called after each step with its number, their number, and the loss and `text_error` of its batch.

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
        prior = count_word_prior(texts.training, vocabulary=vocabulary)
        settings = [
            load_soft_embeddings(vocabulary, mechanism, prior=prior, seed=plan.seed, draws=soft_draws)
            for mechanism in noise
        ]
        student.see_words_as(torch.from_numpy(average_settings(settings)))
    steps = math.ceil(plan.epochs * len(texts.training) / plan.batch_size)
    # No dropout: fresh noise in every batch is what keeps the student from learning texts by heart.
    trainer = Trainer([ParameterGroup(student.trained(), plan.learning_rate)], fused=True)

    def descend(places: NDArray[np.int64]) -> Losses:
        batch = [texts.training[place] for place in places]
        noisy = privatize(noise[int(rng.integers(len(noise)))], batch, rng=rng)
        found = student.measure_agreement(batch, noisy)
        return back_propagate(found.loss) | {"text_error": found.text.item()}

    batches = draw_batches(texts.training, size=plan.batch_size, steps=steps, rng=rng)
    for losses in trainer.follow(batches, descend, rate=lambda step: scale_rate(step, steps, rise=RISE)):
        on_step(trainer.steps, steps, losses)
    after = [_explained(student, texts.held_out, query) for query in queries]
    return tuple(
        Explained(eta=eta, before=first, after=last) for eta, first, last in zip(plan.etas, before, after, strict=True)
    )


@torch.no_grad()
def _explained(student: Student, clear: Tokens, noisy: Tokens) -> float:
    agreement = student.measure_agreement(clear, noisy)
    return 1.0 - agreement.text.item()
