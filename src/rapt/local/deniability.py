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
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.arguments import check_arguments
from rapt.errors import UsageError
from rapt.local.calibration_search import compute_share_interval
from rapt.local.mechanisms.interface import Mechanism, find_closed_channel
from rapt.local.retention import CHANNEL_ROWS, measure_retention
from rapt.local.vocabulary import Vocabulary
from rapt.local.weighting import Weighting, weigh_all, weigh_running_text

# Two-sided 95 % of the normal law.
_Z: Final = 1.959964
# Tokens of running text that are drawn: an interval of at most ± 1.1 points.
BASIS_DRAWS: Final = 8192
# Where each of them costs a row of the channel.
_CLOSED_DRAWS: Final = 2048
# Of each token of the vocabulary: 60,000 draws in all take four seconds on one core.
EVERY_TOKEN_DRAWS: Final = 2
# Draws times rows that each is compared with: SmolLM2's 48,798 tokens take half a minute on one core.
_MOST_SEARCHED: Final = 2**33


@dataclass(frozen=True, kw_only=True)
class UnchangedShare:
    """How much stays: the share of tokens that come out as they went in.

    Attributes:
        basis: Tokens that it is taken over, in words.
        types: Different tokens tried.
        draws: Draws over all of them; 0 where the probabilities are exact.
        share: Share of tokens that stay as they are.
        low, high: Ends of the 95 % interval of the share.
    """

    basis: str
    types: int
    draws: int
    share: float
    low: float
    high: float


def measure_unchanged(
    mechanism: Mechanism,
    vocabulary: Vocabulary,
    *,
    rng: np.random.Generator,
    weighting: Weighting | None = None,
    draws: int = BASIS_DRAWS,
) -> UnchangedShare:
    """How much stays, over running public text; without draws, for a mechanism that can write its channel down.

    Args:
        mechanism: Mechanism M.
        vocabulary: Vocabulary of the mechanism.
        rng: Source of the noise; nothing private depends on it.
        weighting: Tokens that the share is taken over; None takes `weigh_running_text`.
        draws: Tokens drawn, each as often as its share says.

    Raises:
        UsageError: There is no draw.
    """
    if draws < 1:
        raise UsageError(f"a share needs at least 1 draw, got draws={draws}")
    basis = weigh_running_text(vocabulary) if weighting is None else weighting
    channel = find_closed_channel(mechanism)
    draws = draws if channel is None else min(draws, _CLOSED_DRAWS)
    sampled = basis.sample(draws)
    if channel is not None:
        # Where every token of the basis was sampled, its shares are exact; else those of a sample.
        types, counts = np.unique(sampled, return_counts=True)
        whole = len(types) == len(basis.token_ids)
        shares = basis.shares if whole else counts / draws
        kept = measure_retention(mechanism, vocabulary, types, rng=rng, draws=1).kept
        share = float(kept @ shares)
        spread = 0.0 if whole else _Z * math.sqrt(float((kept - share) ** 2 @ shares) / draws)
        low, high = max(0.0, share - spread), min(1.0, share + spread)
        return UnchangedShare(basis=basis.source, types=len(types), draws=0, share=share, low=low, high=high)
    share = float((mechanism.privatize(sampled, rng=rng) == sampled).mean())
    low, high = compute_share_interval(share, draws)
    return UnchangedShare(
        basis=basis.source, types=len(np.unique(sampled)), draws=draws, share=share, low=low, high=high
    )


def measure_every_token(
    mechanism: Mechanism, vocabulary: Vocabulary, *, rng: np.random.Generator, draws: int = EVERY_TOKEN_DRAWS
) -> UnchangedShare:
    """The share over every token that may be an output, `draws` times each, by draws of the mechanism itself.

    A sample that is known beforehand would be passed by a table in which only the other rows were tampered with. Of a
    table that is too large for that in a minute, as many tokens are tried as time allows, chosen anew each time.
    """
    tokens, count = vocabulary.eligible, len(vocabulary.eligible)
    basis = weigh_all(vocabulary).source
    if count * count * draws > _MOST_SEARCHED:
        tokens, draws = rng.choice(tokens, size=max(_MOST_SEARCHED // count, 1), replace=False), 1
        basis = f"{len(tokens):,} tokens chosen at random of {basis}"
    released = mechanism.privatize(np.repeat(tokens, draws), rng=rng).reshape(len(tokens), draws)
    share = float((released == tokens[:, None]).mean())
    low, high = compute_share_interval(share, released.size)
    return UnchangedShare(basis=basis, types=len(tokens), draws=released.size, share=share, low=low, high=high)


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
    """N_w and S_w over eligible tokens, chosen at random.

    Attributes:
        types: Number of tokens that were tried.
        draws: Draws of each; 0 where both are exact.
        outside: Share of outputs that the set of S_w may miss.
        unchanged: Share N_w of draws that leave a token as it is.
        set_size: S_w: exact where `draws` is 0, else a lower bound for each token.
        confidence: Probability, at least, that the bound holds for a given token; 1 where it is exact.
    """

    types: int
    draws: int
    outside: float
    unchanged: Spread = field(repr=False)
    set_size: Spread = field(repr=False)
    confidence: float

    @property
    def exact(self) -> bool:
        """Whether both come from the closed channel."""
        return self.draws == 0


@check_arguments
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
        mechanism: Mechanism M.
        vocabulary: Vocabulary whose eligible tokens are tried.
        rng: Chooses the tokens, and draws the noise where it has to be drawn; nothing private depends on it.
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
    # Chosen anew each time: whoever made the table cannot know which.
    count = len(vocabulary.eligible)
    places = np.sort(rng.choice(count, size=min(wanted, count), replace=False))
    if closed is None:
        kept, sizes = _simulate(mechanism, vocabulary.eligible[places], draws=draws, outside=outside, rng=rng)
    else:
        kept, sizes = _compute_exactly(closed, vocabulary.eligible, places, outside=outside)
    return PlausibleDeniability(
        types=len(places),
        draws=draws if closed is None else 0,
        outside=outside,
        unchanged=_summarize_spread(kept),
        set_size=_summarize_spread(sizes),
        confidence=CONFIDENCE if closed is None else 1.0,
    )


def _compute_exactly(
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


def _simulate(
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


def _summarize_spread(values: NDArray[np.float64] | NDArray[np.int64]) -> Spread:
    smallest, low, median, high, largest = (float(value) for value in np.quantile(values, [0, 0.05, 0.5, 0.95, 1]))
    return Spread(smallest=smallest, quantile_5=low, median=median, quantile_95=high, largest=largest)
