"""Second implementations of the mechanisms, written from the papers, to compare the outputs of the real ones with.

Nothing that the trusted half computes with is used here: the noise is drawn in another way, a nearest token is found by
multiplying with the whole table, and a closed channel is drawn from by inversion of the probabilities that it states.
So an error in a sampler, in a search or in the table that a program uses shows as a difference of outputs.

A noise of density proportional to exp(-η||z||) is sqrt(w)·g with w ~ Gamma((d + 1)/2, scale 2/η²) and g ~ N(0, I); the
mechanisms of the trusted half draw a Gamma radius and a direction. The classes of `pct2t` are a public list, which is
part of what is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.interface import Mechanism, find_closed_channel
from rapt.local.mechanisms.mahalanobis import shape_matrix
from rapt.local.mechanisms.word_classes import Pct2tMechanism
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Token ids, (n,), and a generator, to one output each, (n,).
ReferenceDraw = Callable[[Ints, np.random.Generator], Ints]

# Vectors that are multiplied with the table at once: 30 MB of float32 at 30,000 outputs.
_ROWS: Final = 256
# Tokens whose whole channel is written down at once.
_CHANNEL_ROWS: Final = 64


def make_reference(mechanism: Mechanism, vocabulary: Vocabulary) -> ReferenceDraw | None:
    """Draws of a second implementation of a mechanism on this table; None where there is none."""
    channel = find_closed_channel(mechanism)
    if channel is not None:
        return lambda token_ids, rng: _draw_from_channel(channel, vocabulary, token_ids, rng)
    choose = _CHOICES.get(mechanism.setting.name)
    if choose is None:
        return None
    setting, table = mechanism.setting, _state_table(mechanism.setting, vocabulary)
    rows = table[vocabulary.eligible].astype(np.float32)
    half_square = (rows**2).sum(axis=1) / 2
    root = _stretch(setting, vocabulary)
    classes = mechanism.tags.classes if isinstance(mechanism, Pct2tMechanism) else None
    stated = _Stated(setting=setting, rows=rows, half_square=half_square, eligible=vocabulary.eligible, classes=classes)

    def draw(token_ids: Ints, rng: np.random.Generator) -> Ints:
        dimension, found = vocabulary.dimension, np.empty(len(token_ids), dtype=np.int64)
        for start in range(0, len(token_ids), _ROWS):
            part = token_ids[start : start + _ROWS]
            width = rng.gamma((dimension + 1) / 2, 2 / setting.eta**2, size=len(part))
            noise = np.sqrt(width)[:, None] * rng.standard_normal((len(part), dimension))
            noisy = (table[part] + (noise if root is None else noise @ root)).astype(np.float32)
            scores = noisy @ rows.T - half_square
            found[start : start + len(part)] = vocabulary.eligible[choose(stated, part, noisy, scores, rng)]
        return found

    return draw


def _draw_from_channel(
    channel: Callable[[Ints], Floats], vocabulary: Vocabulary, token_ids: Ints, rng: np.random.Generator
) -> Ints:
    names, place = np.unique(token_ids, return_inverse=True)
    found = np.empty(len(token_ids), dtype=np.int64)
    for start in range(0, len(names), _CHANNEL_ROWS):
        held = np.cumsum(np.exp(channel(names[start : start + _CHANNEL_ROWS])), axis=1)
        for row, cumulated in enumerate(held, start=start):
            here = np.flatnonzero(place == row)
            drawn = np.searchsorted(cumulated, rng.random(len(here)) * cumulated[-1], side="right")
            found[here] = vocabulary.eligible[np.minimum(drawn, len(cumulated) - 1)]
    return found


def _state_table(setting: MechanismSetting, vocabulary: Vocabulary) -> NDArray[np.float32]:
    """The table that noise is added to, (V, d)."""
    table = vocabulary.embeddings
    if setting.name != "unit-laplace":
        return table
    lengths = np.sqrt((table.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return (table / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def _stretch(setting: MechanismSetting, vocabulary: Vocabulary) -> Floats | None:
    """The symmetric root of the matrix that stretches the noise; None where it is the identity."""
    if setting.name != "mahalanobis":
        return None
    mixing = setting.parameters["mixing"]
    assert isinstance(mixing, float)
    values, vectors = np.linalg.eigh(shape_matrix(vocabulary, mixing=mixing))
    root: Floats = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    return root


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stated:
    """Stated channel of a mechanism. C eligible tokens.

    Attributes:
        setting: Name and parameters.
        rows: Rows of the eligible tokens, (C, d).
        half_square: ||row||² / 2 of each, (C,).
        eligible: Ids of the eligible tokens, (C,).
        classes: Class of each row of the whole table, where the mechanism has classes.
    """

    setting: MechanismSetting
    rows: NDArray[np.float32]
    half_square: NDArray[np.float32]
    eligible: Ints
    classes: Ints | None

    def read(self, name: str) -> float:
        """A parameter that is a number."""
        value = self.setting.parameters[name]
        assert isinstance(value, float)
        return value


Scored = NDArray[np.float32]


def _find_nearest(stated: _Stated, inputs: Ints, noisy: Scored, scores: Scored, rng: np.random.Generator) -> Ints:
    found: Ints = scores.argmax(axis=1)
    return found


def _find_nearest_of_class(
    stated: _Stated, inputs: Ints, noisy: Scored, scores: Scored, rng: np.random.Generator
) -> Ints:
    """The nearest among the outputs of the input's class, or among all where the class has none."""
    assert stated.classes is not None  # only `pct2t` chooses by class
    alike = stated.classes[stated.eligible] == stated.classes[inputs][:, None]
    alike |= ~alike.any(axis=1, keepdims=True)
    found: Ints = np.where(alike, scores, -np.inf).argmax(axis=1)
    return found


