"""A model of the user's own words, trained at home on labelled texts in clear, and fused with the answers of another.

Whoever has some labelled texts of his own knows what a service cannot: their words. Counting them costs no budget and
no service. Two numbers say how much either is believed; they are fitted on the user's texts, each answered by counts
that it was left out of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import UsageError

LEAST_TEXTS: Final = 20
_FOLDS: Final = 10
_SMOOTHING: Final = 0.5
# How much an answer may be believed: a head that was tuned on noise is too modest about clear text, and counts of words
# that go together are too sure.
_TRUST_OTHER: Final = np.linspace(0.0, 8.0, 33)
_TRUST_OWN: Final = np.linspace(0.0, 1.0, 21)
_WORD: Final = re.compile(r"\w+(?:'\w+)?|[!?]")
_LEAST_ODDS: Final = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class OwnModel:
    """Naive Bayes over words that occur in a text, and pairs of neighbours (McCallum and Nigam 1998, Bernoulli counts).

    Attributes:
        words: Place of each word or pair in the table.
        log_odds: log P(word | class), (W, C).
        log_prior: log P(class), (C,).
    """

    words: dict[str, int]
    log_odds: NDArray[np.float64]
    log_prior: NDArray[np.float64]

    def __repr__(self) -> str:
        """Say how many words there are, and none of them."""
        return f"OwnModel({len(self.words)} words, {len(self.log_prior)} classes)"

    def answer(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return log P(class | text), (n, C)."""
        found = np.tile(self.log_prior, (len(texts), 1))
        for row, text in enumerate(texts):
            places = [self.words[word] for word in _list_words(text) if word in self.words]
            found[row] += self.log_odds[places].sum(axis=0)
        return _normalize(found)


def count_words(texts: Sequence[str], labels: NDArray[np.int64], *, classes: int) -> OwnModel:
    """Return the model of labelled texts.

    Args:
        texts: Texts in clear; their words are kept in the model, which stays here.
        labels: Index of each text's class, (n,).
        classes: Number C of classes.
    """
    words: dict[str, int] = {}
    rows = [[words.setdefault(word, len(words)) for word in _list_words(text)] for text in texts]
    counts = np.zeros((len(words), classes))
    for places, label in zip(rows, labels, strict=True):
        counts[places, label] += 1
    sizes = np.bincount(labels, minlength=classes)
    return OwnModel(
        words=words,
        log_odds=np.log((counts + _SMOOTHING) / (sizes + 2 * _SMOOTHING)),
        log_prior=np.log((sizes + 1) / (sizes.sum() + classes)),
    )


@dataclass(frozen=True, eq=False)
class Fusion:
    """How two answers become one: P ∝ P_other^a · P_own^b.

    Attributes:
        own: Model of the user's words.
        trust_other: Weight a of the other model.
        trust_own: Weight b of the own model.
    """

    own: OwnModel
    trust_other: float
    trust_own: float

    def fuse(self, odds: NDArray[np.float64], texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the probabilities of the classes, (n, C), from those of the other model and the texts in clear."""
        return _fuse(odds, self.own.answer(texts), self.trust_other, self.trust_own)


def fit_fusion(texts: Sequence[str], labels: NDArray[np.int64], odds: NDArray[np.float64]) -> Fusion:
    """Return the fusion of another model's answers with the user's words.

    Args:
        texts: The user's labelled texts, in clear.
        labels: Index of each text's class, (n,).
        odds: The other model's probabilities for these texts, (n, C); it has not learned from them.

    Raises:
        UsageError: There are fewer than `LEAST_TEXTS` texts, or all have one label.
    """
    if len(texts) < LEAST_TEXTS or len(np.unique(labels)) < 2:
        raise UsageError(
            f"texts of one's own must be at least {LEAST_TEXTS} with two labels or more, got {len(texts)} with "
            f"{len(np.unique(labels))}; leave out `own_texts`"
        )
    classes = odds.shape[1]
    own = np.empty_like(odds)
    fold = np.arange(len(texts)) % _FOLDS
    for number in range(_FOLDS):
        kept, left_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        model = count_words([texts[place] for place in kept.tolist()], labels[kept], classes=classes)
        own[left_out] = model.answer([texts[place] for place in left_out.tolist()])
    each = np.arange(len(labels))
    losses = [
        (-np.log(np.maximum(_fuse(odds, own, a, b)[each, labels], _LEAST_ODDS)).mean(), a, b)
        for a in _TRUST_OTHER
        for b in _TRUST_OWN
    ]
    _, trust_other, trust_own = min(losses)
    return Fusion(
        own=count_words(texts, labels, classes=classes), trust_other=float(trust_other), trust_own=float(trust_own)
    )


def _fuse(odds: NDArray[np.float64], own: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    return np.exp(_normalize(a * np.log(np.maximum(odds, _LEAST_ODDS)) + b * own))


def _normalize(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logs - logs.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _list_words(text: str) -> list[str]:
    """The words of a text and the pairs of neighbours, each once, in the order of their first place."""
    words = _WORD.findall(text.casefold())
    return list(dict.fromkeys([*words, *map(" ".join, pairwise(words))]))
