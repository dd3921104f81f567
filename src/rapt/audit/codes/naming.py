"""Which text a code is of, by the best attack there is, and whether a file's codewords are what its mechanism draws.

The channel has two probabilities, so Bayes' rule needs no approximation: of candidates that are as likely as each
other before, the likeliest are those that have most of the released codewords among their preferred ones. One code is
named among n texts, or several codes of one text.

*Bounds.* One release at ε changes the odds between any two texts by at most e^ε, so a belief b becomes at most
e^ε b / (e^ε b + 1 - b), and r releases are one at r ε. A share above such a bound is an accusation: if every trial is
right with at most that probability, the share is as large with probability exp(-n KL(share, bound)) at most, for any
independent trials with values from 0 to 1 (Chernoff 1952; Hoeffding 1963).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.intervals import Share, compute_independent_share
from rapt.local.codes.subset import SubsetMechanism
from rapt.local.codes.text_statement import bound_guess

# Candidates that a text is named among, as far as there are so many.
CANDIDATES: Final = (2, 10, 100, 1000)
RELEASES: Final = (1, 3, 10, 30)
# A sound program is accused once in so many audits.
ALPHA: Final = 1e-6
# Texts that are named, and candidates, at most: the table of both is held in memory.
MOST_TEXTS: Final = 4000


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How often the right text is named among candidates, by the best attack that there is.

    Attributes:
        candidates: n, the right text among them.
        releases: Codes of the text that the attacker holds, each drawn anew.
        first: Share of the texts that are named.
        chance: Share without the file, 1 / n.
        bound: Share that no attack exceeds, e^(rε) / (e^(rε) + n - 1).
    """

    candidates: int
    releases: int = 1
    first: Share
    chance: float
    bound: float


def bound_belief(blind: float, *, epsilon: float) -> float:
    """Return what a guess that is right with probability `blind` can become at ε: e^ε b / (e^ε b + 1 - b)."""
    if blind <= 0 or blind >= 1:
        return float(blind)
    return blind / (blind + (1 - blind) * math.exp(-epsilon))


def breaks_bound(share: Share, *, bound: float) -> bool:
    """Whether independent trials within the bound show such a share with probability below `ALPHA`."""
    value = share.value
    if value <= bound:
        return False
    if bound <= 0:
        return True
    surprise = value * math.log(value / bound)
    if value < 1:
        surprise += (1 - value) * math.log((1 - value) / (1 - bound))
    return share.n * surprise > -math.log(ALPHA)


def choose_texts(count: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose the texts that are named: all, or a random part of `MOST_TEXTS`, in their order."""
    return np.sort(rng.permutation(count)[:MOST_TEXTS])


def count_hits(
    mechanism: SubsetMechanism, codes: NDArray[np.float64], released: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Count, for each record and text, how many codewords of the record are preferred ones of the text, (n, texts).

    Args:
        mechanism: Mechanism that the release states.
        codes: Codes of the texts, (texts, k).
        released: Codewords of all releases, (R, n, r).
    """
    hits = np.zeros((released.shape[1], len(codes)), dtype=np.int32)
    for text, row in enumerate(mechanism.log_probabilities(codes)):
        preferred = row >= row.max(axis=1, keepdims=True)
        for run in range(preferred.shape[0]):
            hits[:, text] += preferred[run][released[:, :, run]].sum(axis=0, dtype=np.int32)
    return hits


def name_texts(
    mechanism: SubsetMechanism,
    codes: NDArray[np.float64],
    released: NDArray[np.int64],
    *,
    among: Sequence[int] = CANDIDATES,
    rng: np.random.Generator,
) -> tuple[Naming, ...]:
    """Name each text among candidates as likely as each other: one of those with the largest P(y|x), all y together.

    Args:
        mechanism: Mechanism that the release states.
        codes: Codes of the texts, (n, k).
        released: Codewords of R releases of each text, (R, n, r).
        among: Numbers of candidates; larger ones than n are n.
        rng: Source of candidates and broken ties.
    """
    hits = count_hits(mechanism, codes, released)
    everyone, found = len(codes), []
    for n in dict.fromkeys(min(n, everyone) for n in among):
        named = np.empty(everyone)
        for record in range(everyone):
            others = rng.choice(everyone - 1, size=n - 1, replace=False)
            others += others >= record
            best = hits[record, others].max(initial=-1)
            own = hits[record, record]
            named[record] = 0.0 if own < best else 1 / (1 + np.count_nonzero(hits[record, others] == own))
        # Ties are broken by chance: a share of a right answer each.
        right = rng.random(len(named)) < named
        found.append(
            Naming(
                candidates=n,
                releases=len(released),
                first=compute_independent_share(right),
                chance=1 / n,
                bound=bound_guess(len(released) * mechanism.epsilon, among=n),
            )
        )
    return tuple(found)


def name_repeated(
    mechanism: SubsetMechanism,
    codes: NDArray[np.float64],
    first: NDArray[np.int64],
    *,
    releases: Sequence[int] = RELEASES,
    rng: np.random.Generator,
) -> tuple[Naming, ...]:
    """Name each text from its release in the file, and further ones that are drawn here, among the largest candidates.

    Args:
        mechanism: Mechanism that the releases state.
        codes: Codes of the texts, (n, k).
        first: Codewords of the file, (n, r).
        releases: Numbers of releases of one text.
        rng: Source of further releases, candidates and ties.
    """
    chosen = rng.permutation(len(codes))[: CANDIDATES[-1]]
    codes, held = codes[chosen], [first[chosen]]
    held += [mechanism.privatize(codes, rng=rng) for _ in range(max(releases) - 1)]
    return tuple(
        naming
        for count in releases
        for naming in name_texts(mechanism, codes, np.stack(held[:count]), among=CANDIDATES[-1:], rng=rng)
    )


def measure_bits(mechanism: SubsetMechanism, codes: NDArray[np.float64]) -> float:
    """Return the bits that a release says about which text it is of, all n as likely; of several codes, at most.

    It is the mutual information H(Y) - H(Y|X), computed from the channel and not estimated.
    """
    high, low = (weight / 2**62 for weight in mechanism.weights)
    size, m = mechanism.bundle.size, mechanism.preferred
    total = high * m + low * (size - m)
    counts = np.zeros((mechanism.bundle.codes, size))
    for row in mechanism.log_probabilities(codes):
        counts += row >= row.max(axis=1, keepdims=True)
    mixed = (counts * high + (len(codes) - counts) * low) / (len(codes) * total)
    noise = -(m * high / total * math.log2(high / total) + (size - m) * low / total * math.log2(low / total))
    return max(0.0, float(-(mixed * np.log2(mixed)).sum()) - mechanism.bundle.codes * noise)


_BINS: Final = 16


@dataclass(frozen=True, kw_only=True)
class CodewordFit:
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


def compare_with_channel(
    mechanism: SubsetMechanism, codes: NDArray[np.float64], released: NDArray[np.int64]
) -> CodewordFit:
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
    return CodewordFit(
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
