"""The exponential mechanism and its kin: outputs are drawn by scores of distance, exactly, from a closed channel.

`ScoredMechanism` is what they have in common. The output prior q of `exponential` are counts of tokens in public text,
from a file. SanText and TEM are here; `soft_pos` adds word classes to the metric.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError, WireError
from rapt.local.mechanisms.certificate import Certificate, Subject, certify
from rapt.local.mechanisms.exact_draws import CACHE_BYTES, ExactDraws
from rapt.local.mechanisms.interface import MechanismKind, MechanismOption, Promise
from rapt.local.mechanisms.metric import LARGEST_DROP, PublicMetric, Scores
from rapt.local.privacy_loss import PrivacyLoss, pure_loss
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting, check_eta
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
        counts: Count of each eligible token, (C,), whole numbers >= 0.
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


EUCLIDEAN: Final = "euclidean"
# In TEM's paper open; as in the code of two re-implementations.
OUTSIDE: Final = 0.001
CALIBRATED_OPTION: Final = MechanismOption(
    default=False, help="use the largest beta whose exact slope is at most eta; minutes, once for a vocabulary"
)


@dataclass(frozen=True, kw_only=True)
class ScoredMechanism:
    """A mechanism that puts out y with probability proportional to exp(s(x, y)), drawn exactly (`exact_draws`).

    What it guarantees follows from its scores: see the function that made it.

    Attributes:
        setting: Name and public parameters.
        scores: Log weights of all outputs.
        certificate: Certificate of a beta above eta / 2; None where beta is eta / 2.
        cache_bytes: Most memory for what is kept of the tokens seen last.
    """

    setting: MechanismSetting
    scores: Scores = field(repr=False, compare=False)
    certificate: Certificate | None = field(default=None, repr=False)
    cache_bytes: int = field(default=CACHE_BYTES, repr=False, compare=False)

    @cached_property
    def _draws(self) -> ExactDraws:
        return ExactDraws(self.scores, cache_bytes=self.cache_bytes)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """The distance of pairs of rows in the metric of the scores, (n,)."""
        return self.scores.metric.pairs(left, right)

    def log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each x and every eligible y, (n, C), in nats. Raises `VocabularyError`."""
        return self.scores.log_probabilities(token_ids)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return self._draws.draw(token_ids, rng)


def calibrate_scores(scores: Scores, *, subject: Subject) -> tuple[Scores, Certificate]:
    """The scores with the largest beta whose exact slope is at most eta, and the certificate of it."""
    certificate = certify(lambda beta: replace(scores, beta=beta), subject=subject)
    return replace(scores, beta=certificate.beta), certificate


def make_exponential(
    *, vocabulary: Vocabulary, eta: float, prior: OutputPrior | None = None, calibrated: bool = False
) -> ScoredMechanism:
    """Y with probability proportional to q(y) * exp(-beta * d(x, y)), for a public q.

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
    named = UNIFORM if prior is None else prior.hash
    scores = _make_euclidean_scores(vocabulary, eta, log_prior=None if prior is None else prior.log_ratios)
    certificate = None
    if calibrated:
        subject = Subject(vocabulary.hash, EUCLIDEAN, named, float(eta))
        scores, certificate = calibrate_scores(scores, subject=subject)
    setting = MechanismSetting(
        name="exponential",
        parameters={"eta": float(eta), "beta": scores.beta, "calibrated": calibrated, "prior": named},
    )
    return ScoredMechanism(setting=setting, scores=scores, certificate=certificate)


def make_santext(*, vocabulary: Vocabulary, eta: float) -> ScoredMechanism:
    """Y with probability proportional to exp(-eta * d(x, y) / 2), as SanText draws it.

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
    setting = MechanismSetting(name="santext", parameters={"eta": float(eta)})
    return ScoredMechanism(setting=setting, scores=_make_euclidean_scores(vocabulary, eta))


def make_tem(*, vocabulary: Vocabulary, eta: float, outside: float = OUTSIDE) -> ScoredMechanism:
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
    # Below, gamma would reach weights that are cut off at e^-30 anyway; above, gamma may be negative.
    if not 1e-6 <= outside <= 0.5:
        raise MechanismError(f"outside must be between 1e-6 and 0.5, got outside={outside!r}")
    others = max(len(vocabulary.eligible) - 1, 1)
    gamma = 2 / check_eta(eta) * min(math.log((1 - outside) * others / outside), LARGEST_DROP)
    setting = MechanismSetting(name="tem", parameters={"eta": float(eta), "outside": outside})
    return ScoredMechanism(setting=setting, scores=_make_euclidean_scores(vocabulary, eta, reach=gamma))


def _make_euclidean_scores(
    vocabulary: Vocabulary, eta: float, *, log_prior: NDArray[np.float64] | None = None, reach: float = np.inf
) -> Scores:
    metric = PublicMetric(embeddings=vocabulary.embeddings)
    return Scores(
        metric=metric, eligible=vocabulary.eligible, beta=check_eta(eta) / 2, log_prior=log_prior, reach=reach
    )


def _make_pure_loss(setting: MechanismSetting, *, distance: float, dimension: int, step: float | None) -> PrivacyLoss:
    return pure_loss(epsilon=setting.eta * distance, step=step)


def _choose_prior(source: str, vocabulary: Vocabulary) -> OutputPrior | None:
    return None if source == UNIFORM else read_output_prior(Path(source), vocabulary)


_PROMISE: Final = Promise(loss=_make_pure_loss, pure_only=True)
EXPONENTIAL: Final = MechanismKind(
    name="exponential",
    build=make_exponential,
    promise=_PROMISE,
    options={
        "prior": MechanismOption(
            default=UNIFORM, help="JSON file of token counts in public text; outputs follow them", read=_choose_prior
        ),
        "calibrated": CALIBRATED_OPTION,
    },
)
SANTEXT: Final = MechanismKind(name="santext", build=make_santext, promise=_PROMISE)
TEM: Final = MechanismKind(
    name="tem",
    build=make_tem,
    promise=_PROMISE,
    options={
        "outside": MechanismOption(
            default=OUTSIDE, help="b: the output is farther than gamma at most this often; 1e-6 to 0.5"
        )
    },
)