def _draw_by_rank(stated: _Stated, inputs: Ints, noisy: Scored, scores: Scored, rng: np.random.Generator) -> Ints:
    """The k-th nearest output of the one that is nearest to the noisy vector, k drawn from a table of its law."""
    first: Ints = scores.argmax(axis=1)
    law = np.cumsum(np.exp(-stated.read("decay") * stated.setting.eta * np.arange(len(stated.rows))))
    ranks = np.minimum(np.searchsorted(law, rng.random(len(first)) * law[-1], side="right"), len(law) - 1)
    found = first.copy()
    for row in np.flatnonzero(ranks):
        closeness = stated.rows @ stated.rows[first[row]] - stated.half_square
        found[row] = np.argsort(-closeness, kind="stable")[ranks[row]]
    return found


def _draw_first_or_second(
    stated: _Stated, inputs: Ints, noisy: Scored, scores: Scored, rng: np.random.Generator
) -> Ints:
    """The choice of the Vickrey mechanism between the nearest token and the next, by their distances."""
    if scores.shape[1] < 2:
        return np.zeros(len(scores), dtype=np.int64)
    two = np.argpartition(-scores, 1, axis=1)[:, :2]
    best = np.take_along_axis(scores, two, axis=1).astype(np.float64)
    order = np.argsort(-best, axis=1, kind="stable")
    two, best = np.take_along_axis(two, order, axis=1), np.take_along_axis(best, order, axis=1)
    square = (noisy.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
    distance = np.sqrt(np.maximum(square - 2 * best, 1e-12))
    tuning = stated.read("tuning")
    first, second = tuning * distance[:, 0], (1 - tuning) * distance[:, 1]
    keep = second / np.maximum(first + second, 1e-300)
    return np.where(rng.random(len(keep)) < keep, two[:, 0], two[:, 1])


_CHOICES: Final[Mapping[str, Callable[..., Ints]]] = MappingProxyType(
    {
        "laplace": _find_nearest,
        "unit-laplace": _find_nearest,
        "mahalanobis": _find_nearest,
        "vickrey": _draw_first_or_second,
        "rank-fix": _draw_by_rank,
        "pct2t": _find_nearest_of_class,
    }
)
