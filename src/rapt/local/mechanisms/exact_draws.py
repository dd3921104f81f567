"""Draws from an exponential mechanism, exactly, at a million tokens a second.

A row of P(y|x) has C entries, 240 kB in float64 at C = 30,000: too much to keep for every token type, and too slow to
compute for every token. Kept instead, for each type that occurs: one byte an output, an upper bound of its weight. A
draw is proposed from the bounds and accepted with the ratio of weight to bound (von Neumann's rejection). Weights are
relative to the heaviest of the row, so that about one proposal in fifteen is refused, whatever the token.

*Law.* A proposal is y with probability proportional to the whole number B(code), B >= the weight on a scale of TOP.
It is accepted when a number uniform on 0 .. 2^64 - 1 is below t(x, y) = floor(2^64 * TOP * w(x, y) / B(code)), with w
computed in float64 from the two rows. So exactly P(y|x) = B t / Σ B t, where B t = 2^64 TOP w up to a relative error:

- w itself, from float64: below 1e-12;
- the floor: scores reach down to -30 - 20 ln 2 at most (30 without a prior) and the lowest bound is 15, so t >= 2^21
  (2^41), and the error is below 2^-21.

Hence log P(y|x) as drawn is within 2^-20 of `Scores.log_probabilities`, no output is ever impossible, and log P(y|x) -
log P(y|x') <= 2 beta d(x, x') + 2^-19 holds strictly, over all y, with no δ; without a prior, + 2^-39. A code leaves a
margin for the error of the distances that it was computed from, so that a bound is never below its weight.

Most proposals are accepted without computing w: a code also says that the weight is at least B(code + 1).
"""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapt.local.mechanisms.interface import check_token_ids
from rapt.local.mechanisms.metric import Scores

# Twelve codes an octave: a bound is at most 6 % above its weight, and 256 codes span 14.7 nats.
_CODES_PER_NAT: Final = 12 / math.log(2)
_TOP: Final = 2.0**25
# Nats between a computed score and the code made from it: more than the error of both. Scores are off by at most
# beta * PRODUCT_ERROR * lengths, below 1e-7 where beta * distance <= LARGEST_DROP.
_MARGIN: Final = 1e-4
# Outputs whose bounds are added up in advance. Shorter blocks take more memory, longer ones more time.
_BLOCK: Final = 64
# The sums of blocks are rounded up to multiples of 2^10, or more, so that those of a row fit into 32 bits.
_LEAST_SHIFT: Final = 10
_MOST_STEPS: Final = 2**15 - 1
_TYPES_AT_ONCE: Final = 128
_TOKENS_AT_ONCE: Final = 16384

CACHE_BYTES: Final = 2**29


def _compute_bounds() -> NDArray[np.uint32]:
    """B of each code, (256,): whole numbers, above every weight of the code."""
    return np.ceil(_TOP * np.exp(-np.arange(256) / _CODES_PER_NAT)).astype(np.uint32) + np.uint32(1)


def _compute_certain() -> NDArray[np.uint64]:
    """Numbers below this are accepted whatever the exact weight is, for each code, (256,)."""
    least = _TOP * np.exp(-(np.arange(256) + 1) / _CODES_PER_NAT - 2 * _MARGIN) / _compute_bounds()
    least[255] = 0  # no lower end
    return (least * 2.0**64).astype(np.uint64)


