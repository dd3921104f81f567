"""Choosing η for a success of the context-free Bayes attack, rather than for a number that bounds it.

The attacker sees one privatized token, knows the mechanism and the true frequencies of the words, and names the
likeliest source: nobody who looks at each token alone does better. Where the mechanism's channel has a closed form the
success is exact, Σ_y max_x prior(x) P(y|x). Elsewhere it is simulated as `bound` counts it: tokens in proportion to the
weighting go through the real mechanism, and the choice by the estimated channel is compared with them.

*What it is not.* A guarantee. An attacker who uses the context of a token finds more, and one who guesses the most
frequent word always finds that word's share, whatever η is: a target below it cannot be reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.channels import estimate_channel
from rapt.local.calibration import Calibration, add_success, calibrate_unchanged, measure_curve
from rapt.local.calibration_search import (
    MakeMechanism,
    check_share,
    compute_share_error,
    compute_share_interval,
    find_crossing,
    find_crossings,
    round_down,
)
from rapt.local.mechanisms.interface import find_closed_channel
from rapt.local.vocabulary import Vocabulary
from rapt.local.weighting import Weighting

# Tokens for each η: the channel at 2,048 outputs takes 5 to 9 seconds on one core (bert-tiny, MiniLM).
TRIALS: Final = 2048
CURVE_STEPS: Final = 2
# Each try is expensive, and at 2,048 trials the interval of η is about 3 % wide.
_TOLERANCE: Final = 5e-3
_FIRST_STEP: Final = 1.05
# Sources at once: with 30,000 outputs, 60 MB of float64.
_ROWS: Final = 256


class ExactSuccess:
    """The success of the attack as a function of η, for a mechanism with a closed channel."""

    def __init__(
        self, make: MakeMechanism, weighting: Weighting, *, on_progress: Callable[[int], None] | None = None
    ) -> None:
        """Take the mechanism at an η, and the tokens with the shares that the attacker knows."""
        self._make = make
        self._weighting = weighting
        self._found: dict[float, float] = {}
        self._on_progress = on_progress

    def __call__(self, eta: float) -> float:
        """Σ_y max_x prior(x) P(y|x); known already where it was asked for before."""
        if eta not in self._found:
            channel = find_closed_channel(self._make(eta))
            assert channel is not None
            ids, log_shares = self._weighting.token_ids, np.log(self._weighting.shares)
            best: NDArray[np.float64] | None = None
            for start in range(0, len(ids), _ROWS):
                part = slice(start, start + _ROWS)
                joint = (channel(ids[part]) + log_shares[part, None]).max(axis=0)
                best = joint if best is None else np.maximum(best, joint)
            assert best is not None
            self._found[eta] = float(np.exp(best).sum())
            if self._on_progress is not None:
                self._on_progress(len(self._found))
        return self._found[eta]


class SimulatedSuccess:
    """The simulated success of the attack as a function of η, with the same draws for every η."""

    def __init__(
        self,
        make: MakeMechanism,
        vocabulary: Vocabulary,
        weighting: Weighting,
        *,
        trials: int,
        rng: np.random.Generator,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Choose the tokens and the draws.

        Args:
            make: The mechanism at an η.
            vocabulary: Vocabulary of the mechanism.
            weighting: Weighting of the tokens; the attacker knows it.
            trials: Tokens to privatize for each η.
            rng: Gives the key of the draws.
            on_progress: Called with the number of η tried so far.
        """
        self._make = make
        self._vocabulary = vocabulary
        self._tokens = weighting.sample(trials)
        self._prior = weighting.over_table(vocabulary.size)
        self._keys = [int(key) for key in rng.integers(2**63, size=2)]
        self._found: dict[float, float] = {}
        self._on_progress = on_progress

    def __call__(self, eta: float) -> float:
        """The success at η; known already where it was asked for before.

        Raises:
            AuditError: The mechanism's channel is not known.
        """
        if eta not in self._found:
            of_noise, of_channel = (np.random.Generator(np.random.PCG64DXSM(key)) for key in self._keys)
            mechanism = self._make(eta)
            released = mechanism.privatize(self._tokens, rng=of_noise)
            outputs, place = np.unique(released, return_inverse=True)
            channel = estimate_channel(
                mechanism.setting, self._vocabulary.bundle, outputs=outputs, prior=self._prior, rng=of_channel
            )
            guessed = channel.rank_sources(self._prior)[:, 0][place]
            self._found[eta] = float((guessed == self._tokens).mean())
            if self._on_progress is not None:
                self._on_progress(len(self._found))
        return self._found[eta]


def calibrate_success(
    make: MakeMechanism,
    vocabulary: Vocabulary,
    *,
    success: float,
    weighting: Weighting,
    rng: np.random.Generator,
    trials: int = TRIALS,
    curve_steps: int = CURVE_STEPS,
    on_progress: Callable[[int], None] | None = None,
) -> Calibration:
    """The η at which the context-free Bayes attack names this share of tokens.

    Args:
        make: The mechanism at an η.
        vocabulary: Vocabulary of the mechanism.
        success: Target, between 0 and 1.
        weighting: Weighting of the tokens; the attacker knows it.
        rng: Source of the draws; nothing private depends on it.
        trials: Tokens for each η; four times as many halve the error.
        curve_steps: Points of the curve on either side of the answer.
        on_progress: Called with the number of η tried so far.

    Raises:
        UsageError: The target is no share, or no η reaches it.
        AuditError: The mechanism's channel is not known.
    """
    check_share(success, name="bayes_success")
    # Naming the observed token itself is one strategy, so at this η the attack succeeds a little more than wanted.
    nearby = calibrate_unchanged(
        make, vocabulary, share=success, weighting=weighting, rng=rng, draws=trials, curve_steps=0
    )
    if find_closed_channel(make(nearby.eta)) is None:
        simulated = [
            SimulatedSuccess(make, vocabulary, weighting, trials=trials, rng=rng, on_progress=on_progress)
            for _ in range(2)
        ]
        eta, low, high = find_crossings(
            simulated[0],
            target=success,
            start=nearby.eta,
            margin=compute_share_error(success, trials),
            factor=_FIRST_STEP,
            tolerance=_TOLERANCE,
        )

        def measured(eta: float) -> tuple[float, float, float]:
            value = simulated[1](eta)
            return (value, *compute_share_interval(value, trials))

    else:
        exact = ExactSuccess(make, weighting, on_progress=on_progress)
        eta = round_down(find_crossing(exact, target=success, start=nearby.eta, factor=_FIRST_STEP))
        low, high = None, None

        def measured(eta: float) -> tuple[float, float, float]:
            return (exact(eta),) * 3

    around = measure_curve(make, vocabulary, eta=eta, weighting=weighting, rng=rng, draws=trials, steps=curve_steps)
    value, lower, upper = measured(eta)
    return replace(
        nearby,
        target="bayes-success",
        wanted=success,
        eta=eta,
        eta_low=low,
        eta_high=high,
        reached=value,
        reached_low=lower,
        reached_high=upper,
        curve=tuple(add_success(around, measured)),
    )
