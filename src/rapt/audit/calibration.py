"""Choosing η for the success of an attack, rather than for a number that bounds it.

*The context-free Bayes attack.* The attacker sees one privatized token, knows the mechanism and the true frequencies of
the words, and names the likeliest source: nobody who looks at each token alone does better. Where the mechanism's
channel has a closed form the success is exact, Σ_y max_x prior(x) P(y|x). Elsewhere it is simulated as `bound` counts
it: tokens in proportion to the weighting go through the real mechanism, and the choice by the estimated channel is
compared with them.

*The strongest attack.* Public texts go through the real mechanism, and the attacks of the audit that train no network
read them, with the other public texts in the attackers' hands: copying, Bayes, and Bayes with context. The success is
that of the one that names most tokens. This is the scale on which mechanisms can be compared.

*What it is not.* A guarantee. Another attacker may find more, and one who guesses the most frequent word always finds
that word's share, whatever η is: a target below it cannot be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks import ATTACKS
from rapt.audit.attacks.desk import Desk
from rapt.audit.channels import estimate_channel, explain_unknown_channel
from rapt.audit.view import PublicText, adversary_view
from rapt.errors import AuditError, UsageError
from rapt.local.calibration import Calibration, CurvePoint, add_success, calibrate_unchanged, measure_curve
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
from rapt.local.privatizer import Privatizer
from rapt.local.vocabulary import Vocabulary
from rapt.local.weighting import Weighting
from rapt.wire.manifest import NO_PLAIN_TOKENS, Randomness
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest

# Tokens for each η: the channel at 2,048 outputs takes 5 to 9 seconds on one core (bert-tiny, MiniLM).
TRIALS: Final = 2048
CURVE_STEPS: Final = 2
# Each try is expensive, and at 2,048 trials the interval of η is about 3 % wide.
_TOLERANCE: Final = 5e-3
_FIRST_STEP: Final = 1.05
# Sources at once: with 30,000 outputs, 60 MB of float64.
_ROWS: Final = 256
# Attacks of the audit that train no network: a minute or less for each η.
READING_ATTACKS: Final = ("embedding_inversion", "bayes", "context")
# Tokens in the attackers' hands for each token that they attack, at least.
_LEAST_HELD: Final = 4

Ints = NDArray[np.int64]


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


class StrongestSuccess:
    """The success of the strongest attack on public texts as a function of η, with the same draws for every η."""

    def __init__(
        self,
        make: MakeMechanism,
        vocabulary: Vocabulary,
        *,
        attacked: Sequence[Ints],
        held: PublicText,
        rng: np.random.Generator,
        attacks: Sequence[str] = READING_ATTACKS,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Choose the texts and the draws.

        Args:
            make: The mechanism at an η.
            vocabulary: Vocabulary of the mechanism.
            attacked: Tokens of the texts that are privatized and attacked.
            held: Other texts, which the attackers hold in clear.
            rng: Gives the key of the draws and the seed of the attacks.
            attacks: Names in `ATTACKS`.
            on_progress: Called with the number of η tried so far.
        """
        self._make = make
        self._vocabulary = vocabulary
        self.tokens = np.concatenate(attacked)
        self._cuts = np.cumsum([len(text) for text in attacked])[:-1]
        self._held = held
        self._attacks = attacks
        self._key, self._seed = (int(key) for key in rng.integers(2**31, size=2))
        self._found: dict[float, float] = {}
        self._on_progress = on_progress

    def __call__(self, eta: float) -> float:
        """The success at η; known already where it was asked for before. Raises as `attack`."""
        if eta not in self._found:
            self._found[eta] = max(float(named.mean()) for named in self.attack(self.open_desk(eta)).values())
            if self._on_progress is not None:
                self._on_progress(len(self._found))
        return self._found[eta]

    def open_desk(self, eta: float) -> Desk:
        """The desk of an attacker who sees the texts after the mechanism at η.

        Raises:
            AuditError: The mechanism's channel is not known, so that the attacks cannot be run.
        """
        mechanism = self._make(eta)
        if (reason := explain_unknown_channel(mechanism.setting, self._vocabulary.bundle)) is not None:
            raise AuditError(f"the attacks must know the mechanism's channel: {reason}; aim at a share unchanged")
        # Public texts: the draws need not be secret, only the same for every η.
        released = mechanism.privatize(self.tokens, rng=np.random.Generator(np.random.PCG64DXSM(self._key)))
        records = tuple(PrivatizedRecord(token_ids=tuple(part.tolist())) for part in np.split(released, self._cuts))
        manifest = Privatizer(self._vocabulary, mechanism, NO_PLAIN_TOKENS).manifest(
            labels=None, randomness=Randomness(source="PCG64DXSM (numpy), public text")
        )
        file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
        return Desk(adversary_view(file, self._vocabulary.bundle, public=self._held), seed=self._seed)

    def attack(self, desk: Desk) -> Mapping[str, NDArray[np.bool_]]:
        """Whether each token is named rightly by each attack, (n,)."""
        return {name: ATTACKS[name].run(desk).token_ids[:, 0] == self.tokens for name in self._attacks}


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

    def around(eta: float) -> Sequence[CurvePoint]:
        return measure_curve(make, vocabulary, eta=eta, weighting=weighting, rng=rng, draws=trials, steps=curve_steps)

    if find_closed_channel(make(nearby.eta)) is None:
        simulated = [
            SimulatedSuccess(make, vocabulary, weighting, trials=trials, rng=rng, on_progress=on_progress)
            for _ in range(2)
        ]
        return _calibrate_by_trials(nearby, *simulated, target="bayes-success", wanted=success, around=around)
    exact = ExactSuccess(make, weighting, on_progress=on_progress)
    eta = round_down(find_crossing(exact, target=success, start=nearby.eta, factor=_FIRST_STEP))
    return replace(
        nearby,
        target="bayes-success",
        wanted=success,
        eta=eta,
        eta_low=None,
        eta_high=None,
        reached=exact(eta),
        reached_low=exact(eta),
        reached_high=exact(eta),
        curve=tuple(add_success(around(eta), lambda eta: (exact(eta),) * 3)),
    )


