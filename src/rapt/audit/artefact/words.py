"""Soft-prompt inversion: which words of the training texts can be read off a tuned model?

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

from rapt.audit.artefact.confidence import confidences
from rapt.audit.artefact.lira import lira_online
from rapt.audit.artefact.membership_view import views_of_each
from rapt.audit.artefact.models import Models, Workshop
from rapt.audit.artefact.scores import MembershipScore, score_membership
from rapt.audit.artefact.texts import TokenTexts
from rapt.audit.intervals import Share, independent_share
from rapt.service.model.adapter import Adapter
from rapt.service.model.backbone import Backbone

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Words that somebody would write down as read.
FIRST = 20
LEAST_WORDS = 2 * FIRST


@dataclass(frozen=True, kw_only=True)
class WordReading:
    """One way to read words off the models.

    Attributes:
        reader: Its name; see the module.
        tuned_on: `clear` or `privatized` text.
        words: Candidates: words of exactly one text.
        score: How well words of the training are told from the others.
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


def words_of_members(texts: TokenTexts, members: NDArray[np.bool_], words: Ints) -> NDArray[np.bool_]:
    """Which words each model was tuned on, (N, w): for the score, and for the attacker of his own models."""
    home = {token: place for place, content in enumerate(texts.contents) for token in content}
    found: NDArray[np.bool_] = members[:, [home[word] for word in words.tolist()]]
    return found


def nearness(backbone: Backbone, adapter: Adapter, words: Ints) -> Floats:
    """Minus the distance of each word's row to the nearest vector of the soft prompt, (w,)."""
    table = backbone.word_embeddings.detach().float().cpu().numpy()[words].astype(np.float64)
    prompt = adapter.prompt.detach().cpu().numpy().astype(np.float64)
    square = (table**2).sum(axis=1)[:, None] - 2 * table @ prompt.T + (prompt**2).sum(axis=1)
    near: Floats = -np.sqrt(np.maximum(square, 0)).min(axis=1)
    return near


def read_words(workshop: Workshop, models: Models, texts: TokenTexts, *, seed: int = 0) -> tuple[WordReading, ...]:
    """Every reader on every model, the others being the attacker's own; none where too few words are rare.

    Args:
        workshop: That tuned the models.
        models: Attacked in turn.
        texts: That they were tuned on parts of.
        seed: Of the intervals.
    """
    words = rare_words(texts, eligible=workshop.vocabulary.eligible)
    if len(words) < LEAST_WORDS:
        return ()
    truth = words_of_members(texts, models.members, words)
    readings: dict[str, Floats] = {}
    if all(len(adapter.prompt) for adapter in models.adapters):
        near = np.stack([nearness(workshop.backbone, adapter, words) for adapter in models.adapters])
        readings["nearest"] = near
        readings["nearest_shadows"] = _against_others(near, truth)
    alone = [(word,) for word in words.tolist()]
    answers = np.stack([confidences(workshop.backbone, adapter, alone) for adapter in models.adapters])
    classes = [_against_others(answers[:, :, label], truth) for label in range(len(texts.names))]
    readings["asked"] = np.max(classes, axis=0)
    return tuple(_reading(name, workshop.tuned_on, scores, truth, seed=seed) for name, scores in readings.items())


def _against_others(values: Floats, members: NDArray[np.bool_]) -> Floats:
    return np.stack([lira_online(view) for view in views_of_each(values, members)])


def _reading(reader: str, tuned_on: str, scores: Floats, truth: NDArray[np.bool_], *, seed: int) -> WordReading:
    first: Sequence[NDArray[np.bool_]] = [
        row[np.argsort(-score, kind="stable")[:FIRST]] for score, row in zip(scores, truth, strict=True)
    ]
    return WordReading(
        reader=reader,
        tuned_on=tuned_on,
        words=scores.shape[1],
        score=score_membership(scores, truth, seed=seed),
        first=independent_share(np.concatenate(first)),
        chance=float(truth.mean()),
    )
