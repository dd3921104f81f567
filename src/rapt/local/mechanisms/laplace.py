"""The multivariate Laplace mechanism: the one of RAPT, on a table's rows or on rows that were scaled to one length.

With one length for all, no word stays the oftener for having a long row.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.interface import (
    MechanismKind,
    Noise,
    Promise,
    check_token_ids,
)
from rapt.local.mechanisms.metric import PublicMetric
from rapt.local.privacy_loss import PrivacyLoss, laplace_loss
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting, check_eta

# 3 MB of noise in float64 at d = 384.
_BATCH: Final = 1024


@dataclass(frozen=True)
class LaplaceMechanism:
    """y = nearest eligible token to E(x) + z, with z of density proportional to exp(-eta * ||z||).

    Guarantee (eta * d-privacy, "dχ-privacy", for one token): for every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * ||E(x) - E(x')||.

    Proof.
        1. The density of v = E(x) + z is p(v|x) = C * exp(-eta * ||v - E(x)||); C depends on eta and d, not on x.
        2. By the triangle inequality, ||v - E(x')|| <= ||v - E(x)|| + ||E(x) - E(x')|| for every v.
        3. So log p(v|x) - log p(v|x') = eta * (||v - E(x')|| - ||v - E(x)||) <= eta * ||E(x) - E(x')||.
        4. Let C(y) be the set of v whose nearest eligible token is y, ties to the lowest id. It depends on the public
           table alone, not on x.
        5. P(y|x) is the integral of p(v|x) over C(y). By 3, p(v|x) <= exp(eta * ||E(x) - E(x')||) * p(v|x') under it.
        6. The exponential does not depend on v and comes out of the integral:
           P(y|x) <= exp(eta * ||E(x) - E(x')||) * P(y|x'). (Steps 4 to 6 are post-processing.)
        7. That p is what `sample_noise` draws: in polar coordinates exp(-eta * r) * r^(d-1) dr is the density of
           Gamma(d, 1/eta), whatever the direction, and the direction is uniform.
        8. It holds for any inputs x, x' in the table, eligible or not: nothing in it uses that x can be an output. ∎

    Not covered: the number and the order of tokens, labels, which record a token belongs to, and how often a text is
    released: the exponents of a text's tokens add up, and so do those of repeated releases. Tokens that mean the same
    but lie far apart are protected less. The proof is about real numbers; z is drawn in float64, and only the index of
    the nearest token is released, never the noisy vector, so the low bits that would betray E(x) do not leave.

    Source: Feyisetan, Balle, Drake, Diethe, "Privacy- and Utility-Preserving Textual Analysis via Calibrated
    Multivariate Perturbations", WSDM 2020, Algorithm 1; RAPT, Eq. 2-3. Status: proved.
    """

    vocabulary: Vocabulary
    eta: float

    def __post_init__(self) -> None:
        """Refuse an eta that is not a finite number above 0 (`MechanismError`)."""
        check_eta(self.eta)

    @property
    def setting(self) -> MechanismSetting:
        """Public setting: the mechanism's name and eta."""
        return MechanismSetting(name="laplace", parameters={"eta": float(self.eta)})

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
            choose=lambda noisy, _: self.vocabulary.nearest.search(noisy),
        )


def replace_noisy(
    vocabulary: Vocabulary,
    token_ids: NDArray[np.int64],
    *,
    eta: float,
    rng: np.random.Generator,
    at_once: int,
    choose: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.int64]],
    root: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Choose a token for the noisy vector of each token, (n,), every one with noise of its own.

    Args:
        vocabulary: Vocabulary whose rows the noise is added to.
        token_ids: Any rows of the table, (n,).
        eta: Slope, 1/distance.
        rng: Source of the noise.
        at_once: Tokens whose noise is held at once. It fixes the order of draws, and so what an insecure seed gives.
        choose: Chooses tokens by noisy vectors, (m, d), and by the tokens themselves, (m,).
        root: Matrix that each noise vector is multiplied by, (d, d); None leaves it as it is.

    Raises:
        VocabularyError: An id has no row in the table.
    """
    check_token_ids(token_ids, size=vocabulary.size)
    found = np.empty(len(token_ids), dtype=np.int64)
    for start in range(0, len(token_ids), at_once):
        batch = token_ids[start : start + at_once]
        noisy = sample_noise(rng, eta=eta, dim=vocabulary.dimension, size=len(batch))
        if root is not None:
            noisy = noisy @ root.T
        noisy += vocabulary.embeddings[batch]
        found[start : start + at_once] = choose(noisy, batch)
    return found


def sample_noise(rng: np.random.Generator, *, eta: float, dim: int, size: int) -> NDArray[np.float64]:
    """Independent rows of density proportional to exp(-eta * ||z||): a Gamma(d, 1/eta) radius times a unit vector.

    Args:
        rng: The source of the draws.
        eta: Slope, 1/distance.
        dim: Width d.
        size: Number of rows n.

    Returns:
        (n, d), float64.
    """
    direction = rng.standard_normal((size, dim))
    square = _square_lengths(direction)
    while (zero := square == 0).any():  # at d = 1 a normal number rounds to 0 once in about 10^16 draws
        direction[zero] = rng.standard_normal((int(zero.sum()), dim))
        square = _square_lengths(direction)
    direction *= (rng.gamma(dim, 1 / eta, size=size) / np.sqrt(square))[:, None]
    return direction


def _square_lengths(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, d) to (n,), without the matrix of squares: next to an int8 search its memory would be felt."""
    square: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows)
    return square


