"""SanText: the exponential mechanism over a public vocabulary, as published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.exact_draws import CACHE_BYTES, ExactDraws
from rapt.local.mechanisms.interface import GuaranteeStatus, Option, read_options
from rapt.local.mechanisms.metric import PublicMetric
from rapt.local.mechanisms.scores import Scores
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting, Parameter, check_eta


@dataclass(frozen=True, kw_only=True)
class SantextMechanism:
    """y with probability proportional to exp(-eta * d(x, y) / 2), as SanText draws it.

    Guarantee (eta * d-privacy for one token, d the Euclidean distance in the table): for every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d(x, x').

    Proof. With s(x, y) = -eta * d(x, y) / 2:
        1. s(x, y) - s(x', y) = eta / 2 * (d(x', y) - d(x, y)) <= eta / 2 * d(x, x'), by the triangle inequality.
        2. Z(x) = Σ_y exp(s(x, y)). By 1 with x and x' swapped, term by term, Z(x') <= exp(eta / 2 * d(x, x')) * Z(x).
        3. log P(y|x) - log P(y|x') = s(x, y) - s(x', y) + log Z(x') - log Z(x) <= eta * d(x, x'). ∎
        That d is cut off where a weight is e^-30 changes nothing in 1 (`scores.Scores`). Draws are exact up to 2^-39
        nats in the inequality, without a δ (`exact_draws`).

    Not covered: number and order of tokens, labels, repeated releases.

    Departures from the authors' code: the vocabulary is that of the public model, not the words of the private corpus,
    which would tell which words occur; tokens outside it do not exist, because texts are split into its pieces; special
    and unused tokens are never an output; and there is no SanText+, which passes words on unchanged by a list of
    "sensitive" ones drawn from the private corpus. Forked workers of that code draw the same numbers; ours cannot.

    Source: Yue, Du, Wang, Li, Sun, Chow, "Differential Privacy for Text Analytics via Natural Text Sanitization",
    Findings of ACL 2021, Algorithm 1. Status: proved.
    """

    name: ClassVar[str] = "santext"
    status: ClassVar[GuaranteeStatus] = "proved"
    caveat: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {}
    vocabulary: Vocabulary
    eta: float
    cache_bytes: int = field(default=CACHE_BYTES, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an eta that is not a finite number above 0 (`MechanismError`)."""
        check_eta(self.eta)

    @classmethod
    def make(cls, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Self:
        """The mechanism with this setting. Raises `MechanismError`."""
        read_options(options, cls.options, mechanism=cls.name)
        return cls(vocabulary=vocabulary, eta=eta)

    @property
    def setting(self) -> MechanismSetting:
        """Name and eta."""
        return MechanismSetting(name=self.name, parameters={"eta": float(self.eta)})

    @cached_property
    def _draws(self) -> ExactDraws:
        return ExactDraws(self.scores, cache_bytes=self.cache_bytes)

    @cached_property
    def scores(self) -> Scores:
        """The log weights of all outputs."""
        metric = PublicMetric(embeddings=self.vocabulary.embeddings)
        return Scores(metric=metric, eligible=self.vocabulary.eligible, beta=self.eta / 2)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Euclidean distance of pairs of rows, (n,)."""
        return self.scores.metric.pairs(left, right)

    def log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each x and every eligible y, (n, C), in nats. Raises `VocabularyError`."""
        return self.scores.log_probabilities(token_ids)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return self._draws.draw(token_ids, rng)
