"""The exponential mechanism with a public output prior q: counts of tokens in public text, from a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError, WireError
from rapt.local.mechanisms.certificate import Certificate, Subject, certify
from rapt.local.mechanisms.exact_draws import CACHE_BYTES, ExactDraws
from rapt.local.mechanisms.interface import GuaranteeStatus, Option, read_options
from rapt.local.mechanisms.metric import PublicMetric
from rapt.local.mechanisms.scores import Scores
from rapt.local.vocabulary import Vocabulary
from rapt.whole_files import write_whole
from rapt.wire.manifest import MechanismSetting, Parameter, check_eta
from rapt.wire.strict_json import parse_object

UNIFORM: Final = "uniform"
# log of the least q over the largest one. A smaller ratio would leave too few bits to draw its output exactly; what
# lies below is raised to it, which makes another public q, not another guarantee.
LEAST_LOG_RATIO: Final = -20 * math.log(2)
_LARGEST_COUNT: Final = 2**53


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputPrior:
    """q(y) proportional to 1 + count(y), over the eligible tokens.

    The count must come from public text. A prior counted from private text tells which words are in it.

    Attributes:
        counts: Of each eligible token, (C,), whole numbers >= 0.
    """

    counts: NDArray[np.int64] = field(repr=False)

    @property
    def hash(self) -> str:
        """`sha256:...` of the counts, for the setting."""
        return f"sha256:{hashlib.sha256(self.counts.astype('<i8').tobytes()).hexdigest()}"

    @cached_property
    def log_ratios(self) -> NDArray[np.float64]:
        """The log of q(y) over its largest value, (C,), between `LEAST_LOG_RATIO` and 0."""
        weights = np.log1p(self.counts.astype(np.float64))
        ratios: NDArray[np.float64] = np.maximum(weights - weights.max(), LEAST_LOG_RATIO)
        return ratios


def read_output_prior(path: Path, vocabulary: Vocabulary) -> OutputPrior:
    """The prior in a JSON object that names tokens, as the vocabulary writes them, with their counts in public text.

    Raises:
        MechanismError: The file cannot be read, is of another kind, or names no eligible token.
    """
    what = "a file of counts"
    try:
        counts = parse_object(path.read_bytes(), what=what)
    except OSError as error:
        raise MechanismError(f"{what} must be readable, got {error.strerror or type(error).__name__}") from None
    except WireError as error:
        raise MechanismError(str(error)) from None
    if not all(type(count) is int and 0 <= count < _LARGEST_COUNT for count in counts.values()):
        raise MechanismError(f'{what} must hold whole numbers >= 0 only, such as {{"the": 120, "##ing": 7}}')
    names = vocabulary.tokens(vocabulary.eligible.tolist())
    found = np.array([counts.get(name, 0) for name in names], dtype=np.int64)
    if not found.any():
        raise MechanismError(
            f"{what} must name tokens of model={vocabulary.model!r} with counts above 0, got none of "
            f"{len(counts)}; write it with count_tokens()"
        )
    return OutputPrior(counts=found)


def count_tokens(texts: Sequence[str], vocabulary: Vocabulary) -> OutputPrior:
    """The prior of public texts."""
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for ids in vocabulary.encode(texts):
        np.add.at(counts, ids, 1)
    return OutputPrior(counts=counts[vocabulary.eligible])


def write_output_prior(prior: OutputPrior, path: Path, *, vocabulary: Vocabulary) -> None:
    """Write a file that `read_output_prior` reads; tokens that were not counted are left out."""
    names = vocabulary.tokens(vocabulary.eligible.tolist())
    held = {name: int(count) for name, count in zip(names, prior.counts, strict=True) if count}
    write_whole(path, json.dumps(held, ensure_ascii=True) + "\n")


EUCLIDEAN: Final = "euclidean"


@dataclass(frozen=True, kw_only=True)
class ExponentialMechanism:
    """y with probability proportional to q(y) * exp(-beta * d(x, y)), for a public q.

    Guarantee (eta * d-privacy for one token, d the Euclidean distance in the table): for every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d(x, x').

    Proof, with beta = eta / 2 (`scores.Scores`, d cut off at a public distance, which stretches nothing).
        1. s(x, y) = log q(y) - beta * d(x, y), so s(x, y) - s(x', y) = beta * (d(x', y) - d(x, y)): q cancels.
        2. By the triangle inequality that is at most beta * d(x, x'), for every y.
        3. Z(x) = Σ_y exp(s(x, y)). By 2, each term of Z(x') is at most exp(beta * d(x, x')) times that of Z(x), so
           log Z(x') - log Z(x) <= beta * d(x, x').
        4. log P(y|x) - log P(y|x') = s(x, y) - s(x', y) + log Z(x') - log Z(x) <= 2 * beta * d(x, x'). ∎
        With `calibrated`, beta is larger, and the inequality is not derived but checked, for all rows x and x' of the
        table and all y that may be an output: see `certificate`.
        The draws are exact up to 2^-19 nats in the inequality, without a δ: see `exact_draws`.

    Not covered: what no mechanism for single tokens covers: number and order of tokens, labels, repeated releases. The
    prior q must come from public text. The time that a draw takes depends on chance and a little on the token.

    Relation to others: with a uniform q and without calibration this is `santext`. Where equally many tokens change,
    eta is about five times smaller than that of `laplace` on MiniLM's table. Never compare two mechanisms at equal eta.

    Source: McSherry and Talwar, FOCS 2007; with a metric, Chatzikokolakis et al., PETS 2013. The calibration is ours.
    Status: proved.
    """

    name: ClassVar[str] = "exponential"
    status: ClassVar[GuaranteeStatus] = "proved"
    caveat: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {
        "prior": Option(default=UNIFORM, help="JSON file of token counts in public text; outputs follow them"),
        "calibrated": Option(
            default=False, help="use the largest beta whose exact slope is at most eta; minutes, once for a vocabulary"
        ),
    }
    vocabulary: Vocabulary
    eta: float
    prior: OutputPrior | None = field(default=None, repr=False)
    certificate: Certificate | None = field(default=None, repr=False)
    cache_bytes: int = field(default=CACHE_BYTES, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an eta outside its domain, and a certificate for something else (`MechanismError`)."""
        check_eta(self.eta)
        if self.certificate is not None and self.certificate.subject != self._subject:
            raise MechanismError("a certificate must be for this vocabulary, prior and eta; make one with calibrated")

    @classmethod
    def make(cls, *, vocabulary: Vocabulary, eta: float, options: Mapping[str, Parameter]) -> Self:
        """The mechanism with this setting; calibrating takes minutes where it was not done before.

        Raises:
            MechanismError: eta or an option is outside its domain.
        """
        chosen = read_options(options, cls.options, mechanism=cls.name)
        prior = None if chosen["prior"] == UNIFORM else read_output_prior(Path(str(chosen["prior"])), vocabulary)
        plain = cls(vocabulary=vocabulary, eta=eta, prior=prior)
        if not chosen["calibrated"]:
            return plain
        return cls(vocabulary=vocabulary, eta=eta, prior=prior, certificate=plain.certify())

    def certify(self) -> Certificate:
        """The certificate of the largest beta for this eta, prior and vocabulary."""
        return certify(self._scores_with, subject=self._subject)

    @property
    def beta(self) -> float:
        """Slope of the scores, 1/distance."""
        return self.eta / 2 if self.certificate is None else self.certificate.beta

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta, beta, whether it is calibrated, and the hash of the prior."""
        parameters: dict[str, Parameter] = {
            "eta": float(self.eta),
            "beta": self.beta,
            "calibrated": self.certificate is not None,
            "prior": UNIFORM if self.prior is None else self.prior.hash,
        }
        return MechanismSetting(name=self.name, parameters=parameters)

    @property
    def _subject(self) -> Subject:
        prior = UNIFORM if self.prior is None else self.prior.hash
        return Subject(self.vocabulary.hash, EUCLIDEAN, prior, float(self.eta))

    @cached_property
    def scores(self) -> Scores:
        """The log weights of all outputs."""
        return self._scores_with(self.beta)

    def _scores_with(self, beta: float) -> Scores:
        return Scores(
            metric=self._metric,
            eligible=self.vocabulary.eligible,
            beta=beta,
            log_prior=None if self.prior is None else self.prior.log_ratios,
        )

    @cached_property
    def _metric(self) -> PublicMetric:
        return PublicMetric(embeddings=self.vocabulary.embeddings)

    @cached_property
    def _draws(self) -> ExactDraws:
        return ExactDraws(self.scores, cache_bytes=self.cache_bytes)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Euclidean distance of pairs of rows, (n,)."""
        return self._metric.pairs(left, right)

    def log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each x and every eligible y, (n, C), in nats.

        Raises:
            VocabularyError: An id has no row in the table.
        """
        return self.scores.log_probabilities(token_ids)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, every one drawn independently.

        Args:
            token_ids: (n,), any rows of the table, [UNK] and special tokens included. Not changed.
            rng: Private: whoever can repeat its draws can undo them.

        Returns:
            Eligible ids, (n,), int64.

        Raises:
            VocabularyError: An id has no row in the table.
        """
        return self._draws.draw(token_ids, rng)
