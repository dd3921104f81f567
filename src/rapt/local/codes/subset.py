"""The subset mechanism: a whole text becomes one codeword, at one ε for any two texts, with exact probabilities.

A text's code is a point; the codewords nearest to it are its preferred ones. One of them leaves with a probability that
is e^ε times that of each other codeword. Only these two probabilities exist, so nothing that the encoder, the map or
rounding does with a text can change the guarantee: they decide *which* codewords are preferred, and never how many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Context, Decimal
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.wire.code_bundle import CodeBundle
from rapt.wire.mechanism_setting import MechanismSetting, check_epsilon

NAME: Final = "subset"
# Every weight and every sum of weights is below it: one uniform whole number of 63 bits decides.
_LIMIT: Final = 2**63 - 1
_DOWN: Final = Context(prec=60, rounding=ROUND_FLOOR)
# `exp` is correct to half a unit of its 60th digit; this is more.
_MARGIN: Final = Decimal("1e-57")
# Codewords whose numbers stay in a processor's cache while several codes are scored, and how many codes those are.
_TILE: Final = 4096
_CODES_AT_ONCE: Final = 8
# Where fewer than one codeword in so many is preferred, a sample says which proposals need no counting.
_RARE: Final = 8
_SAMPLE: Final = 512
_PROPOSALS: Final = 1024  # codewords for each preferred one, beyond which the m are sorted out instead
_ANGLES: Final = 4096
_STEPS_PER_OCTAVE: Final = 4


@dataclass(frozen=True, kw_only=True)
class SubsetMechanism:
    """Replaces a whole text by a random codeword, one of the nearest to its code more often than another.

    Guarantee (ε-local differential privacy of a whole text, for one release): for all texts x, x', of any length, and
    every output y,

        log P(y|x) - log P(y|x') <= ε.

    Proof, for one code a text (r = 1).
        1. A and B are whole numbers with 0 < B <= A <= B e^ε: A is rounded down from B times a lower bound on e^ε
           that was computed with 60 digits; ε is taken as the exact value of its float.
        2. Every text has exactly m preferred codewords of the N, ties included: those with the largest inner products,
           the lowest ids first among equals. A uniform whole number U below T = A m + B (N - m) is compared with A m:
           below it, a preferred codeword leaves, else another one. Uniform ids are proposed until one is of that kind,
           which is counted among all N; ids are left out uncounted only where their score is below one that at least m
           codewords reach. So each of the m, or of the N - m, is equally likely, independently of U.
        3. So P(y|x) = A / T where y is preferred and B / T where it is not, exactly. N, m, A, B and T are the same for
           all texts. Hence P(y|x) / P(y|x') is one of A / B, 1 and B / A, and at most e^ε. ∎
        With r codes a text, each is drawn so at ε / r, independently; the logarithms add up to at most ε.

    *Pairs.* Over a code of pairs, x is a pair of texts and y one codeword for both of them: the proof reads x nowhere
    but in step 2, which holds for whatever x is. So ε is for the pair, and no two pairs can be told apart beyond it,
    whether they differ in one text or in both.

    Nothing about the encoder is used: it may be wrong, cut a long text, or be chosen by an adversary. The bundle and m
    must be chosen before any private text is read, because they are published.

    Not covered: that somebody contributed, how often, and when; the label, which leaves in clear unless it is
    randomized at an ε of its own; further releases of the same text or of the same person, whose ε add up; a codebook
    that was made from private text; how long a draw takes. A code is scored by itself, so that no other text changes
    its rounding. An encoder that computes texts together may round a state by what else is in the batch.

    Source: Ye and Barg, "Optimal Schemes for Discrete Distribution Estimation under Locally Differential Privacy",
    IEEE Trans. Inf. Theory 2018; Wang et al., "Mutual Information Optimally Local Private Discrete Distribution
    Estimation", 2016. Preferred sets by distance: Bhowmick et al., "Protection Against Reconstruction", 2018.
    Status: proved.

    Attributes:
        bundle: Public code, whose codewords are the outputs.
        epsilon: ε of a whole text, nats.
        preferred: m, the number of codewords that are nearest to a code.
    """

    bundle: CodeBundle = field(repr=False)
    epsilon: float
    preferred: int

    def __post_init__(self) -> None:
        """Refuse an epsilon outside its domain, or a number of preferred codewords that has none (`MechanismError`)."""
        check_epsilon(self.epsilon)
        if type(self.preferred) is not int or not 1 <= self.preferred < self.bundle.size:
            raise MechanismError(
                f"the number of preferred codewords must be from 1 to {self.bundle.size - 1} with this codebook; "
                "choose_preferred() has a good one"
            )

    @property
    def setting(self) -> MechanismSetting:
        """Name and public parameters, as a manifest states them."""
        parameters = {
            "epsilon": float(self.epsilon),
            "preferred": self.preferred,
            "codewords": self.bundle.size,
            "codes": self.bundle.codes,
        }
        return MechanismSetting(name=NAME, parameters=parameters | ({"texts": 2} if self.bundle.pairs else {}))

    @cached_property
    def weights(self) -> tuple[int, int]:
        """A and B: how much more often a preferred codeword leaves than another, as whole numbers.

        B is as large as 63 bits allow, so that rounding A down costs nothing: below 1e-9 of the probability at ε <= 16.
        Where ε is so large that they do not fit, A / B is smaller than e^ε, and the text better protected.
        """
        m, others = self.preferred, self.bundle.size - self.preferred
        growth = _bound_power_of_e(float(self.epsilon), parts=self.bundle.codes)
        low = max(1, int(_DOWN.divide(Decimal(_LIMIT), _DOWN.fma(growth, Decimal(m), Decimal(others)))))
        high = min(int(_DOWN.multiply(growth, Decimal(low))), (_LIMIT - low * others) // m)
        return max(high, low), low

    @property
    def hit_probability(self) -> float:
        """P(the codeword is a preferred one), for reports: the exact one is A m / (A m + B (N - m))."""
        high, low = self.weights
        hit = high * self.preferred
        return hit / (hit + low * (self.bundle.size - self.preferred))

    def privatize(self, codes: NDArray[np.float64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One codeword of each codebook for each code, every one drawn independently.

        Args:
            codes: Codes of length 1, or 0, (n, k), as `project_states` gives them. Not changed.
            rng: Private: whoever can repeat its draws can undo them. It is asked several times for each codeword.

        Returns:
            Ids of codewords, (n, r), int64, from 0 to N - 1.
        """
        high, low = self.weights
        edge = high * self.preferred
        drawn = rng.integers(edge + low * (self.bundle.size - self.preferred), size=(len(codes), self.bundle.codes))
        found = np.empty(drawn.shape, dtype=np.int64)
        for run in range(self.bundle.codes):
            for row, scores in enumerate(self._score(codes, run=run)):
                found[row, run] = self.choose(scores, hit=bool(drawn[row, run] < edge), rng=rng)
        return found

    def choose(self, scores: NDArray[np.float32], *, hit: bool, rng: np.random.Generator) -> int:
        """One of the m codewords of the largest scores, or one of the others, each equally likely.

        Args:
            scores: One score for each codeword, (N,).
            hit: Whether it is one of the m.
            rng: Source of uniform whole numbers.
        """
        size, least = len(scores), -math.inf
        share = self.preferred if hit else size - self.preferred
        if hit and _RARE * share < size:
            least = self._bound_from_sample(scores)
            reached = np.count_nonzero(scores >= least)
            if not share <= reached <= _RARE * share or size > _PROPOSALS * share:
                return int(np.flatnonzero(self._mark_nearest(scores))[rng.integers(share)])
        while True:
            proposed = rng.integers(size, size=1 + 2 * size // share)
            for codeword in proposed[scores[proposed] >= least].tolist():
                if self.is_preferred(scores, codeword) == hit:
                    return int(codeword)

    def is_preferred(self, scores: NDArray[np.float32], codeword: int) -> bool:
        """Whether a codeword is one of the m: fewer than m have a larger score, or the same one and a lower id."""
        own = scores[codeword]
        larger = np.count_nonzero(scores > own)
        if larger >= self.preferred:
            return False
        return bool(larger + np.count_nonzero(scores[:codeword] == own) < self.preferred)

    def log_probabilities(self, codes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each code, codebook and codeword, (n, r, N), in nats."""
        high, low = self.weights
        total = high * self.preferred + low * (self.bundle.size - self.preferred)
        likely, other = (math.log(weight) - math.log(total) for weight in (high, low))
        found = np.empty((len(codes), self.bundle.codes, self.bundle.size))
        for run in range(self.bundle.codes):
            for row, scores in enumerate(self._score(codes, run=run)):
                found[row, run] = np.where(self._mark_nearest(scores), likely, other)
        return found

    def measure_attenuation(self, codes: NDArray[np.float64]) -> float:
        """The mean inner product of a code with the codeword that leaves for it, over codes of public text, (n, k).

        The posterior mean of a code given its codeword y is proportional to y; this is the factor where codes have no
        preferred direction.
        """
        chances = np.exp(self.log_probabilities(codes))
        parts = np.split(codes, self.bundle.codes, axis=1)
        lengths = np.stack([np.linalg.norm(part, axis=1) for part in parts], axis=1)
        products = np.stack([part @ words.T for part, words in zip(parts, self.bundle.codewords, strict=True)], axis=1)
        return float(((chances * products).sum(axis=2) / np.where(lengths > 0, lengths, 1)).mean())

    @cached_property
    def _tiles(self) -> list[list[NDArray[np.float32]]]:
        """The codewords of each codebook as tiles, (k / r, at most `_TILE`) each."""
        cuts = range(_TILE, self.bundle.size, _TILE)
        return [[np.ascontiguousarray(tile.T) for tile in np.split(words, cuts)] for words in self.bundle.codewords]

    def _score(self, codes: NDArray[np.float64], *, run: int) -> Iterator[NDArray[np.float32]]:
        """The scores of every codeword of one codebook for each code, (N,); overwritten by those of later codes."""
        tiles = self._tiles[run]
        width = len(tiles[0])
        # A unit code has no other entries. So no product is NaN or infinite, and all of them can be ordered.
        safe = np.nan_to_num(codes[:, run * width : (run + 1) * width], nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)
        safe = safe.astype(np.float32)
        scores = np.empty((_CODES_AT_ONCE, self.bundle.size), dtype=np.float32)
        for start in range(0, len(safe), _CODES_AT_ONCE):
            block = safe[start : start + _CODES_AT_ONCE]
            first = 0
            for tile in tiles:
                past = first + tile.shape[1]
                for code, row in zip(block, scores, strict=False):
                    np.dot(code, tile, out=row[first:past])
                first = past
            yield from scores[: len(block)]

    def _bound_from_sample(self, scores: NDArray[np.float32]) -> float:
        """A score that the m nearest reach and few others, judged by a sample of the codewords; to be counted."""
        sample = scores[:: max(1, len(scores) // _SAMPLE)]
        share = len(sample) * self.preferred / len(scores)
        place = max(len(sample) - 2 - int(share + 3 * math.sqrt(share)), 0)
        return float(np.partition(sample, place)[place])

    def _mark_nearest(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Mark the m codewords of the largest scores, (N,): exactly m, the lowest ids first among equals."""
        least = np.partition(scores, len(scores) - self.preferred)[len(scores) - self.preferred]
        nearest: NDArray[np.bool_] = scores >= least
        if (extra := np.count_nonzero(nearest) - self.preferred) > 0:
            nearest[np.flatnonzero(scores == least)[-extra:]] = False
        return nearest


def choose_preferred(epsilon: float, *, bundle: CodeBundle) -> int:
    """Choose m for codes that are anywhere on the sphere: the one whose codewords are nearest to them on average.

    It depends on ε, N, r and k alone, so everyone with the same bundle and ε has the same m. The best cap is that of a
    continuous codebook, whose share of the sphere is turned into a number of codewords, on a ladder of quarter octaves.

    Args:
        epsilon: ε of a whole text, nats.
        bundle: Bundle of the public code.

    Raises:
        MechanismError: epsilon is outside its domain.
    """
    growth = math.exp(min(check_epsilon(epsilon) / bundle.codes, 700.0))
    size, dimension = bundle.size, bundle.codewords.shape[2]
    steps = math.ceil(math.log2(size)) * _STEPS_PER_OCTAVE
    ladder = sorted(
        {min(max(round(size * 2 ** (-step / _STEPS_PER_OCTAVE)), 1), size - 1) for step in range(steps + 1)}
    )
    if dimension == 1:  # two points: the cap is one of them
        return max(1, size // 2)
    # The area of a cap up to an angle, and the mean height of its points, are integrals of powers of the sine.
    angles = np.linspace(0, math.pi, _ANGLES + 1)
    density = np.sin(angles) ** (dimension - 2)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    height = np.sin(angles) ** (dimension - 1)
    shares = np.array(ladder) / size
    # Pairs lie on half of the circle, so a share of their codewords reaches half as far.
    reached = np.interp(shares / 2 if bundle.pairs else shares, area / area[-1], height)
    gain = (growth - 1) * reached / (shares * growth + 1 - shares)
    return ladder[int(gain.argmax())]


def make_subset(bundle: CodeBundle, *, epsilon: float) -> SubsetMechanism:
    """Make the mechanism of a code at ε, with the number of preferred codewords that suits it.

    Raises:
        MechanismError: epsilon is outside its domain.
    """
    return SubsetMechanism(bundle=bundle, epsilon=epsilon, preferred=choose_preferred(epsilon, bundle=bundle))


def remake_subset(setting: MechanismSetting, *, bundle: CodeBundle) -> SubsetMechanism:
    """Make the mechanism that the manifest of a file of codes states again, from its code.

    Raises:
        MechanismError: The setting is of another mechanism, or of another code.
    """
    if setting.name == NAME:
        made = SubsetMechanism(bundle=bundle, epsilon=setting.epsilon, preferred=int(setting.parameters["preferred"]))
        # A centre that stands beside the code it came from is in the bundle, whose hash the caller has checked.
        stated = {key: value for key, value in setting.parameters.items() if key != "center"}
        if made.setting.parameters == stated:
            return made
    raise MechanismError(
        f"the mechanism must be {NAME!r} with as many codewords and codes as the code bundle has, got another setting; "
        "give the code of that file"
    )


def _bound_power_of_e(epsilon: float, *, parts: int) -> Decimal:
    """A number at most e^(epsilon / parts), and above it times 1 - 1e-56."""
    exponent = _DOWN.divide(Decimal(epsilon), Decimal(parts))  # a float is a decimal exactly
    return _DOWN.multiply(_DOWN.exp(exponent), _DOWN.subtract(Decimal(1), _MARGIN))
