"""The channel P(y|x) of a mechanism, where an attacker needs it: for each output, the sources that can explain it.

A whole channel has V² entries. An attack asks only for the outputs that it observed, and for each of them the few
sources x that make prior(x) * P(y|x) large; that is what a `ChannelEstimate` holds. A mechanism with a closed form can
fill it exactly, as one draw; the Laplace mechanism fills it by conditional Monte Carlo (`laplace_channel`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.vocabulary_bundle import VocabularyBundle

# Sources kept for each output beside itself, where nobody asks for more.
SOURCES: Final = 15
# Parts of the draws for cross-fitting: decide on seven, judge on the eighth.
_FOLDS: Final = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelQuestion:
    """The part of a channel that is asked for.

    Attributes:
        bundle: Bundle with the public table.
        setting: Mechanism, from the manifest.
        outputs: Sorted eligible ids, (O,).
        prior: Prior that chooses which sources are looked at, (V,); it does not enter P(y|x).
        sources: Number of sources that are kept for each output beside itself.
    """

    bundle: VocabularyBundle
    setting: MechanismSetting
    outputs: NDArray[np.int64]
    prior: NDArray[np.float64]
    sources: int = SOURCES


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelEstimate:
    """P(y|x) of chosen pairs. O outputs, S sources for each, K draws.

    Attributes:
        outputs: Sorted token ids y, (O,).
        sources: Token ids x for each output, (O, S). The first is y itself; padding repeats y with likelihood 0.
        likelihood: One unbiased value of P(y|x) from each draw, (O, S, K), float32. Draws are shared by all pairs, so
            that ratios within an output are known better than the values.
        unlisted: Sum of prior(x) * P(y|x) over the sources that are not listed, for the prior that chose them, (O,);
            a rough value where the channel has no closed form. None when nobody asked.
    """

    outputs: NDArray[np.int64]
    sources: NDArray[np.int64]
    likelihood: NDArray[np.float32]
    unlisted: NDArray[np.float64] | None = None

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """P(y|x) averaged over the draws, (O, S)."""
        values: NDArray[np.float64] = self.likelihood.mean(axis=2, dtype=np.float64)
        return values

    def standard_error(self) -> NDArray[np.float64]:
        """The standard error of `mean`, from the spread of the draws, (O, S); 0 for an exact channel."""
        draws = self.likelihood.shape[2]
        if draws == 1:
            return np.zeros(self.likelihood.shape[:2])
        spread: NDArray[np.float64] = self.likelihood.std(axis=2, ddof=1, dtype=np.float64)
        error: NDArray[np.float64] = spread / np.sqrt(draws)
        return error

    def joint(self, prior: NDArray[np.float64]) -> NDArray[np.float64]:
        """prior(x) * P(y|x), (O, S)."""
        values: NDArray[np.float64] = prior[self.sources] * self.mean
        return values

    def rank_sources(self, prior: NDArray[np.float64]) -> NDArray[np.int64]:
        """The sources of each output, the likeliest first, (O, S). Ties keep their order: y itself comes first."""
        order = np.argsort(-self.joint(prior), axis=1, kind="stable")
        return np.take_along_axis(self.sources, order, axis=1)

    def regret(self, prior: NDArray[np.float64]) -> float:
        """How much of the best success a choice by these draws may miss, as a share of it, >= 0.

        Max over noisy values is too high on the draws that chose it; a choice made on other draws is too low. The truth
        lies between, and their distance, over the value, is returned: an upper estimate.
        """
        draws = self.likelihood.shape[2]
        if draws < 2:
            return 0.0
        weight = prior[self.sources]
        chosen = float(self.joint(prior).max(axis=1).sum())
        fold = np.arange(draws) % min(_FOLDS, draws)
        judged = 0.0
        for part in range(int(fold.max()) + 1):
            inside, outside = self.likelihood[:, :, fold == part], self.likelihood[:, :, fold != part]
            choice = (weight * outside.mean(axis=2)).argmax(axis=1)[:, None]
            value = np.take_along_axis(weight * inside.mean(axis=2), choice, axis=1)
            judged += float(value.sum()) * float((fold == part).mean())
        return max(0.0, (chosen - judged) / chosen) if chosen > 0 else 0.0
