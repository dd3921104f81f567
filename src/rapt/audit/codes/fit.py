"""Whether the codewords of a file are those that its mechanism draws, and which ε they show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.codes.naming import ALPHA
from rapt.local.codes.subset import SubsetMechanism

_BINS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether the codewords of the file are those that its mechanism draws.

    Attributes:
        hits: Share of codewords that are preferred ones of their text.
        stated: Probability that the mechanism states for it.
        p_value: Probability of hits, or of places among the preferred and the other codewords, as far off as these,
            if the program is sound; the smallest of the three, corrected for three.
        spent: Lower bound on the ε that was spent, of all codes of a text, at confidence 1 - α.
        largest: Largest such bound that as many texts could have shown.
    """

    hits: float
    stated: float
    p_value: float
    spent: float
    largest: float

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against the program."""
        return self.p_value >= ALPHA


def compare_with_channel(mechanism: SubsetMechanism, codes: NDArray[np.float64], released: NDArray[np.int64]) -> Fit:
    """Exact binomial test of the hits, χ² of the places within both sides, and what ε the hits show."""
    hit = np.empty(released.shape, dtype=bool)
    places = np.empty(released.shape)
    for text, row in enumerate(mechanism.log_probabilities(codes)):
        preferred = row >= row.max(axis=1, keepdims=True)
        for run in range(preferred.shape[0]):
            word = released[text, run]
            side = preferred[run] if preferred[run, word] else ~preferred[run]
            hit[text, run] = preferred[run, word]
            places[text, run] = np.count_nonzero(side[:word]) / np.count_nonzero(side)
    tried, size, m = hit.size, mechanism.bundle.size, mechanism.preferred
    count = int(hit.sum())
    p_hits = float(stats.binomtest(count, tried, mechanism.hit_probability).pvalue)
    p_places = 1.0
    for chosen, share in ((places[hit], m), (places[~hit], size - m)):
        bins = min(_BINS, share, len(chosen) // 5)
        if bins > 1:
            edges = np.ceil(np.linspace(0, share, bins + 1)) / share
            counted = np.histogram(chosen, bins=edges)[0]
            p_places = min(p_places, float(stats.chisquare(counted, np.diff(edges) * len(chosen)).pvalue))
    return Fit(
        hits=count / tried,
        stated=mechanism.hit_probability,
        p_value=min(1.0, 3 * min(p_hits, p_places)),
        spent=_show_epsilon(count, tried, mechanism),
        largest=_show_epsilon(tried, tried, mechanism),
    )


def _show_epsilon(hits: int, tried: int, mechanism: SubsetMechanism) -> float:
    """Lower confidence bound on ε from hits: that of the odds of a preferred codeword, of all codes of a text."""
    low = float(stats.beta.ppf(ALPHA, hits, tried - hits + 1)) if hits else 0.0
    m, others = mechanism.preferred, mechanism.bundle.size - mechanism.preferred
    if low <= m / (m + others):
        return 0.0
    return mechanism.bundle.codes * math.log(low / (1 - low) * others / m) if low < 1 else math.inf
