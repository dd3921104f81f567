"""CusText with shared output sets: each word is replaced by one of the set that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.interface import MechanismKind, MechanismOption, check_token_ids
from rapt.local.mechanisms.metric import LARGEST_DROP, PublicMetric
from rapt.local.mechanisms.near_tokens import find_nearest_tokens
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import MechanismSetting, Parameter, check_eta

# The paper's K.
SET_SIZE: Final = 20
METRIC: Final = "1 within a set, infinite across"
_TOKENS_AT_ONCE: Final = 16384
# Types whose probabilities are computed at once: 5 MB of distances at 40 outputs each.
_TYPES_AT_ONCE: Final = 1024
# Vocabularies whose sets are kept: a search among values of eta asks for the same ones each time.
_KEPT: Final = 4


@dataclass(frozen=True, kw_only=True)
class CustextMechanism:
    """y of the set of x with probability proportional to exp(eta * u(x, y) / 2), u = -(d - d_min) / (d_max - d_min).

    The sets are a partition of the eligible tokens, made from the public table alone: the first token in order of id
    that is in none yet, with those of its neighbours that are in none yet, `set_size` in all; the last few that remain
    join the last set. d_min and d_max are over the set of x.

    Guarantee, for tokens of one set only (eta is ε itself here and has no unit): for every y, and every x and x' of one
    set,

        log P(y|x) - log P(y|x') <= eta.

    For x and x' of different sets there is **none**: they have no outputs in common, and the set of every token is sent
    in clear. Sets of near tokens hide a word among its like, and nothing else.

    Proof.
        1. u lies between -1 and 0 for every x and y, so s = eta * u / 2 differs by at most eta / 2 between x and x'.
        2. Z(x) = Σ_y exp(s(x, y)) over the set, which x and x' share: log Z differs by at most eta / 2.
        3. Together at most eta. s is cut off at -30, which brings two values no farther apart. ∎
        A row that can never be an output belongs to the set of the eligible token nearest to it.
        Draws are from whole numbers that add up to 2^64, the smallest at least 2^11: within 2^-11 nats of the stated
        law, and no output of a set is impossible.

    Not covered: which set a token belongs to; number and order of tokens, labels, repeated releases.

    What we do not do: CusText's "aggressive" mapping gives each word its own K nearest words; supports differ, and ε is
    infinite even between neighbours. Its "conservative" mapping goes by word frequency in the *private* corpus.
    CusText+ sends stop words and numbers in clear. pyPANTERA's version takes the K *least* similar words under cosine.

    Source: Chen, Zhao, Wang, Wang, Li, "A Customized Text Sanitization Mechanism with Differential Privacy", Findings
    of ACL 2023. Status: conditional.
    """

    vocabulary: Vocabulary
    eta: float
    set_size: int = SET_SIZE

    def __post_init__(self) -> None:
        """Refuse numbers outside their domain (`MechanismError`)."""
        check_eta(self.eta)
        if not 2 <= self.set_size <= 200:
            raise MechanismError(f"set_size must be between 2 and 200, got set_size={self.set_size!r}")

    def __getstate__(self) -> dict[str, Any]:
        """The setting alone: which types were seen tells which tokens were drawn for."""
        return {"vocabulary": self.vocabulary, "eta": self.eta, "set_size": self.set_size}

    @property
    def setting(self) -> MechanismSetting:
        """Name, eta, the metric and the size of a set."""
        parameters: dict[str, Parameter] = {"eta": float(self.eta), "metric": METRIC, "set_size": self.set_size}
        return MechanismSetting(name="custext", parameters=parameters)

    @cached_property
    def sets(self) -> NDArray[np.int64]:
        """The set of every row of the table, (V,)."""
        return _keep_partition(self.vocabulary, self.set_size)

    @cached_property
    def _ends(self) -> NDArray[np.uint64]:
        """`_round_ends` of the types seen so far, (V, longest): 16 bytes times `set_size` a type seen, at most."""
        return np.empty((self.vocabulary.size, self._members.shape[1]), dtype=np.uint64)  # taken up as it is filled

    @cached_property
    def _seen(self) -> NDArray[np.bool_]:
        return np.zeros(self.vocabulary.size, dtype=bool)

    def _see(self, token_ids: NDArray[np.int64]) -> None:
        """Have the ends of these types. They follow from the public table: threads that meet write the same."""
        missing = np.unique(token_ids[~self._seen[token_ids]])
        for start in range(0, len(missing), _TYPES_AT_ONCE):
            types = missing[start : start + _TYPES_AT_ONCE]
            self._ends[types] = _round_ends(np.exp(self._log_probabilities(types)))
            self._seen[types] = True

    @cached_property
    def _members(self) -> NDArray[np.int64]:
        """Places among the eligible ids of each set's tokens, in order, (sets, longest); -1 behind the last."""
        sets = self.sets[self.vocabulary.eligible]
        order = np.argsort(sets, kind="stable")
        sizes = np.bincount(sets)
        found = np.full((len(sizes), int(sizes.max())), -1, dtype=np.int64)
        found[np.arange(found.shape[1]) < sizes[:, None]] = order
        return found

    def _log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for the members of the set of x, (n, longest); -inf behind the last."""
        places = self._members[self.sets[token_ids]]
        real = places >= 0
        flat = np.repeat(token_ids, places.shape[1])
        metric = PublicMetric(embeddings=self.vocabulary.embeddings)
        distances = metric.pairs(flat, self.vocabulary.eligible[places.ravel()]).reshape(places.shape)
        nearest = np.where(real, distances, np.inf).min(axis=1, keepdims=True)
        farthest = np.where(real, distances, -np.inf).max(axis=1, keepdims=True)
        spread = np.where(farthest > nearest, farthest - nearest, 1.0)
        scores = np.maximum(-self.eta / 2 * (distances - nearest) / spread, -LARGEST_DROP)
        scores[~real] = -np.inf
        found: NDArray[np.float64] = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return found

    def distances(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """1 for two rows of one set, 0 for the same row, else infinite, (n,)."""
        return np.where(self.sets[left] == self.sets[right], (left != right).astype(np.float64), np.inf)

    def log_probabilities(self, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log of P(y|x) for each x and every eligible y, (n, C), -inf outside the set. Raises `VocabularyError`."""
        check_token_ids(token_ids, size=self.vocabulary.size)
        found = np.full((len(token_ids), len(self.vocabulary.eligible)), -np.inf)
        places = self._members[self.sets[token_ids]]
        row, column = np.nonzero(places >= 0)
        found[row, places[row, column]] = self._log_probabilities(token_ids)[row, column]
        return found

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible token for each token, as in `Mechanism`. Raises `VocabularyError`."""
        check_token_ids(token_ids, size=self.vocabulary.size)
        found = np.empty(len(token_ids), dtype=np.int64)
        for start in range(0, len(token_ids), _TOKENS_AT_ONCE):
            batch = token_ids[start : start + _TOKENS_AT_ONCE]
            self._see(batch)
            point = rng.integers(0, 2**64, size=len(batch), dtype=np.uint64)
            member = _bisect(self._ends, batch, point)
            found[start : start + _TOKENS_AT_ONCE] = self.vocabulary.eligible[self._members[self.sets[batch], member]]
        return found


@lru_cache(maxsize=_KEPT)
def _keep_partition(vocabulary: Vocabulary, set_size: int) -> NDArray[np.int64]:
    found = partition(vocabulary, set_size=set_size)
    found.flags.writeable = False
    return found


def _bisect(ends: NDArray[np.uint64], rows: NDArray[np.int64], points: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many ends of its row each point exceeds, (n,), by bisection in all rows at once; the last end is 2^64 - 1."""
    flat, width = ends.ravel(), ends.shape[1]
    first, place = rows * width, np.zeros(len(rows), dtype=np.int64)
    step = 1 << width.bit_length() >> 1
    while step:
        # Beyond the end of a row stands another row's, which does not count.
        passed = flat.take(first + place + (step - 1), mode="clip") < points
        passed &= place + step <= width
        place += step * passed
        step >>= 1
    return place


def partition(vocabulary: Vocabulary, *, set_size: int) -> NDArray[np.int64]:
    """The set of every row, (V,), by the greedy rule of `CustextMechanism`; it reads the public table only."""
    eligible = vocabulary.eligible
    rows = vocabulary.embeddings[eligible].astype(np.float64)
    half_squares = np.einsum("ij,ij->i", rows, rows) / 2
    places = np.arange(len(eligible))  # of the rows that are still looked at
    free = np.ones(len(eligible), dtype=bool)  # which of them are in no set yet
    sets = np.full(len(eligible), -1, dtype=np.int64)
    number, left = 0, len(eligible)
    while left >= 2 * set_size:
        if left < len(places) / 2:
            places, rows, half_squares, free = places[free], rows[free], half_squares[free], np.ones(left, dtype=bool)
        first = int(free.argmax())
        scores = np.where(free, half_squares - rows @ rows[first], np.inf)
        scores[first] = -np.inf  # also where another token has an equal row
        among = np.flatnonzero(scores <= np.partition(scores, set_size - 1)[set_size - 1])
        chosen = among[np.argsort(scores[among], kind="stable")[:set_size]]
        sets[places[chosen]], free[chosen] = number, False
        number, left = number + 1, left - set_size
    sets[places[free]] = number
    found = np.full(vocabulary.size, -1, dtype=np.int64)
    found[eligible] = sets
    others = np.setdiff1d(np.arange(vocabulary.size), eligible)
    nearest, _ = find_nearest_tokens(
        vocabulary.embeddings[others].astype(np.float64), embeddings=vocabulary.embeddings, eligible=eligible, count=1
    )
    found[others] = found[nearest[:, 0]]
    return found


def _round_ends(probabilities: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Running sums, less 1, of whole numbers proportional to the probabilities of each row that add up to 2^64."""
    # 2^24 below 2^64 leaves room for the rounding of a float64 sum; what is missing goes to the likeliest output.
    weights = (probabilities * (2.0**64 - 2.0**24)).astype(np.uint64)
    missing = np.uint64(0) - weights.sum(axis=1, dtype=np.uint64)  # 2^64 less the sum: whole numbers wrap around
    weights[np.arange(len(weights)), weights.argmax(axis=1)] += missing
    return np.cumsum(weights, axis=1, dtype=np.uint64) - np.uint64(1)


CUSTEXT: Final = MechanismKind(
    name="custext",
    build=CustextMechanism,
    promise=None,
    options={
        "set_size": MechanismOption(
            default=SET_SIZE, help="words in a set, at least 2; the last set has up to twice as many"
        )
    },
)
