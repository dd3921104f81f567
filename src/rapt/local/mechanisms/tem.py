"""The truncated exponential mechanism."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.exact_draws import CACHE_BYTES, ExactDraws
from rapt.local.mechanisms.interface import GuaranteeStatus, Option, read_options
from rapt.local.mechanisms.metric import PublicMetric
from rapt.local.mechanisms.scores import LARGEST_DROP, Scores
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting, Parameter, check_eta

# As in the code of two re-implementations; the paper leaves it open.
OUTSIDE: Final = 0.001


@dataclass(frozen=True, kw_only=True)
class TemMechanism:
    """Outputs within gamma of x by the exponential mechanism; all those farther away alike.

    gamma = 2 / eta * ln((1 - b) (C - 1) / b): with probability 1 - b at least, the output lies within gamma of x.
    As published: give each y within gamma the score -d(x, y), and one stand-in for the n others the score
    -gamma + 2 / eta * ln n; add Gumbel noise of scale 2 / eta to each, take the largest, and if that is the stand-in,
    one of the others at random.

    Guarantee (eta * d-privacy for one token, d the Euclidean distance in the table): for every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d(x, x').

    Proof.
        1. The largest of scores with Gumbel noise of scale 2 / eta is y with probability proportional to
           exp(eta / 2 * score): the Gumbel-max trick. So a y within gamma has weight exp(-eta / 2 * d(x, y)).
        2. The stand-in has weight n * exp(-eta / 2 * gamma), shared evenly by the n tokens that it stands for.
        3. So every y has weight exp(-eta / 2 * min(d(x, y), gamma)). That is what is drawn here, without the noise.
        4. |min(a, gamma) - min(b, gamma)| <= |a - b|, so s(x, y) = -eta / 2 * min(d(x, y), gamma) changes by at most
           eta / 2 * d(x, x') from x' to x, whatever y is: the set of tokens within gamma depends on x, but no support.
        5. The normalizers change by at most as much (term by term, as in `santext`); together eta * d(x, x'). ∎
        The draws are exact up to 2^-39 nats in the inequality, without a δ (`exact_draws`).

    Not covered: number and order of tokens, labels, repeated releases.

    What we do not do: mldp-text gives the stand-in the score of ln(C / |within|) instead of ln n and rounds gamma;
    pyPANTERA returns the *original word* where the stand-in wins, because that branch always fails.

    Source: Carvalho, Vasiloudis, Feyisetan, Wang, "TEM: High Utility Metric Differential Privacy on Text", SDM 2023,
    Algorithm 1 (steps 1 to 3 are ours). Status: proved.
    """

    name: ClassVar[str] = "tem"
    status: ClassVar[GuaranteeStatus] = "proved"
    caveat: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {
        "outside": Option(default=OUTSIDE, help="b: the output is farther than gamma at most this often; 1e-6 to 0.5")
    }
    vocabulary: Vocabulary
    eta: float
    outside: float = OUTSIDE
    cache_bytes: int = field(default=CACHE_BYTES, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an eta or a share outside its domain (`MechanismError`)."""
        check_eta(self.eta)
        # Below, gamma would reach weights that are cut off at e^-30 anyway; above, gamma may be negative.
        if not 1e-6 <= self.outside <= 0.5:
            raise MechanismError(f"outside must be between 1e-6 and 0.5, got outside={self.outside!r}")

    @classmethod
    def make(cls, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Self:
        """The mechanism with this setting. Raises `MechanismError`."""
        chosen = read_options(options, cls.options, mechanism=cls.name)
        return cls(vocabulary=vocabulary, eta=eta, outside=float(chosen["outside"]))

    @property
    def gamma(self) -> float:
        """Distance from which on all outputs are alike."""
        others = max(len(self.vocabulary.eligible) - 1, 1)
        drop = math.log((1 - self.outside) * others / self.outside)
        return 2 / self.eta * min(drop, LARGEST_DROP)

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta and b."""
        return MechanismSetting(name=self.name, parameters={"eta": float(self.eta), "outside": self.outside})

    @cached_property
    def _draws(self) -> ExactDraws:
        return ExactDraws(self.scores, cache_bytes=self.cache_bytes)

    @cached_property
    def scores(self) -> Scores:
        """The log weights of all outputs."""
        metric = PublicMetric(embeddings=self.vocabulary.embeddings)
        return Scores(metric=metric, eligible=self.vocabulary.eligible, beta=self.eta / 2, reach=self.gamma)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Euclidean distance of pairs of rows, (n,)."""
        return self.scores.metric.pairs(left, right)

    def log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each x and every eligible y, (n, C), in nats. Raises `VocabularyError`."""
        return self.scores.log_probabilities(token_ids)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return self._draws.draw(token_ids, rng)