def calibrate_attack_success(
    make: MakeMechanism,
    vocabulary: Vocabulary,
    *,
    success: float,
    texts: Sequence[Ints],
    weighting: Weighting,
    rng: np.random.Generator,
    trials: int = TRIALS,
    curve_steps: int = CURVE_STEPS,
    on_progress: Callable[[int], None] | None = None,
) -> Calibration:
    """The η at which the strongest of the attacks that train no network names this share of tokens.

    Two parts of the texts are attacked, one to find η and one to measure what is reached; the attackers hold the rest.

    Args:
        make: The mechanism at an η.
        vocabulary: Vocabulary of the mechanism.
        success: Target, between 0 and 1.
        texts: Tokens of public texts, at least six times as many tokens as `trials`.
        weighting: Frequencies of these tokens, for the shares of the curve.
        rng: Source of the choice of texts and of the draws.
        trials: Tokens to attack for each η, about; four times as many halve the error.
        curve_steps: Points of the curve on either side of the answer.
        on_progress: Called with the number of η tried so far.

    Raises:
        UsageError: The target is no share, no η reaches it, or there are too few texts.
        AuditError: The mechanism's channel is not known.
    """
    check_share(success, name="attack_success")
    once = list({text.tobytes(): text for text in texts if len(text)}.values())
    total = sum(map(len, once))
    if total < (2 + _LEAST_HELD) * trials:
        raise UsageError(
            f"public texts must have at least {(2 + _LEAST_HELD) * trials:,} tokens in different texts, got {total:,}; "
            f"give more, or attack fewer tokens than {trials:,}"
        )
    order = [once[place] for place in rng.permutation(len(once))]
    ends = np.searchsorted(np.cumsum([len(text) for text in order]), [trials, 2 * trials]) + 1
    held = PublicText(contents=tuple(order[ends[1] :]), source=f"{len(order) - ends[1]:,} public texts")
    simulated = [
        StrongestSuccess(make, vocabulary, attacked=part, held=held, rng=rng, on_progress=on_progress)
        for part in (order[: ends[0]], order[ends[0] : ends[1]])
    ]
    nearby = calibrate_unchanged(
        make, vocabulary, share=success, weighting=weighting, rng=rng, draws=trials, curve_steps=0
    )
    return _calibrate_by_trials(
        nearby,
        *simulated,
        target="attack-success",
        wanted=success,
        around=lambda eta: measure_curve(
            make, vocabulary, eta=eta, weighting=weighting, rng=rng, draws=trials, steps=curve_steps
        ),
    )


def _calibrate_by_trials(
    nearby: Calibration,
    search: Callable[[float], float],
    judge: Callable[[float], float],
    *,
    target: Literal["bayes-success", "attack-success"],
    wanted: float,
    around: Callable[[float], Sequence[CurvePoint]],
) -> Calibration:
    """The crossing of one simulated success, and what another with draws of its own says there."""
    eta, low, high = find_crossings(
        search,
        target=wanted,
        start=nearby.eta,
        margin=compute_share_error(wanted, nearby.draws),
        factor=_FIRST_STEP,
        tolerance=_TOLERANCE,
    )

    def measured(eta: float) -> tuple[float, float, float]:
        value = judge(eta)
        return (value, *compute_share_interval(value, nearby.draws))

    value, lower, upper = measured(eta)
    return replace(
        nearby,
        target=target,
        wanted=wanted,
        eta=eta,
        eta_low=low,
        eta_high=high,
        reached=value,
        reached_low=lower,
        reached_high=upper,
        curve=tuple(add_success(around(eta), measured)),
    )
