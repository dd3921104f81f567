"""Second implementations of the mechanisms, written from the papers, to compare the outputs of the real ones with.

Nothing that the trusted half computes with is used here: the noise is drawn in another way, a nearest token is found by
multiplying with the whole table, and a closed channel is drawn from by inversion of the probabilities that it states.
So an error in a sampler, in a search or in the table that a program uses shows as a difference of outputs.

A noise of density proportional to exp(-η||z||) is sqrt(w)·g with w ~ Gamma((d + 1)/2, scale 2/η²) and g ~ N(0, I); the
mechanisms of the trusted half draw a Gamma radius and a direction.

*Not covered.* `rank-fix` and `pct2t` have no second implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.interface import Mechanism, find_closed_channel
from rapt.local.mechanisms.mahalanobis import shape_matrix
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting

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
    setting, rows = mechanism.setting, vocabulary.embeddings[vocabulary.eligible].astype(np.float32)
    half_square = (rows**2).sum(axis=1) / 2
    root = _stretch(setting, vocabulary)

    def draw(token_ids: Ints, rng: np.random.Generator) -> Ints:
        dimension, found = vocabulary.dimension, np.empty(len(token_ids), dtype=np.int64)
        for start in range(0, len(token_ids), _ROWS):
            part = token_ids[start : start + _ROWS]
            width = rng.gamma((dimension + 1) / 2, 2 / setting.eta**2, size=len(part))
            noise = np.sqrt(width)[:, None] * rng.standard_normal((len(part), dimension))
            noisy = (vocabulary.embeddings[part] + (noise if root is None else noise @ root)).astype(np.float32)
            scores = noisy @ rows.T - half_square
            found[start : start + len(part)] = vocabulary.eligible[choose(setting, noisy, scores, rng)]
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


def _stretch(setting: MechanismSetting, vocabulary: Vocabulary) -> Floats | None:
    """The symmetric root of the matrix that stretches the noise; None where it is the identity."""
    if setting.name != "mahalanobis":
        return None
    mixing = setting.parameters["mixing"]
    assert isinstance(mixing, float)
    values, vectors = np.linalg.eigh(shape_matrix(vocabulary, mixing=mixing))
    root: Floats = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    return root


def _nearest(
    setting: MechanismSetting, noisy: NDArray[np.float32], scores: NDArray[np.float32], rng: np.random.Generator
) -> Ints:
    found: Ints = scores.argmax(axis=1)
    return found


def _first_or_second(
    setting: MechanismSetting, noisy: NDArray[np.float32], scores: NDArray[np.float32], rng: np.random.Generator
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
    tuning = setting.parameters["tuning"]
    assert isinstance(tuning, float)
    first, second = tuning * distance[:, 0], (1 - tuning) * distance[:, 1]
    keep = second / np.maximum(first + second, 1e-300)
    return np.where(rng.random(len(keep)) < keep, two[:, 0], two[:, 1])


_CHOICES: Final[Mapping[str, Callable[..., Ints]]] = MappingProxyType(
    {"laplace": _nearest, "mahalanobis": _nearest, "vickrey": _first_or_second}
)
