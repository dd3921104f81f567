"""The Mahalanobis mechanism: Laplace noise stretched along the directions in which the table varies most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.interface import (
    MechanismKind,
    MechanismOption,
    Promise,
    read_number,
)
from rapt.local.mechanisms.laplace import replace_noisy
from rapt.local.privacy_loss import PrivacyLoss, laplace_loss
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting, Parameter, check_eta

# The paper tries several; from 0, which is `laplace`, to below 1.
MIXING: Final = 0.5
LARGEST_MIXING: Final = 0.999
METRIC: Final = "regularized mahalanobis"
_BATCH: Final = 512


@dataclass(frozen=True, kw_only=True)
class MahalanobisMechanism:
    """y = nearest eligible token to E(x) + z, with z of density proportional to exp(-eta * sqrt(z' S^-1 z)).

    S = m * Sigma + (1 - m) * I. Sigma is the covariance of the eligible rows of the public table, scaled to a mean
    variance of 1; m is the mixing.

    Guarantee (eta * d_RM-privacy for one token), with d_RM(x, x') = sqrt(D' S^-1 D), D = E(x) - E(x'): for every x, x'
    and y,

        log P(y|x) - log P(y|x') <= eta * d_RM(x, x').

    The metric is *not* the Euclidean one: a pair that differs along a direction of small variance is protected less
    than by `laplace` at the same eta, one along a direction of large variance more. In the Euclidean metric the slope
    is `euclidean_slope` = eta / sqrt(smallest eigenvalue of S), at most eta / sqrt(1 - m).

    Proof.
        1. S is symmetric and positive definite, because 0 <= m < 1; so ||D||_S = sqrt(D' S^-1 D) is a norm.
        2. The density of v = E(x) + z is p(v|x) = C * exp(-eta * ||v - E(x)||_S), C independent of x.
        3. By the triangle inequality of that norm, p(v|x) <= exp(eta * d_RM(x, x')) * p(v|x') for every v.
        4. The nearest token, by whatever distance, is post-processing of v: see `laplace`, steps 4 to 6.
        5. That p is what is drawn: S = L L' (Cholesky), u = l * direction has density proportional to exp(-eta * ||u||)
           (`laplace`, step 7), and z = L u has ||z||_S = ||u||, with the constant Jacobian |L|.
        6. Sigma is computed from the public table, so nothing in S depends on a text. ∎

    Not covered: number and order of tokens, labels, repeated releases. See `laplace` about float64.

    What we do not do: pyPANTERA scales L u back to the length l ("renormalized Mahalanobis"). The noise then has the
    radius of `laplace` and another law of directions, which no proof covers: near E(x) the density depends on the
    direction alone, so the ratio of two inputs is unbounded by their distance.

    Source: Xu, Aggarwal, Feyisetan, Teissier, "A Differentially Private Text Perturbation Method Using a Regularized
    Mahalanobis Metric", PrivateNLP 2020, Algorithm 1. Status: proved.
    """

    vocabulary: Vocabulary
    eta: float
    mixing: float = MIXING

    def __post_init__(self) -> None:
        """Refuse numbers outside their domain (`MechanismError`)."""
        check_eta(self.eta)
        # At 1 a direction without variance would get no noise at all.
        if not 0 <= self.mixing <= LARGEST_MIXING:
            raise MechanismError(f"mixing must be between 0 and {LARGEST_MIXING}, got mixing={self.mixing!r}")

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta, the metric and the mixing."""
        parameters: dict[str, Parameter] = {"eta": float(self.eta), "metric": METRIC, "mixing": self.mixing}
        return MechanismSetting(name="mahalanobis", parameters=parameters)

    @property
    def euclidean_slope(self) -> float:
        """Slope of the guarantee in the Euclidean metric, 1/distance."""
        smallest = float(np.linalg.eigvalsh(self.shape_matrix)[0])
        # m * Sigma has no negative eigenvalue; rounding may give it one.
        return self.eta / float(np.sqrt(max(smallest, 1 - self.mixing)))

    @cached_property
    def shape_matrix(self) -> NDArray[np.float64]:
        """Matrix S that shapes the noise, (d, d)."""
        return shape_matrix(self.vocabulary, mixing=self.mixing)

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """L with S = L L', (d, d), which stretches the noise."""
        return np.linalg.cholesky(self.shape_matrix).astype(np.float64)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """d_RM of pairs of rows, (n,)."""
        difference = np.subtract(self.vocabulary.embeddings[left], self.vocabulary.embeddings[right], dtype=np.float64)
        # sqrt(D' S^-1 D) is the length of L^-1 D.
        found: NDArray[np.float64] = np.linalg.norm(np.linalg.solve(self.root, difference.T), axis=0)
        return found

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return replace_noisy(
            self.vocabulary,
            token_ids,
            eta=self.eta,
            rng=rng,
            at_once=_BATCH,
            choose=lambda noisy, _: self.vocabulary.nearest.search(noisy),
            root=self.root,
        )


def shape_matrix(vocabulary: Vocabulary, *, mixing: float) -> NDArray[np.float64]:
    """S = m * Sigma + (1 - m) * I of the eligible rows, (d, d); I where they do not vary at all."""
    rows = vocabulary.embeddings[vocabulary.eligible].astype(np.float64)
    rows -= rows.mean(axis=0)
    covariance = rows.T @ rows
    identity = np.eye(vocabulary.dimension)
    mean_variance = np.trace(covariance) / vocabulary.dimension
    if mean_variance == 0:
        return identity
    found: NDArray[np.float64] = mixing * covariance / mean_variance + (1 - mixing) * identity
    return found


def _bound_slope(setting: MechanismSetting) -> float:
    # No eigenvalue of S is below 1 - m, so no distance in its metric exceeds the Euclidean one over sqrt(1 - m).
    return setting.eta / math.sqrt(1 - read_number(setting, "mixing", at_most=LARGEST_MIXING))


def _make_loss(setting: MechanismSetting, *, distance: float, dimension: int, step: float | None) -> PrivacyLoss:
    # Noise at a larger distance is told apart more easily: Laplace noise of a smaller scale plus independent noise is
    # Laplace noise of a larger one, because the Gamma law of its variance is self-decomposable.
    return laplace_loss(eta=_bound_slope(setting), distance=distance, dimension=dimension, step=step)


def _remark(setting: MechanismSetting) -> str:
    return (
        "metric: the noise is longer along some directions of the table than along others. Every bound here holds for "
        f"any direction, with the slope {_bound_slope(setting):.4g} per Euclidean distance in place of η; most "
        "pairs are protected better."
    )


MAHALANOBIS: Final = MechanismKind(
    name="mahalanobis",
    build=MahalanobisMechanism,
    promise=Promise(loss=_make_loss, remark=_remark),
    options={
        "mixing": MechanismOption(
            default=MIXING, help="m, from 0 for the Euclidean metric to below 1 for the Mahalanobis one"
        )
    },
)
