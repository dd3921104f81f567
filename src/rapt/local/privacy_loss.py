"""The privacy loss of the multivariate Laplace mechanism: what ε is at a small δ, for one token and for a text.

The mechanism adds z with density proportional to exp(-η‖z‖₂) in R^d to an embedding. Let two embeddings lie Δ apart,
D = ‖Δ‖. The privacy loss is the log of the ratio of the two densities at what was drawn:

    L = η (‖z - Δ‖ - ‖z‖) = a (a - 2ut) / (√(u² - 2aut + a²) + u),   a = ηD,  u = η‖z‖ ~ Gamma(d, 1),  t = cos(z, Δ),

where u and t are independent and t has density proportional to (1 - t²)^((d-3)/2). Reflecting space in the midpoint
swaps the two densities, so L has one law in both directions, and δ(ε) = E[(1 - e^(ε-L))₊], the hockey-stick divergence.

*Guarantee.* For every ε, `PrivacyLoss.delta` is never below the true δ(ε), so `PrivacyLoss.epsilon` is never below the
true ε(δ). The released token is computed from the noisy vector, so the same numbers bound the released token.

*Proof.* L falls in u and in t: ∂L/∂u = (u - at)/‖·‖ - 1 <= 0, and -2aut is the only place of t. (1) The law of u is cut
into cells and all of a cell's mass is put at its left edge; the same for t. u' and t' are then stochastically smaller
than u and t, so L' = L(u', t') is stochastically larger than L. (2) L' is rounded up to a grid. (3) Computed
probabilities are shifted by `ROUNDING` towards the left. (4) Mass cut off on the right counts as if its loss were
ηD, the largest possible; mass cut off on the left is moved right. Each step makes L stochastically larger. The function
l -> (1 - e^(ε-l))₊ increases, so δ grows; and a sum of independent losses inherits the order, so a text does too.

*Not covered.* Words that depend on each other: a reader who knows the context learns more (docs/threat_model.md).

Source: the mechanism is Feyisetan et al. 2020 and RAPT, Eq. 2; privacy-loss distributions are Koskela et al. 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.wire.mechanism_setting import check_eta

# Cells of the two laws: for d >= 50, epsilon at delta = 1e-5 is then at most 0.2 % above its true value for a token
# and 0.5 % for twenty tokens.
RADIUS_CELLS: Final = 1024
COSINE_CELLS: Final = 4096
# Grid points between a loss of 0 and the largest loss, at most.
LOSS_POINTS: Final = 2**14
# Above the error of the two laws in double precision (under 1e-11 up to d = 4,096; measured in the tests).
ROUNDING: Final = 1e-10
# Mass cut off at either end. It keeps the arrays short; a delta below 1e-7 gets a needlessly large epsilon for it.
_NEGLIGIBLE: Final = 5e-10
_ROWS_AT_ONCE: Final = 4  # 130 KB an array, which stay in the cache of a processor


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivacyLoss:
    """A privacy loss whose law is known, rounded up, on a grid.

    Attributes:
        step: Distance of the grid's points, nats.
        first: Loss of `masses[0]`, in steps.
        masses: Probability of each loss.
        tail: Probability that is counted at the loss `bound`.
        bound: The largest possible loss, nats: η·D for a token, their sum for a text.
    """

    step: float
    first: int
    masses: NDArray[np.float64]
    tail: float
    bound: float

    def delta(self, epsilon: float) -> float:
        """δ(ε): at most this much of any event's probability exceeds e^ε times its probability for the other input."""
        losses = np.minimum((self.first + np.arange(len(self.masses))) * self.step, self.bound)
        first = int(np.searchsorted(losses, epsilon, side="right"))
        grid = float(self.masses[first:] @ -np.expm1(epsilon - losses[first:]))
        return min(1.0, grid + self.tail * max(0.0, -math.expm1(min(0.0, epsilon - self.bound))))

    def epsilon(self, delta: float) -> float:
        """The smallest ε >= 0 whose δ(ε) is at most `delta`, rounded up; at most the pure bound.

        Raises:
            MechanismError: `delta` is not in [0, 1].
        """
        if not 0 <= delta <= 1:
            raise MechanismError(f"delta must be from 0 to 1, got delta={delta!r}; 1e-5 is usual")
        low, high = 0.0, self.bound
        if self.delta(low) <= delta:
            return 0.0
        while high - low > 1e-9 * high and low < (middle := (low + high) / 2) < high:
            low, high = (low, middle) if self.delta(middle) <= delta else (middle, high)
        return high


