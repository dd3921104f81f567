"""The rank fix: Laplace noise, then a near neighbour of the token that it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.interface import GuaranteeStatus, Option, read_options
from rapt.local.mechanisms.laplace import LaplaceMechanism
from rapt.local.mechanisms.metric import nearest_tokens
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting, Parameter

# The paper's value for GloVe-Wiki-300; it tunes c for each vocabulary, and nobody has for this one.
DECAY: Final = 0.04
_TOKENS_AT_ONCE: Final = 256


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

    name: ClassVar[str] = "rank-fix"
    status: ClassVar[GuaranteeStatus] = "proved"
    caveat: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {
        "decay": Option(default=DECAY, help="c: rank k has weight exp(-c * eta * k); above 0")
    }
    vocabulary: Vocabulary
    eta: float
    decay: float = DECAY

    def __post_init__(self) -> None:
        """Refuse numbers outside their domain (`MechanismError`)."""
        assert self._laplace.eta == self.eta  # which checks eta
        if not 0 < self.decay <= 1e6:
            raise MechanismError(f"decay must be above 0 and at most 1e6, got decay={self.decay!r}")

    @classmethod
    def make(cls, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Self:
        """The mechanism with this setting. Raises `MechanismError`."""
        chosen = read_options(options, cls.options, mechanism=cls.name)
        return cls(vocabulary=vocabulary, eta=eta, decay=float(chosen["decay"]))

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta and c."""
        return MechanismSetting(name=self.name, parameters={"eta": float(self.eta), "decay": self.decay})

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
        for start in range(0, len(moved), _TOKENS_AT_ONCE):
            batch = moved[start : start + _TOKENS_AT_ONCE]
            types, back = np.unique(nearest[batch], return_inverse=True)
            neighbours, _ = nearest_tokens(
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
