"""Canaries: sentences of random words with a random label, put into the texts R times, and looked for in the model.

Nothing but memory can connect such a sentence with its label. The attacker knows the form of the secret and has many
sentences of that form; he asks the model about each of them with that label and ranks the answers. *Exposure* is
log2(sentences) - log2(rank) (Carlini et al., "The Secret Sharer", USENIX Security 2019, Definition 4): all of the bits
that the sentence hides when it comes first, 1.44 bits on average by chance. Each repetition is a release of its own, so
exposure over R shows what repeating a text costs.

*p.* Without memory each rank is uniform, so -2 Σ ln(rank / sentences) is at most a chi-square value of 2n degrees of
freedom (Fisher 1925): the probability of ranks as good as these.

Soft-prompt inversion: which words of the training texts can be read off a tuned model?

A soft prompt consists of vectors in the space of word embeddings, so the nearest rows of the table are the first thing
that anybody reads in it. Most of these words say nothing: they are frequent, or lie where many vectors end up. So the
question is asked about words that occur in exactly one of the texts: whether such a word was in the training is a fair
coin, and words that were and words that were not are equally frequent. Overlap beyond one half is then what the model
tells, and nothing else.

- `nearest` ranks those words by the distance to the nearest vector of the prompt.
- `nearest_shadows` compares that distance with the one in the attacker's own models, by LiRA.
- `asked` needs no prompt, so it works on a LoRA or a prefix as well: the word alone is sent as a text, and the
  confidence in each class is compared with that of the attacker's own models, by LiRA.

*Not covered.* A search over whole texts that the model would answer most confidently: a classifier has too few outputs
to steer one, and membership of a text that is named is what `membership` measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.artefact.membership import MembershipScore, compute_confidences, score_membership, select_labels
from rapt.audit.artefact.membership_attacks import lira_online, make_views
from rapt.audit.artefact.workshop import TokenTexts, TrainedModels, Workshop
from rapt.audit.intervals import Share, compute_independent_share
from rapt.errors import AuditError
from rapt.local.privatizer import find_whole_words
from rapt.service.adapter.adapter import Adapter
from rapt.service.backbone.backbone import Backbone

_WORDS = 5_000


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """Memory of one model for sentences that were put in R times each.

    Attributes:
        tuned_on: `clear` or `privatized` text.
        repetitions: R; 0 is the control, a model that never had the sentences.
        canaries: Number of different canary sentences.
        candidates: Sentences that each was ranked among, itself included.
        ranks: Ranks of each canary, 1 for the first; a tie counts as the worst place.
        exposure: Mean, in bits.
        low, high: 95 % interval of the exposure by Student's law over the canaries; one model is behind all of them.
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


def draw_sentences(
    workshop: Workshop, *, sentences: int, words: int, names: tuple[str, ...], rng: np.random.Generator
) -> TokenTexts:
    """Sentences of words drawn evenly from the first of the vocabulary, with labels drawn evenly."""
    pool = np.array(find_whole_words(workshop.vocabulary, at_most=_WORDS), dtype=np.int64)
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
        texts: Texts that the canaries are put among.
        repetitions: R; with 0 the sentences are looked for in a model that never had them.
        canaries: Number of different canary sentences.
        candidates: Sentences that each is ranked among, itself included.
        words: Words of each sentence.
        seed: Seed of sentences, noise and run; the same seed gives the same canaries for every R and mechanism.

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
    secret = draw_sentences(workshop, sentences=canaries, words=words, names=texts.names, rng=rng)
    others = draw_sentences(workshop, sentences=candidates - 1, words=words, names=texts.names, rng=rng)
    model = workshop.tune(texts.and_also(secret.at(np.repeat(np.arange(canaries), repetitions))), seed=seed)
    own = select_labels(compute_confidences(workshop.backbone, model, secret.contents), secret.labels)
    answers = compute_confidences(workshop.backbone, model, others.contents)
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


Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Words that somebody would write down as read.
FIRST = 20
LEAST_WORDS = 2 * FIRST


