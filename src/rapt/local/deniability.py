"""Plausible deniability of Feyisetan et al. 2020, over the tokens of a vocabulary: N_w and S_w.

- N_w = P[M(w) = w]: how often a token stays itself. Low is deniable. A reader of privatized text sees it first.
- S_w: the size of the smallest set of outputs that holds M(w) with probability 1 - `outside`. Large is deniable.

Both differ from token to token by orders of magnitude, so they are given as distributions over tokens, not as means. A
mechanism with a closed channel has them exactly. For the others draws are counted. N_w is then a share of draws, and
S_w is bounded from below: let T(s) be the share of the n draws that the s likeliest outputs among them make up, and
P(s) the probability of the s likeliest outputs in truth.

*The bound.* For the true best set, its share of the draws has the mean P(s) and is at most T(s), so E T(s) >= P(s). One
draw changes T(s) by at most 1/n, so by McDiarmid T(s) + sqrt(ln(1 / alpha) / 2n) >= P(s) with probability 1 - alpha.
At s = S_w that is at least 1 - outside, so the smallest s at which the left side reaches 1 - outside is at most S_w,
with probability 1 - alpha for each token. What the draws cannot show is how much larger S_w is: the bound is never
above the number of draws.

These describe a mechanism and are no guarantee: a large set may be all but certain to come from one word.

Source: Feyisetan, Balle, Drake, Diethe, WSDM 2020, section 4, who count distinct outputs of 1,000 draws as S_w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import UsageError
from rapt.local.distances import space_evenly
from rapt.local.mechanisms.interface import Mechanism, find_closed_channel
from rapt.local.vocabulary import Vocabulary

# Two-sided 95 % of the normal law.
_Z: Final = 1.959964
# Tokens of a closed channel that are computed at once: 15 MB at 30,000 outputs.
CHANNEL_ROWS: Final = 64


@dataclass(frozen=True, kw_only=True)
class UnchangedShare:
    """Share of draws that gave back the token, over eligible tokens with equal weight.

    Attributes:
        types: Tokens tried, evenly spaced over the eligible ids.
        draws: Draws of each; 0 where the probabilities of the tokens tried are exact.
        share: Mean over all.
        low, high: 95 % interval of the mean over the vocabulary.
        quantile_5, median, quantile_95: Over the tokens tried; simulated, each is known to about 1/√draws only.
    """

    types: int
    draws: int
    share: float
    low: float
    high: float
    quantile_5: float
    median: float
    quantile_95: float


def measure_unchanged(
    mechanism: Mechanism, vocabulary: Vocabulary, *, rng: np.random.Generator, types: int = 256, draws: int = 16
) -> UnchangedShare:
    """N_w on a sample of tokens; without draws, for a mechanism that can write its channel down.

    Args:
        mechanism: M.
        vocabulary: Vocabulary whose eligible tokens are tried.
        rng: Source of the noise; nothing private depends on it.
        types: Tokens to try, at most.
        draws: Draws of each.

    Raises:
        UsageError: Fewer than two tokens or no draws.
    """
    if types < 2 or draws < 1 or len(vocabulary.eligible) < 2:
        raise UsageError(f"a share needs at least 2 tokens and 1 draw, got types={types} draws={draws}")
    places = space_evenly(len(vocabulary.eligible), most=types)
    tried, channel = vocabulary.eligible[places], find_closed_channel(mechanism)
    if channel is None:
        released = mechanism.privatize(np.repeat(tried, draws), rng=rng).reshape(len(tried), draws)
        kept = (released == tried[:, None]).mean(axis=1)
    else:
        rows = np.array_split(np.arange(len(tried)), math.ceil(len(tried) / CHANNEL_ROWS))
        kept = np.concatenate([np.exp(channel(tried[row])[np.arange(len(row)), places[row]]) for row in rows])
        draws = 0
    share = float(kept.mean())
    # Tokens differ, so the interval is over tokens; at 0 and 1, where none differ, it is Wilson's over the draws.
    n = len(tried) if 0 < share < 1 else len(tried) * max(draws, 1)
    spread = float(kept.std(ddof=1)) / math.sqrt(n)
    edge = _Z * _Z / (n + _Z * _Z)
    return UnchangedShare(
        types=len(tried),
        draws=draws,
        share=share,
        low=max(0.0, share - _Z * spread) if share < 1 else 1 - edge,
        high=min(1.0, share + _Z * spread) if share > 0 else edge,
        quantile_5=float(np.quantile(kept, 0.05)),
        median=float(np.median(kept)),
        quantile_95=float(np.quantile(kept, 0.95)),
    )


OUTSIDE: Final = 0.05
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The distribution of a number over the tokens tried."""

    smallest: float
    quantile_5: float
    median: float
    quantile_95: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class PlausibleDeniability:
    """N_w and S_w over eligible tokens, evenly spaced over the ids.

    Attributes:
        types: Tokens tried.
        draws: Draws of each; 0 where both are exact.
        outside: Share of outputs that the set of S_w may miss.
        unchanged: N_w.
        set_size: S_w: exact where `draws` is 0, else a lower bound for each token.
        confidence: Probability, at least, that the bound holds for a given token; 1 where it is exact.
    """

    types: int
    draws: int
    outside: float
    unchanged: Spread
    set_size: Spread
    confidence: float

    @property
    def exact(self) -> bool:
        """Whether both come from the closed channel."""
        return self.draws == 0


