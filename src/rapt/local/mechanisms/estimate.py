"""The channel of a mechanism that has no closed form: counts of outputs, and how far they are from probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError
from rapt.local.mechanisms.interface import Mechanism
from rapt.local.vocabulary import Vocabulary

_DRAWS_AT_ONCE: Final = 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelCounts:
    """How often each eligible token came out for one input.

    The count of one output, or of a set chosen beforehand, is binomial: what an interval by Clopper and Pearson needs.

    Attributes:
        counts: Of each eligible token, (C,), int64.
        samples: Number of draws.
    """

    counts: NDArray[np.int64]
    samples: int

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Shares of the draws, (C,): unbiased for P(y|x), and 0 for what did not happen to come out."""
        shares: NDArray[np.float64] = self.counts / self.samples
        return shares

    @property
    def standard_errors(self) -> NDArray[np.float64]:
        """Of `probabilities`, (C,); where nothing or everything was counted, that of one count more or less."""
        inner = np.clip(self.counts, 1, max(self.samples - 1, 1)) / self.samples
        errors: NDArray[np.float64] = np.sqrt(inner * np.maximum(1 - inner, 1 / self.samples) / self.samples)
        return errors

    @property
    def unseen(self) -> float:
        """Probability of outputs never drawn is below this with 95 % confidence, whichever single output is meant."""
        return 1 - math.pow(0.05, 1 / self.samples)


def estimate_channel(
    mechanism: Mechanism, vocabulary: Vocabulary, token_id: int, *, samples: int, rng: np.random.Generator
) -> ChannelCounts:
    """Outputs of independent draws for one token.

    Args:
        mechanism: M.
        vocabulary: Its vocabulary.
        token_id: x, any row of the table.
        samples: Number of draws, at least 1.
        rng: Of the draws; nothing private depends on it.

    Raises:
        MechanismError: Fewer than 1 draw.
        VocabularyError: The token has no row in the table.
    """
    if samples < 1:
        raise MechanismError(f"a channel must be estimated from at least 1 draw, got samples={samples}")
    counts = np.zeros(len(vocabulary.eligible), dtype=np.int64)
    for start in range(0, samples, _DRAWS_AT_ONCE):
        tokens = np.full(min(_DRAWS_AT_ONCE, samples - start), token_id, dtype=np.int64)
        places = np.searchsorted(vocabulary.eligible, mechanism.privatize(tokens, rng=rng))
        counts += np.bincount(places, minlength=len(counts))
    return ChannelCounts(counts=counts, samples=samples)
