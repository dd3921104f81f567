"""Labels under local differential privacy: K-ary randomized response, drawn with exact probabilities.

Off by default, as in the paper (docs/decisions/0003): labels then leave in clear. With it each label is kept with
probability e^ε / (e^ε + K - 1) and is otherwise one of the others. The matrix is known to whoever reads the manifest,
so tuning can correct its loss for it (`rapt.service.tuning.tasks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from functools import cached_property
from typing import Final

import numpy as np

from rapt.errors import UsageError
from rapt.wire.manifest import LabelPrivacy

_WORD: Final = 2**64
# 60 digits leave 40 after the point of a number below 2**64; the margin is above their rounding and below all else.
_CONTEXT: Final = Context(prec=60)
_MARGIN: Final = Decimal("1e-30")


@dataclass(frozen=True, kw_only=True)
class RandomizedResponse:
    """Replaces a label by itself or by another of the K labels, each of the others as likely.

    Guarantee (ε-local differential privacy of one label, for one release): for all labels x, x' and y,

        log P(y|x) - log P(y|x') <= ε.

    Proof.
        1. A uniform 64-bit number keeps the label when it is below T, else one of the K - 1 others is drawn uniformly.
           So P(x|x) = T / N and P(y|x) = (N - T) / (N (K - 1)) for y ≠ x, with N = 2^64. Both are exact.
        2. Two rows of this matrix differ in two places only, so the largest ratio is r = T (K - 1) / (N - T), or 1/r.
        3. T is the floor of N e^ε / (e^ε + K - 1), computed with 60 digits and a margin downwards. T <= N e^ε /
           (e^ε + K - 1) is the same as T (K - 1) <= e^ε (N - T), so r <= e^ε.
        4. ε >= 10^-6 makes N e^ε / (e^ε + K - 1) exceed N / K by more than 1 for every K below 2^40, so T >= N / K,
           which is r >= 1, and 1/r <= 1 <= e^ε. ∎

    Not covered: which labels exist, because their names are sent in clear, and so must be listed; what the text says
    about its own label, which is protected as text is, and adds to this; a second release of the same label, which
    costs ε again.

    Source: Warner, "Randomized Response", JASA 1965; for K labels Kairouz, Bonawitz, Ramage, "Discrete Distribution
    Estimation under Local Privacy", ICML 2016. Status: proved.

    Attributes:
        classes: Number K of classes.
        epsilon: ε, nats.
    """

    classes: int
    epsilon: float

    def __post_init__(self) -> None:
        """Refuse fewer than two labels (`UsageError`) or an epsilon outside its domain (`MechanismError`)."""
        LabelPrivacy(epsilon=self.epsilon)
        if not 2 <= self.classes < 2**40:
            raise UsageError(
                f"labels to privatize must be at least 2 different ones, got classes={self.classes}; "
                "name all of them, or leave them out"
            )

    @property
    def keep_probability(self) -> float:
        """P(x|x), for reports: the exact one is `threshold` / 2^64."""
        return self.threshold / _WORD

    @cached_property
    def threshold(self) -> int:
        """T: a label is kept when a uniform number below 2^64 is below it."""
        others = _CONTEXT.multiply(Decimal(self.classes - 1), _CONTEXT.exp(-Decimal(self.epsilon)))
        exact = _CONTEXT.divide(Decimal(_WORD), _CONTEXT.add(Decimal(1), others))
        return int(_CONTEXT.subtract(exact, _MARGIN).to_integral_value(ROUND_FLOOR))

    def randomize(self, labels: Sequence[int], *, rng: np.random.Generator) -> list[int]:
        """One label for each label, every one drawn independently, with the same number of draws whatever they are.

        Args:
            labels: Indices of the true labels, from 0 to K - 1; not kept.
            rng: Private: whoever can repeat its draws knows the labels.

        Raises:
            UsageError: A label is no whole number, or not the index of one, which is named by its position.
        """
        given = np.asarray(labels)
        if given.size and given.dtype.kind not in "iu":
            raise UsageError("every label must be a whole number, the index of a class; look it up in their list")
        true = given.astype(np.int64).reshape(-1)
        outside = (true < 0) | (true >= self.classes)
        if outside.any():
            raise UsageError(
                f"every label must be an index from 0 to {self.classes - 1}, got another at position "
                f"{int(outside.argmax())} of {len(true)}"
            )
        drawn = rng.integers(_WORD - 1, size=len(true), dtype=np.uint64, endpoint=True)
        steps = 1 + rng.integers(self.classes - 1, size=len(true))
        kept = drawn < np.uint64(self.threshold)
        released: list[int] = np.where(kept, true, (true + steps) % self.classes).tolist()
        return released
