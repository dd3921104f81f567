"""Parts of speech kept where possible: the exponential mechanism with a word class in its metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.certificate import Certificate, Subject, certify
from rapt.local.mechanisms.exact_draws import CACHE_BYTES, ExactDraws
from rapt.local.mechanisms.interface import GuaranteeStatus, Option, read_options
from rapt.local.mechanisms.metric import PublicMetric
from rapt.local.mechanisms.scores import Scores
from rapt.local.mechanisms.token_tags import BUILT_IN, TokenTags, chosen_tags
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import MechanismSetting, Parameter, check_eta

# Half of MiniLM's distance to the nearest neighbour. At the beta where half of the tokens change it makes another part
# of speech about 30 times less likely, and adds half as much to a bound.
PENALTY: Final = 0.5
METRIC: Final = "euclidean+class"


@dataclass(frozen=True, kw_only=True)
class SoftPosMechanism:
    """y with probability proportional to exp(-beta * d'(x, y)), d' the distance plus a penalty for another word class.

    Guarantee (eta * d'-privacy for one token): with d'(x, x') = ||E(x) - E(x')|| + penalty * 1[tag(x) != tag(x')], for
    every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d'(x, x').

    So words of one class are as hard to tell apart as under the Euclidean metric, and words of two classes
    eta * penalty nats easier.

    Proof.
        1. A tag is a property of the token alone, in a public list. 1[tag(x) != tag(y)] is a metric up to tokens of one
           class, and so is the sum d' of it and the Euclidean distance.
        2. With s(x, y) = -beta * d'(x, y): s(x, y) - s(x', y) <= beta * d'(x, x') for every y, by the triangle
           inequality, and so log Z(x') - log Z(x) <= beta * d'(x, x'), term by term.
        3. log P(y|x) - log P(y|x') <= 2 * beta * d'(x, x') = eta * d'(x, x') with beta = eta / 2. ∎
        With `calibrated`, beta is larger and the inequality is checked for all rows and outputs (`certificate`). Draws
        are exact up to 2^-39 nats in the inequality, without a δ (`exact_draws`).

    Not covered: number and order of tokens, labels, repeated releases. The class of a word is protected no more than
    the penalty allows.

    Why not as published: replacing a word only by words of its class (`pct2t`) sends the class in clear, and a tagger
    that reads the sentence makes it depend on the other words as well.

    Source: ours, after PCT2T of RAPT v2 (arXiv 2305.06212v2) and Arnold, Yesilbas, Weinzierl, "Guiding Text-to-Text
    Privatization by Syntax", TrustNLP 2023. Status: proved.
    """

    name: ClassVar[str] = "soft-pos"
    status: ClassVar[GuaranteeStatus] = "proved"
    caveat: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {
        "penalty": Option(default=PENALTY, help="distance between words of different classes, at least 0"),
        "tags": Option(default=BUILT_IN, help="JSON file of public word classes; the default are rules for English"),
        "calibrated": Option(
            default=False, help="use the largest beta whose exact slope is at most eta; minutes, once for a vocabulary"
        ),
    }
    vocabulary: Vocabulary
    eta: float
    tags: TokenTags
    penalty: float = PENALTY
    certificate: Certificate | None = field(default=None, repr=False)
    cache_bytes: int = field(default=CACHE_BYTES, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse numbers outside their domain, and a certificate for something else (`MechanismError`)."""
        check_eta(self.eta)
        if not 0 <= self.penalty <= 1e6:
            raise MechanismError(f"penalty must be a distance from 0 to 1e6, got penalty={self.penalty!r}")
        if self.certificate is not None and self.certificate.subject != self._subject:
            raise MechanismError("a certificate must be for this vocabulary, metric and eta; make one with calibrated")

    @classmethod
    def make(cls, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Self:
        """The mechanism with this setting. Raises `MechanismError`."""
        chosen = read_options(options, cls.options, mechanism=cls.name)
        tags, penalty = chosen_tags(str(chosen["tags"]), vocabulary), float(chosen["penalty"])
        plain = cls(vocabulary=vocabulary, eta=eta, tags=tags, penalty=penalty)
        if not chosen["calibrated"]:
            return plain
        return cls(vocabulary=vocabulary, eta=eta, tags=tags, penalty=penalty, certificate=plain.certify())

    def certify(self) -> Certificate:
        """The certificate of the largest beta for this eta, metric and vocabulary."""
        return certify(self._scores_with, subject=self._subject)

    @property
    def beta(self) -> float:
        """Slope of the scores, 1/distance."""
        return self.eta / 2 if self.certificate is None else self.certificate.beta

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta, beta, the metric with its penalty and where the tags come from, and whether it is calibrated."""
        parameters: dict[str, Parameter] = {
            "eta": float(self.eta),
            "beta": self.beta,
            "calibrated": self.certificate is not None,
            "metric": METRIC,
            "penalty": self.penalty,
            "tags": self.tags.source,
        }
        return MechanismSetting(name=self.name, parameters=parameters)

    @property
    def _subject(self) -> Subject:
        metric = f"{METRIC} {self.penalty!r} {self.tags.source}"
        return Subject(self.vocabulary.hash, metric, "uniform", float(self.eta))

    @cached_property
    def scores(self) -> Scores:
        """The log weights of all outputs."""
        return self._scores_with(self.beta)

    def _scores_with(self, beta: float) -> Scores:
        return Scores(metric=self._metric, eligible=self.vocabulary.eligible, beta=beta)

    @cached_property
    def _metric(self) -> PublicMetric:
        return PublicMetric(embeddings=self.vocabulary.embeddings, tags=self.tags.classes, penalty=self.penalty)

    @cached_property
    def _draws(self) -> ExactDraws:
        return ExactDraws(self.scores, cache_bytes=self.cache_bytes)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """d'(x, x') of pairs of rows, (n,)."""
        return self._metric.pairs(left, right)

    def log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each x and every eligible y, (n, C), in nats. Raises `VocabularyError`."""
        return self.scores.log_probabilities(token_ids)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return self._draws.draw(token_ids, rng)