class ExactDraws:
    """Draws outputs for tokens; keeps bounds of the types seen last, within a budget of bytes.

    What it keeps follows from the public table, but *which* types it keeps tells which tokens were drawn for: it stays
    in this process, and a pickled copy starts empty. No draw depends on what is kept.
    """

    def __init__(self, scores: Scores, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Nothing is computed yet.

        Args:
            scores: Scores of the mechanism.
            cache_bytes: Most memory for bounds; at least 64 types are kept. 512 MB hold 17,000 types of a vocabulary of
                30,000, as many as 38,000 tweets have.
        """
        self._scores = scores
        self._budget = cache_bytes
        self._lock = threading.Lock()
        outputs, inputs = len(scores.eligible), len(scores.metric.embeddings)
        self._blocks = -(-outputs // _BLOCK)
        capacity = max(cache_bytes // (self._blocks * (_BLOCK + 4)), min(_TYPES_AT_ONCE, inputs) // 2, 1)
        self._capacity = min(capacity, inputs)
        self._shift = max(_LEAST_SHIFT, outputs.bit_length() + 26 - 32)
        self._bound = _compute_bounds()
        self._certain = _compute_certain()
        # Bounds of two outputs at once: half as many steps within a block. The table is symmetric, so the order of the
        # bytes of a number does not matter.
        self._bound_of_two = (self._bound[None, :] + self._bound[:, None]).ravel()
        self._clock = 0
        self._codes: NDArray[np.uint8] | None = None  # (capacity, blocks * 64), made when first needed
        self._ends = np.empty((0, 0), dtype=np.uint32)  # (capacity, blocks): running sums of block sums
        # Nats by which a type's scores are raised, so that the heaviest output has code 0: there may be none near.
        self._raise = np.zeros(self._capacity)
        self._slot = np.full(inputs, -1, dtype=np.int64)  # of each type, or -1
        self._owner = np.full(self._capacity, -1, dtype=np.int64)
        self._used = np.zeros(self._capacity, dtype=np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        """An empty one with the same scores and budget."""
        return _restore, (self._scores, self._budget)

    def draw(self, token_ids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """One eligible id for each token, (n,), independently. Raises as `Scores.log_probabilities`."""
        check_token_ids(token_ids, size=len(self._slot))
        found = np.empty(len(token_ids), dtype=np.int64)
        with self._lock:
            for start in range(0, len(token_ids), _TOKENS_AT_ONCE):
                part = slice(start, start + _TOKENS_AT_ONCE)
                found[part] = self._draw_batch(token_ids[part], rng)
        return self._scores.eligible[found]

    def _draw_batch(self, token_ids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Places among the eligible ids, (n,). In the order of types, so that a type's bounds are read once."""
        order = np.argsort(token_ids.astype(np.uint16) if len(self._slot) <= 2**16 else token_ids, kind="stable")
        sorted_ids = token_ids[order]
        types = sorted_ids[np.flatnonzero(np.diff(sorted_ids, prepend=-1))]
        found = np.empty(len(token_ids), dtype=np.int64)
        for start in range(0, len(types), self._capacity):
            some = types[start : start + self._capacity]
            self._keep(some)
            first, end = np.searchsorted(sorted_ids, [some[0], some[-1] + 1])
            left = np.arange(first, end)
            while len(left):
                places, accepted = self._propose(sorted_ids[left], rng)
                found[order[left[accepted]]] = places[accepted]
                left = left[~accepted]
        return found

    def _propose(
        self, token_ids: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A place for each token, and whether it is accepted."""
        assert self._codes is not None
        slots, each = self._slot[token_ids], np.arange(len(token_ids))
        total = self._ends[slots, -1].astype(np.uint64) << np.uint64(self._shift)
        point = rng.integers(0, total, dtype=np.uint64)
        chance = rng.integers(0, 2**64, size=len(token_ids), dtype=np.uint64)
        block, before = self._find_block(slots, (point >> np.uint64(self._shift)).astype(np.uint32))
        point = (point - (before.astype(np.uint64) << np.uint64(self._shift))).astype(np.uint32)

        codes = self._codes.reshape(-1, _BLOCK)[slots * self._blocks + block]
        ends = self._bound_of_two[codes.view(np.uint16)]
        np.cumsum(ends, axis=1, out=ends)
        two = (ends <= point[:, None]).sum(axis=1, dtype=np.uint8).astype(np.int64)
        inside = two < _BLOCK // 2  # else in what the sum of the block was rounded up by
        two[~inside] = 0
        point -= np.where(two > 0, ends[each, two - 1], np.uint32(0))
        place = 2 * two
        place += point >= self._bound[codes[each, place]]
        code = codes[each, place]
        place += block * _BLOCK
        inside &= place < len(self._scores.eligible)  # else in what fills up the last block

        accepted = chance < self._certain[code]
        open_ = np.flatnonzero(inside & ~accepted)
        raised = self._scores.pairs(token_ids[open_], place[open_]) + self._raise[slots[open_]]
        share = np.exp(raised) * (_TOP / self._bound[code[open_]])
        accepted[open_] = chance[open_] < (share * 2.0**64).astype(np.uint64)  # share < 1, a bound is above its weight
        return place, accepted & inside

    def _find_block(
        self, slots: NDArray[np.int64], point: NDArray[np.uint32]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """The block that each point falls into and the sum of those before it, by bisection in all rows at once."""
        ends, row = self._ends.ravel(), slots * self._blocks
        block = np.zeros(len(slots), dtype=np.int64)
        step = 1 << (self._blocks - 1).bit_length() >> 1
        while step:
            # Beyond the row's end the comparison is with another row's sum and does not count.
            passed = ends.take(row + block + step - 1, mode="clip") <= point
            passed &= block + step < self._blocks
            block += step * passed
            step >>= 1
        before = np.where(block > 0, ends[row + np.maximum(block, 1) - 1], np.uint32(0))
        return block, before

    def _keep(self, types: NDArray[np.int64]) -> None:
        """Have the bounds of these types, at most `_capacity` of them, in place of those used longest ago."""
        if self._codes is None:
            self._codes = np.empty((self._capacity, self._blocks * _BLOCK), dtype=np.uint8)  # taken up as it is filled
            self._ends = np.empty((self._capacity, self._blocks), dtype=np.uint32)
        self._clock += 1
        known = self._slot[types] >= 0
        self._used[self._slot[types[known]]] = self._clock
        missing = types[~known]
        if len(missing) == 0:
            return
        oldest = np.argpartition(self._used, len(missing) - 1)[: len(missing)]
        self._slot[self._owner[oldest][self._owner[oldest] >= 0]] = -1
        for start in range(0, len(missing), _TYPES_AT_ONCE):
            some, slots = missing[start : start + _TYPES_AT_ONCE], oldest[start : start + _TYPES_AT_ONCE]
            self._codes[slots], self._raise[slots] = self._encode_outputs(some)
            sums = self._bound_of_two[self._codes[slots].view(np.uint16)]
            blocks = sums.reshape(len(some), self._blocks, _BLOCK // 2).sum(axis=2, dtype=np.uint64)
            rounded = (blocks + np.uint64(2**self._shift - 1)) >> np.uint64(self._shift)
            self._ends[slots] = np.cumsum(rounded, axis=1)
            self._slot[some], self._owner[slots], self._used[slots] = slots, some, self._clock

    def _encode_outputs(self, types: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Codes of all outputs, the last block filled up with 255; and how far the scores were raised, in nats."""
        steps = np.full((len(types), self._blocks * _BLOCK), _MOST_STEPS, dtype=np.int16)
        for columns, scores in self._scores.tiles(types):
            scores += _MARGIN
            scores *= -_CODES_PER_NAT
            np.clip(scores, 0, _MOST_STEPS, out=scores)
            steps[:, columns] = scores  # cut off: the bound of a larger weight, never of a smaller
        heaviest = steps.min(axis=1)
        steps -= heaviest[:, None]
        return np.minimum(steps, 255).astype(np.uint8), heaviest / _CODES_PER_NAT


def _restore(scores: Scores, cache_bytes: int) -> ExactDraws:
    return ExactDraws(scores, cache_bytes=cache_bytes)
