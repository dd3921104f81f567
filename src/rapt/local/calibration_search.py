"""The search behind a calibration: shares by simulation, crossings by bisection, and the error of both.

Shares come from simulation with *common random numbers*: every η is tried with the same draws of noise. For the Laplace
mechanism the noise of a draw is then one vector scaled by 1/η, and the cell of a token is convex, so each draw changes
the token below some η and keeps it above: the simulated share rises with η without a wiggle, and bisection finds its
crossing. For other mechanisms it rises up to the error that is reported.

The error: of n draws at a true share p, the simulated share has a standard deviation of at most √(p(1-p)/n); a sample
in strata has less. The interval of η holds all values at which the simulated share is within 1.96 such of the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from rapt.errors import UsageError
from rapt.local.mechanisms.interface import Mechanism
from rapt.local.weighting import Weighting

# Two-sided 95 % of the normal law.
_Z: Final = 1.959964
# Of η: an eighth of the width of the interval at 4,096 draws.
TOLERANCE: Final = 2e-3
# First step of the search for the ends of an interval.
_NEAR: Final = 1.03
# From the start to the farthest η that is tried: farther out nothing moves in double precision.
_REACH: Final = 2.0**40
_FEWEST_DRAWS: Final = 100

MakeMechanism = Callable[[float], Mechanism]


class UnchangedCurve:
    """The simulated share of unchanged tokens as a function of η, with the same draws for every η."""

    def __init__(
        self,
        make: MakeMechanism,
        weighting: Weighting,
        *,
        draws: int,
        rng: np.random.Generator,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Choose the tokens and the draws.

        Args:
            make: The mechanism at an η.
            weighting: Shares of the tokens.
            draws: Tokens to privatize for each η.
            rng: Gives the key of the draws.
            on_progress: Called with the number of η tried so far.
        """
        if draws < _FEWEST_DRAWS:
            raise UsageError(f"a simulation must have at least {_FEWEST_DRAWS} draws, got draws={draws}")
        self._make = make
        self._tokens = weighting.sample(draws)
        self._key = int(rng.integers(2**63))
        self._found: dict[float, float] = {}
        self._on_progress = on_progress

    def __call__(self, eta: float) -> float:
        """The share at η; known already where it was asked for before."""
        if eta not in self._found:
            # Nothing is released here: the draws need not be secret, only the same for every η.
            rng = np.random.Generator(np.random.PCG64DXSM(self._key))
            released = self._make(eta).privatize(self._tokens, rng=rng)
            self._found[eta] = float((released == self._tokens).mean())
            if self._on_progress is not None:
                self._on_progress(len(self._found))
        return self._found[eta]


def find_crossings(
    share_at: Callable[[float], float],
    *,
    target: float,
    start: float,
    margin: float,
    factor: float = 2.0,
    tolerance: float = TOLERANCE,
) -> tuple[float, float | None, float | None]:
    """η for a target share, rounded down to four digits, and the ends of its interval; None for an end that is open.

    Args:
        share_at: Simulated share at an η.
        target: Target share, between 0 and 1.
        start: η to begin with.
        margin: Error of a simulated share at the target.
        factor: First step from the start.
        tolerance: Largest distance of η below the crossing, as a share of η.
    """
    eta = find_crossing(share_at, target=target, start=start, factor=factor, tolerance=tolerance)
    low, high = (
        find_crossing(share_at, target=end, start=eta, factor=_NEAR, tolerance=tolerance) if 0 < end < 1 else None
        for end in (target - margin, target + margin)
    )
    return round_down(eta), low, high


def find_crossing(
    rising: Callable[[float], float],
    *,
    target: float,
    start: float,
    factor: float = 2.0,
    tolerance: float = TOLERANCE,
) -> float:
    """The largest η found at which a rising function is still below the target, by bisection of log η.

    Args:
        rising: A function of η.
        target: Between its values far below and far above.
        start: η to begin with.
        factor: First step from there; steps double.
        tolerance: Largest distance below the crossing, as a share of η.

    Raises:
        UsageError: The function is on one side of the target everywhere.
    """
    low = high = start
    down = up = factor
    while rising(low) >= target:
        high, low, down = low, low / down, down * down
        _stop_beyond(low, start=start, target=target)
    while rising(high) < target:
        low, high, up = high, high * up, up * up
        _stop_beyond(high, start=start, target=target)
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return low


def compute_share_error(share: float, draws: int) -> float:
    """Half the width of the 95 % interval of a simulated share whose true value is `share`."""
    return _Z * math.sqrt(share * (1 - share) / draws)


def compute_share_interval(share: float, draws: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many draws."""
    center = (share + _Z * _Z / (2 * draws)) / (1 + _Z * _Z / draws)
    half = _Z * math.sqrt(share * (1 - share) / draws + (_Z / (2 * draws)) ** 2) / (1 + _Z * _Z / draws)
    return max(0.0, center - half), min(1.0, center + half)


def check_share(share: float, *, name: str) -> None:
    """Refuse a target that is not between 0 and 1, both excluded (`UsageError`)."""
    if not 0 < share < 1:
        raise UsageError(f"a target share must lie between 0 and 1, got {name}={share!r}; write half of all as 0.5")


def round_down(eta: float, *, digits: int = 4) -> float:
    """η with four significant digits, rounded down, which is towards more privacy."""
    unit = digits - 1 - math.floor(math.log10(eta))
    scaled = math.floor(eta * 10.0**unit) if unit >= 0 else math.floor(eta / 10.0**-unit)
    return float(f"{scaled}e{-unit}")


def _stop_beyond(eta: float, *, start: float, target: float) -> None:
    if not start / _REACH <= eta <= start * _REACH:
        raise UsageError(
            f"no eta reaches the target, got {target:.4g} and nothing on the other side up to eta={eta:.3g}; "
            "choose another target"
        )