def choose_loss_step(reach: float) -> float:
    """The grid for losses up to `reach` = η·D nats: the smallest power of two that needs at most `LOSS_POINTS`."""
    # A power of two: multiples of it are exact, so the grid itself has no rounding error.
    return math.ldexp(1.0, math.ceil(math.log2(max(reach, 1e-290) / LOSS_POINTS)))


@lru_cache(maxsize=32)
def laplace_loss(*, eta: float, distance: float, dimension: int, step: float | None = None) -> PrivacyLoss:
    """The privacy loss of one token against another at `distance`, never understated.

    Args:
        eta: η of the mechanism, 1/distance.
        distance: D, Euclidean, between the two embeddings.
        dimension: d, width of the embedding table.
        step: Grid of the loss, nats; None for `choose_loss_step(eta * distance)`. Only equal steps compose.

    Raises:
        MechanismError: η, the distance or the dimension is outside its domain.
    """
    reach = check_eta(eta) * distance
    if not (math.isfinite(reach) and reach >= 0) or dimension < 1:
        raise MechanismError(
            "eta times a distance must be finite and at least 0 and a dimension at least 1, "
            f"got eta={eta!r} distance={distance!r} dimension={dimension!r}"
        )
    step = choose_loss_step(reach) if step is None else step
    if reach == 0:
        return PrivacyLoss(step=step, first=0, masses=np.ones(1), tail=0.0, bound=0.0)
    radii, radius_masses = make_radius_cells(dimension)
    cosines, cosine_masses = make_cosine_cells(dimension)
    first = math.floor(-reach / step)
    masses = np.zeros(math.ceil(reach / step) + 1 - first)
    for start in range(0, len(radii), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        losses = laplace_losses(radii[rows, None], cosines[None, :], reach=reach)
        # The billionth of a step covers the rounding of the formula itself, which is relative 1e-15.
        index = np.ceil(losses / step + 1e-9).astype(np.int64) - first
        weights = radius_masses[rows, None] * cosine_masses[None, :]
        masses += np.bincount(
            np.minimum(index, len(masses) - 1).ravel(), weights=weights.ravel(), minlength=len(masses)
        )
    return _trim(PrivacyLoss(step=step, first=first, masses=masses, tail=0.0, bound=reach))


def pure_loss(*, epsilon: float, step: float | None = None) -> PrivacyLoss:
    """The privacy loss of which no more is known than that it is between -epsilon and epsilon; never understated.

    No pair of laws whose ratio is within e^±ε is easier to tell apart than a coin of bias e^ε / (1 + e^ε) and its
    reverse (Kairouz, Oh, Viswanath, ICML 2015), so that coin's loss gives the largest δ(ε'), composed or not.

    Args:
        epsilon: Pure bound, nats.
        step: Grid of the loss, as in `laplace_loss`.

    Raises:
        MechanismError: epsilon is not a finite number >= 0.
    """
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise MechanismError(f"a pure bound must be finite and at least 0, got epsilon={epsilon!r}")
    step = choose_loss_step(epsilon) if step is None else step
    first = -math.floor(epsilon / step)  # both losses are rounded up
    masses = np.zeros(math.ceil(epsilon / step) + 1 - first)
    masses[0] += math.exp(-epsilon) / (1 + math.exp(-epsilon))
    masses[-1] += 1 / (1 + math.exp(-epsilon))
    return PrivacyLoss(step=step, first=first, masses=masses, tail=0.0, bound=epsilon)


def compose(parts: Sequence[tuple[PrivacyLoss, int]]) -> PrivacyLoss:
    """The loss of independent releases together: each part is a loss and how many times it occurs.

    Raises:
        MechanismError: The losses have different grids, there are none, or a count is below 1.
    """
    if len({loss.step for loss, _ in parts}) != 1 or any(count < 1 for _, count in parts):
        raise MechanismError(
            f"losses must be at least one, on one grid and counted from 1, got {len(parts)} parts; "
            "give laplace_loss one step for all"
        )
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    count = sum(times for _, times in parts)
    length = 1 + sum(times * (len(loss.masses) - 1) for loss, times in parts)
    size = 1 << (length - 1).bit_length()
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    kept = 0.0
    for loss, times in parts:
        spectrum *= np.fft.rfft(loss.masses, size) ** times
        kept += times * math.log1p(-loss.tail)
    # Each transform has a relative error under 7.5e-16 log2(size) in the 2-norm (Higham 2002, Theorem 24.2), no mass
    # vector has a 2-norm above 1, and a sum over the grid is at most √size times the 2-norm.
    rounding = (count + 1) * 1e-15 * max(1.0, math.log2(size)) * math.sqrt(size)
    return _trim(
        PrivacyLoss(
            step=parts[0][0].step,
            first=sum(times * loss.first for loss, times in parts),
            masses=np.maximum(np.fft.irfft(spectrum, size)[:length], 0.0),
            tail=min(1.0, -math.expm1(kept) + rounding),
            bound=math.fsum(times * loss.bound for loss, times in parts),
        )
    )


def laplace_losses(u: NDArray[np.float64], t: NDArray[np.float64], *, reach: float) -> NDArray[np.float64]:
    """L(u, t) for a = `reach` > 0, nats; written without a difference of nearly equal lengths."""
    along, aside = u - reach * t, reach * np.sqrt(1 - t * t)
    # Where no square overflows or vanishes, a root of their sum takes less time than `hypot`.
    far = np.sqrt(along * along + aside * aside) if 1e-100 < reach < 1e100 else np.hypot(along, aside)
    loss: NDArray[np.float64] = reach / (far + u) * (reach - 2 * u * t)
    return loss


def make_radius_cells(dimension: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and masses of a u' that is stochastically at most u ~ Gamma(d, 1)."""
    # √u has a standard deviation of about 1/2 in every dimension.
    root = math.sqrt(dimension)
    edges = np.square(np.linspace(max(0.0, root - 4), root + 6, RADIUS_CELLS + 1))
    at_least = np.clip(gamma_survival(edges, dimension=dimension) - ROUNDING, 0.0, 1.0)
    masses = -np.diff(np.concatenate(([1.0], np.minimum.accumulate(at_least), [0.0])))
    return np.concatenate(([0.0], edges)), masses


def make_cosine_cells(dimension: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and masses of a t' that is stochastically at most the cosine of a uniform direction to a fixed one."""
    if dimension == 1:
        return np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    half = min(math.pi / 2, 8 / math.sqrt(max(1, dimension - 2)))
    edges = np.linspace(-half, half, COSINE_CELLS + 1)
    at_most = np.clip(angle_distribution(edges, dimension=dimension) + ROUNDING, 0.0, 1.0)
    masses = np.diff(np.concatenate(([0.0], np.maximum.accumulate(at_most), [1.0])))
    return np.concatenate(([-1.0], np.sin(edges))), masses


def gamma_survival(u: NDArray[np.float64], *, dimension: int) -> NDArray[np.float64]:
    """P(Gamma(d, 1) > u) = Σ_{k<d} e^-u u^k / k!, the Poisson sum of a whole shape."""
    k = np.arange(dimension)
    log_factorial = np.array([math.lgamma(i + 1) for i in range(dimension)])
    log_u = np.log(np.maximum(u, 1e-300))
    terms: NDArray[np.float64] = np.exp(np.outer(log_u, k) - u[:, None] - log_factorial).sum(axis=1)
    return terms


def angle_distribution(angle: NDArray[np.float64], *, dimension: int) -> NDArray[np.float64]:
    """P(asin t <= angle) for d >= 2: the integral of cos^(d-2), by the recurrence that lowers the power by two."""
    sine, squared_cosine = np.sin(angle), np.square(np.cos(angle))
    if dimension % 2 == 0:
        power, whole, probability = 0, math.pi, 0.5 + angle / math.pi
        factor = sine * np.cos(angle)  # cos^(m-1) sin for the next power m
    else:
        power, whole, probability = 1, 2.0, (1 + sine) / 2
        factor = sine * squared_cosine
    while power < dimension - 2:
        power += 2
        whole *= (power - 1) / power
        probability = probability + factor / (power * whole)
        factor = factor * squared_cosine
    return np.asarray(probability, dtype=np.float64)


def _trim(loss: PrivacyLoss) -> PrivacyLoss:
    """The same loss on fewer points: a negligible left end moves right, a negligible right end to the bound."""
    masses = loss.masses.copy()
    left = int(np.searchsorted(np.cumsum(masses), _NEGLIGIBLE, side="right"))
    right = len(masses) - int(np.searchsorted(np.cumsum(masses[::-1]), _NEGLIGIBLE, side="right"))
    if left >= right:
        return loss
    masses[left] += masses[:left].sum()
    return PrivacyLoss(
        step=loss.step,
        first=loss.first + left,
        masses=masses[left:right],
        tail=loss.tail + float(masses[right:].sum()),
        bound=loss.bound,
    )
