"""Canaries: sentences of random words with a random label, put into the texts R times, and looked for in the model.

Nothing but memory can connect such a sentence with its label. The attacker knows the form of the secret and has many
sentences of that form; he asks the model about each of them with that label and ranks the answers. *Exposure* is
log2(sentences) - log2(rank) (Carlini et al., "The Secret Sharer", USENIX Security 2019, Definition 4): all of the bits
that the sentence hides when it comes first, 1.44 bits on average by chance. Each repetition is a release of its own, so
exposure over R shows what repeating a text costs.

*p.* Without memory each rank is uniform, so -2 Σ ln(rank / sentences) is at most a chi-square value of 2n degrees of
freedom (Fisher 1925): the probability of ranks as good as these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from rapt.audit.artefact.confidence import confidences, of_labels
from rapt.audit.artefact.models import Workshop
from rapt.audit.artefact.texts import TokenTexts
from rapt.errors import AuditError
from rapt.local.plain_tokens import whole_words

_WORDS = 5_000


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """What one model remembers of sentences that were put in R times each.

    Attributes:
        tuned_on: `clear` or `privatized` text.
        repetitions: R; 0 is the control, a model that never had the sentences.
        canaries: Different sentences.
        candidates: Sentences that each was ranked among, itself included.
        ranks: Of each canary, 1 for the first; a tie counts as the worst place.
        exposure: Mean, in bits.
        low, high: Its 95 % interval by Student's law over the canaries; one model is behind all of them.
        p: Probability of such ranks without memory.
    """

    tuned_on: str
    repetitions: int
    canaries: int
    candidates: int
    ranks: tuple[int, ...]
    exposure: float
    low: float
    high: float
    p: float


def random_sentences(
    workshop: Workshop, *, sentences: int, words: int, names: tuple[str, ...], rng: np.random.Generator
) -> TokenTexts:
    """Sentences of words drawn evenly from the first of the vocabulary, with labels drawn evenly."""
    pool = np.array(whole_words(workshop.vocabulary, at_most=_WORDS), dtype=np.int64)
    if not len(pool):
        raise AuditError("canaries need whole words in the vocabulary, got none; take another model")
    return TokenTexts(
        contents=tuple(tuple(row) for row in pool[rng.integers(len(pool), size=(sentences, words))].tolist()),
        labels=tuple(rng.integers(len(names), size=sentences).tolist()),
        names=names,
    )


def find_canaries(
    workshop: Workshop,
    texts: TokenTexts,
    *,
    repetitions: int,
    canaries: int = 8,
    candidates: int = 1024,
    words: int = 6,
    seed: int = 0,
) -> CanaryResult:
    """Tune one model on the texts and the canaries, and rank each canary among sentences of its form.

    Args:
        workshop: Tunes the model.
        texts: That the canaries are put among.
        repetitions: R; with 0 the sentences are looked for in a model that never had them.
        canaries: Different sentences.
        candidates: Sentences that each is ranked among, itself included.
        words: Of each sentence.
        seed: Of sentences, noise and run; the same seed gives the same canaries for every R and mechanism.

    Raises:
        AuditError: A number is too small, or there is nothing to rank among.
        TuningError: The model cannot be tuned.
    """
    if repetitions < 0 or canaries < 1 or candidates < 2 or words < 1:
        raise AuditError(
            f"canaries must be at least 1, of a word, among 2 sentences, put in 0 times or more, got "
            f"canaries={canaries} repetitions={repetitions} words={words} candidates={candidates}"
        )
    rng = np.random.default_rng([seed, 13])
    secret = random_sentences(workshop, sentences=canaries, words=words, names=texts.names, rng=rng)
    others = random_sentences(workshop, sentences=candidates - 1, words=words, names=texts.names, rng=rng)
    model = workshop.tune(texts.and_also(secret.at(np.repeat(np.arange(canaries), repetitions))), seed=seed)
    own = of_labels(confidences(workshop.backbone, model, secret.contents), secret.labels)
    answers = confidences(workshop.backbone, model, others.contents)
    ranks = np.array(
        [1 + int((answers[:, label] >= value).sum()) for label, value in zip(secret.labels, own, strict=True)]
    )
    exposures = np.log2(candidates) - np.log2(ranks)
    mean = float(exposures.mean())
    half = 0.0
    if canaries > 1:
        half = float(stats.t.ppf(0.975, canaries - 1) * exposures.std(ddof=1) / np.sqrt(canaries))
    return CanaryResult(
        tuned_on=workshop.tuned_on,
        repetitions=repetitions,
        canaries=canaries,
        candidates=candidates,
        ranks=tuple(ranks.tolist()),
        exposure=mean,
        low=max(0.0, mean - half),
        high=min(float(np.log2(candidates)), mean + half),
        p=float(stats.chi2.sf(-2 * np.log(ranks / candidates).sum(), 2 * canaries)),
    )