@dataclass(frozen=True, kw_only=True)
class WordRecovery:
    """One way to read words off the models.

    Attributes:
        reader: Name of the reader; see the module.
        tuned_on: `clear` or `privatized` text.
        words: Candidates: words of exactly one text.
        score: Score by which words of the training are told from the others.
        first: Share of training words among the `FIRST` words read, over all models; `chance` by guessing.
        chance: Share of training words among all candidates.
    """

    reader: str
    tuned_on: str
    words: int
    score: MembershipScore
    first: Share
    chance: float


def rare_words(texts: TokenTexts, *, eligible: Ints) -> Ints:
    """Tokens that occur in exactly one text, sorted, (w,)."""
    counts = Counter(token for content in texts.contents for token in set(content))
    rare = np.array(sorted(token for token, times in counts.items() if times == 1), dtype=np.int64)
    return rare[np.isin(rare, eligible)]


def mark_member_words(texts: TokenTexts, members: NDArray[np.bool_], words: Ints) -> NDArray[np.bool_]:
    """Mark the words that each model was tuned on, (N, w): for the score, and for the attacker of his own models."""
    home = {token: place for place, content in enumerate(texts.contents) for token in content}
    found: NDArray[np.bool_] = members[:, [home[word] for word in words.tolist()]]
    return found


def measure_nearness(backbone: Backbone, adapter: Adapter, words: Ints) -> Floats:
    """Minus the distance of each word's row to the nearest vector of the soft prompt, (w,)."""
    table = backbone.word_embeddings.detach().float().cpu().numpy()[words].astype(np.float64)
    prompt = adapter.prompt.detach().cpu().numpy().astype(np.float64)
    square = (table**2).sum(axis=1)[:, None] - 2 * table @ prompt.T + (prompt**2).sum(axis=1)
    near: Floats = -np.sqrt(np.maximum(square, 0)).min(axis=1)
    return near


def read_words(
    workshop: Workshop, models: TrainedModels, texts: TokenTexts, *, seed: int = 0
) -> tuple[WordRecovery, ...]:
    """Every reader on every model, the others being the attacker's own; none where too few words are rare.

    Args:
        workshop: Workshop that tuned the models.
        models: Attacked in turn.
        texts: Texts that the models were tuned on parts of.
        seed: Seed of the intervals.
    """
    words = rare_words(texts, eligible=workshop.vocabulary.eligible)
    if len(words) < LEAST_WORDS:
        return ()
    truth = mark_member_words(texts, models.members, words)
    readings: dict[str, Floats] = {}
    if all(len(adapter.prompt) for adapter in models.adapters):
        near = np.stack([measure_nearness(workshop.backbone, adapter, words) for adapter in models.adapters])
        readings["nearest"] = near
        readings["nearest_shadows"] = _compare_with_others(near, truth)
    alone = [(word,) for word in words.tolist()]
    answers = np.stack([compute_confidences(workshop.backbone, adapter, alone) for adapter in models.adapters])
    classes = [_compare_with_others(answers[:, :, label], truth) for label in range(len(texts.names))]
    readings["asked"] = np.max(classes, axis=0)
    return tuple(_make_reading(name, workshop.tuned_on, scores, truth, seed=seed) for name, scores in readings.items())


def _compare_with_others(values: Floats, members: NDArray[np.bool_]) -> Floats:
    return np.stack([lira_online(view) for view in make_views(values, members)])


def _make_reading(reader: str, tuned_on: str, scores: Floats, truth: NDArray[np.bool_], *, seed: int) -> WordRecovery:
    first: Sequence[NDArray[np.bool_]] = [
        row[np.argsort(-score, kind="stable")[:FIRST]] for score, row in zip(scores, truth, strict=True)
    ]
    return WordRecovery(
        reader=reader,
        tuned_on=tuned_on,
        words=scores.shape[1],
        score=score_membership(scores, truth, seed=seed),
        first=compute_independent_share(np.concatenate(first)),
        chance=float(truth.mean()),
    )