def measure_deniability(
    mechanism: Mechanism,
    vocabulary: Vocabulary,
    *,
    rng: np.random.Generator,
    types: int | None = None,
    draws: int = 512,
    outside: float = OUTSIDE,
) -> PlausibleDeniability:
    """N_w and S_w on a sample of tokens; exactly, for a mechanism that can write its channel down.

    Args:
        mechanism: M.
        vocabulary: Vocabulary whose eligible tokens are tried.
        rng: Source of the noise where it has to be drawn; nothing private depends on it.
        types: Tokens to try, at most; None takes 256 of a closed channel, 32 of another.
        draws: Draws of each token where the channel is not closed.
        outside: Share of outputs that the set of S_w may miss.

    Raises:
        UsageError: No token, no draw, or a share that is not between 0 and 1.
    """
    closed = find_closed_channel(mechanism)
    wanted = (32 if closed is None else 256) if types is None else types
    if wanted < 1 or draws < 1 or not 0 < outside < 1 or len(vocabulary.eligible) < 1:
        raise UsageError(
            f"plausible deniability needs a token, a draw and a share below 1, got types={wanted} draws={draws} "
            f"outside={outside!r}"
        )
    places = space_evenly(len(vocabulary.eligible), most=wanted)
    if closed is None:
        kept, sizes = _simulated(mechanism, vocabulary.eligible[places], draws=draws, outside=outside, rng=rng)
    else:
        kept, sizes = _exact(closed, vocabulary.eligible, places, outside=outside)
    return PlausibleDeniability(
        types=len(places),
        draws=draws if closed is None else 0,
        outside=outside,
        unchanged=_spread(kept),
        set_size=_spread(sizes),
        confidence=CONFIDENCE if closed is None else 1.0,
    )


def _exact(
    channel: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    eligible: NDArray[np.int64],
    places: NDArray[np.int64],
    *,
    outside: float,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """N_w and S_w of the tokens at these places among the eligible ids, (n,) each."""
    kept, sizes = np.empty(len(places)), np.empty(len(places), dtype=np.int64)
    for start in range(0, len(places), CHANNEL_ROWS):
        part = slice(start, start + CHANNEL_ROWS)
        probabilities = np.exp(channel(eligible[places[part]]))
        kept[part] = probabilities[np.arange(len(probabilities)), places[part]]
        probabilities.sort(axis=1)
        held = np.cumsum(probabilities[:, ::-1], axis=1)
        # Relative to the sum, which rounding may leave a little below 1.
        sizes[part] = (held < (1 - outside) * held[:, -1:]).sum(axis=1) + 1
    return kept, sizes


def _simulated(
    mechanism: Mechanism, tokens: NDArray[np.int64], *, draws: int, outside: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The share of draws that gave back the token, and the bound on S_w, (n,) each."""
    released = mechanism.privatize(np.repeat(tokens, draws), rng=rng).reshape(len(tokens), draws)
    kept: NDArray[np.float64] = (released == tokens[:, None]).mean(axis=1)
    return kept, np.array([bound_set_size(np.unique(row, return_counts=True)[1], outside=outside) for row in released])


def bound_set_size(counts: NDArray[np.int64], *, outside: float, confidence: float = CONFIDENCE) -> int:
    """A lower bound on S_w, wrong at most 1 - `confidence` of the time, from counts of independent draws.

    Args:
        counts: Number of draws that gave each output that came up.
        outside: Share of outputs that the set may miss.
        confidence: Probability that the bound holds.
    """
    draws = int(counts.sum())
    error = math.sqrt(math.log(1 / (1 - confidence)) / (2 * draws))
    held = np.cumsum(np.sort(counts)[::-1]) / draws
    return int((held + error < 1 - outside).sum()) + 1


def _spread(values: NDArray[np.float64] | NDArray[np.int64]) -> Spread:
    smallest, low, median, high, largest = (float(value) for value in np.quantile(values, [0, 0.05, 0.5, 0.95, 1]))
    return Spread(smallest=smallest, quantile_5=low, median=median, quantile_95=high, largest=largest)
