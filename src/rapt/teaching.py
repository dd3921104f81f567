"""A head that is asked at home, taught on public text: what noise leaves of a crowd's labels, spread over whole states.

A head over codes reads the few numbers that survive the noise. Nobody needs to protect a query that stays at home, so
there the whole state of the public encoder may be read. No private text has one to learn from, but public text has: the
head of the codes, made fit for clear codes (`sharpen_head`), labels public text, and a second head over whole states is
fitted to these labels, doubts included ("distillation", Hinton et al. 2015; on text without labels, Scudder 1965).

*Guarantee*: the second head is computed from the first, which released codes alone made, and from public text. So it is
post-processing: every text keeps its own ε, no budget is spent, and nothing is asked of a contributor. Public text must
be public; a head that was taught on somebody's private text would hold something of that.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.wire.code_bundle import CodeBundle, project_states, split_into_units
from rapt.wire.mechanism_setting import MechanismSetting

Floats = NDArray[np.float64]

_RELEASES: Final = 2.0
_DRAWS: Final = 256
_LEAST_ATTENUATION: Final = 0.01  # below it a crowd has told nothing
# Chosen on splits of `train` (docs/results/taught.jsonl), where 0.03 to 0.2 differ by at most 1.4 points. It spreads
# weights over all numbers of a state that go with the same answer.
PENALTY: Final = 5e-2
_STEPS: Final = 200
_LEAST_SLOPE: Final = 1e-5


def sharpen_head(weight: Floats, bias: Floats, *, shares: Floats, attenuation: float) -> tuple[Floats, Floats]:
    """Return the head that reads a clear code u, of the one that reads codewords y with E[y | u] = c u.

    A logistic head says log P(label | y) = w y + b, up to a number that all labels have in common. Over T independent
    releases of one text the evidence w y + b - log(share) adds up, and its mean is c w u + b - log(share); the share
    counts once:

        T (c w u + b - log(share)) + log(share),   T = 1 + 2 (1 / c² - 1).

    A clear code is worth 1 / c² releases by the variance of their mean, and more where texts of a label are alike. The
    2 was chosen on R8 and SST-2 (docs/results/text_codes.md); half of it and twice of it were within two points (not
    kept). Where nothing is noise, c = 1, the head stays as it is.

    Args:
        weight: Weights w of the head, (C, k).
        bias: Biases b of the head, (C,).
        shares: Share of each label, (C,).
        attenuation: The mean inner product c of a code and its codeword, from 0 to 1.
    """
    kept = min(max(attenuation, _LEAST_ATTENUATION), 1.0)
    releases = 1 + _RELEASES * (1 / kept**2 - 1)
    prior = np.log(shares)
    return releases * kept * weight, releases * (bias - prior) + prior


def estimate_attenuation(bundle: CodeBundle, setting: MechanismSetting) -> float:
    """Return the mean inner product c of a code and its codeword, over codes that are anywhere on the sphere.

    A codeword is one of the m nearest with the probability that the subset mechanism states, else one of the others.
    """
    preferred, runs = int(setting.parameters["preferred"]), bundle.codes
    drawn = np.random.default_rng(0).standard_normal((_DRAWS, bundle.width))
    units = split_into_units(drawn, codes_of_a_text=runs)
    growth, others = np.exp(setting.epsilon / runs), bundle.size - preferred
    hit = growth * preferred / (growth * preferred + others)
    found = []
    for run, words in enumerate(bundle.codewords.astype(np.float64)):
        scores = units[:, run] @ words.T
        near = np.partition(scores, others, axis=1)[:, others:].sum(axis=1)
        found.append(hit * near / preferred + (1 - hit) * (scores.sum(axis=1) - near) / others)
    return float(np.mean(found))


def read_clear_codes(states: NDArray[np.float32], bundle: CodeBundle) -> Floats:
    """Return what a head over codewords reads of clear codes, (n, h) to (n, width): runs divided by their number.

    Each run is released by its direction alone, and the head reads the mean state of the runs' codewords.
    """
    codes = project_states(states, bundle)
    return split_into_units(codes, codes_of_a_text=bundle.codes).reshape(codes.shape) / bundle.codes


def teach_head(
    states: NDArray[np.float32],
    weight: Floats,
    bias: Floats,
    *,
    bundle: CodeBundle,
    setting: MechanismSetting,
    shares: Floats,
    penalty: float = PENALTY,
) -> tuple[Floats, Floats]:
    """Return the weights, (C, h), and biases, (C,), of a head over whole states, taught by a head over codes.

    Args:
        states: States of public texts, (n, h).
        weight: Weights of the head over codewords, (C, width).
        bias: Biases of the head over codewords, (C,).
        bundle: Code of the contributions, with their second centre where they had one.
        setting: Mechanism that released them.
        shares: Share of each label among them, as that head sees it, (C,).
        penalty: Weight λ of the penalty of `fit_to_chances`.
    """
    kept = estimate_attenuation(bundle, setting)
    sharp, offset = sharpen_head(weight, bias, shares=shares, attenuation=kept)
    return fit_to_chances(
        states, _compute_softmax(read_clear_codes(states, bundle) @ sharp.T + offset), penalty=penalty
    )


def fit_to_chances(states: NDArray[np.float32], chances: Floats, *, penalty: float = PENALTY) -> tuple[Floats, Floats]:
    """Return W (C, h) and b (C,) of the lowest mean cross-entropy to chances of the labels, (n, C), + λ |W s|².

    s is the root mean square of a number of a state around the mean one. The loss is convex, and its curvature at most
    that of half the covariance of the states (Böhning 1992), so steps along its axes need no search; they are
    accelerated as Nesterov 1983 has it.
    """
    values = states.astype(np.float64)
    center = values.mean(axis=0)
    values -= center
    scale = max(float(np.sqrt((values**2).mean())), 1e-12)
    variances, axes = np.linalg.eigh(values.T @ values / (len(values) * scale**2))
    turned = values @ axes / scale  # (n, h), uncorrelated
    bound = np.append(variances.clip(min=0) / 2 + 2 * penalty, 0.5)[:, None]
    head = ahead = np.zeros((turned.shape[1] + 1, chances.shape[1]))
    pace = 1.0
    for _ in range(_STEPS):
        gaps = (_compute_softmax(turned @ ahead[:-1] + ahead[-1]) - chances) / len(chances)
        slope = np.vstack([turned.T @ gaps + 2 * penalty * ahead[:-1], gaps.sum(axis=0)])
        if abs(slope).max() < _LEAST_SLOPE:
            break
        following, next_pace = ahead - slope / bound, (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead = following + (pace - 1) / next_pace * (following - head)
        head, pace = following, next_pace
    weight = (axes @ ahead[:-1] / scale).T
    return weight, ahead[-1] - weight @ center


def _compute_softmax(logits: Floats) -> Floats:
    odds: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))