def state_laplace_loss(
    setting: MechanismSetting, *, distance: float, dimension: int, step: float | None
) -> PrivacyLoss:
    """The privacy loss of one token of `laplace`, exactly; as `TokenLoss`."""
    return laplace_loss(eta=setting.eta, distance=distance, dimension=dimension, step=step)


def _make_noise(setting: MechanismSetting, dimension: int) -> Noise:
    # ‖z‖ ~ Gamma(d, 1/η), so E‖z‖ = d/η and E‖z‖² = d(d+1)/η², the same share of it in each of the d directions.
    length = dimension / setting.eta
    if not math.isfinite(length):
        raise MechanismError(f"eta must give noise of finite length, got eta={setting.eta!r}; take a larger one")
    return Noise(mean_length=length, deviation_along_a_line=math.sqrt(dimension + 1) / setting.eta)


# Vickrey and the rank fix compute their output from the noisy vector, or the token, of `laplace`, so its loss bounds
# theirs.
LAPLACE_PROMISE: Final = Promise(loss=state_laplace_loss, noise=_make_noise)
LAPLACE: Final = MechanismKind(name="laplace", build=LaplaceMechanism, promise=LAPLACE_PROMISE)


METRIC: Final = "unit-rows"


@dataclass(frozen=True)
class UnitLaplaceMechanism:
    """y = nearest eligible token to U(x) + z, with U(x) = E(x) / ||E(x)|| and z of density prop. to exp(-eta * ||z||).

    Guarantee (eta * d_1-privacy for one token), with d_1(x, x') = ||U(x) - U(x')||, the chord of the angle between the
    two rows: for every x, x' and y,

        log P(y|x) - log P(y|x') <= eta * d_1(x, x').

    No two tokens are farther apart than 2. The metric is *not* the Euclidean one of the table, and eta has the unit
    1/chord: compare by what stays, or by the success of attacks, never by eta.

    Proof.
        1. U is a public table: a row of it is computed from that row of E alone, and E is public.
        2. d_1 is the Euclidean distance of rows of U, hence a metric, up to tokens whose rows have one direction.
        3. The mechanism is `laplace` on U: its steps 1 to 8 use nothing of a table but its rows. ∎
        A row of length 0 has no direction and stays 0. U is rounded to float32 once, and the guarantee, its distances
        and the search are all about the rounded table.

    Not covered: number and order of tokens, labels, repeated releases. See `laplace` about float64.

    Source: `laplace`, on another public table. Status: proved.
    """

    vocabulary: Vocabulary
    eta: float

    def __post_init__(self) -> None:
        """Refuse an eta that is not a finite number above 0 (`MechanismError`)."""
        check_eta(self.eta)

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta and the metric."""
        return MechanismSetting(name="unit-laplace", parameters={"eta": float(self.eta), "metric": METRIC})

    @cached_property
    def _on_units(self) -> LaplaceMechanism:
        return LaplaceMechanism(scale_rows(self.vocabulary), self.eta)

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """d_1 of pairs of rows, (n,)."""
        return self._on_units.distances(left, right)

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        return self._on_units.privatize(token_ids, rng=rng)


@lru_cache(maxsize=2)
def scale_rows(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with every row scaled to length 1, and a hash that says so; rows of length 0 are left."""
    rows = vocabulary.embeddings.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    table = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0).astype(np.float32)
    table.setflags(write=False)
    digest = hashlib.sha256(f"{METRIC} {vocabulary.hash}".encode("ascii")).hexdigest()
    return replace(vocabulary, bundle=replace(vocabulary.bundle, embeddings=table, hash=f"sha256:{digest}"))


def _remark(setting: MechanismSetting) -> str:
    return (
        "metric: every row of the table is scaled to length 1 first. Distances here are chords of the angle between "
        "two rows, none above 2, and η is per chord: it says nothing beside an η of another metric."
    )


UNIT_LAPLACE: Final = MechanismKind(
    name="unit-laplace",
    build=UnitLaplaceMechanism,
    promise=Promise(loss=LAPLACE_PROMISE.loss, noise=LAPLACE_PROMISE.noise, remark=_remark, space=scale_rows),
)
