"""The output prior q of the exponential mechanism: public counts of tokens, from a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError, WireError
from rapt.local.vocabulary import Vocabulary
from rapt.whole_files import write_whole
from rapt.wire.strict_json import parse_object

UNIFORM: Final = "uniform"
# log of the least q over the largest one. A smaller ratio would leave too few bits to draw its output exactly; what
# lies below is raised to it, which makes another public q, not another guarantee.
LEAST_LOG_RATIO: Final = -20 * math.log(2)
_LARGEST_COUNT: Final = 2**53


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputPrior:
    """q(y) proportional to 1 + count(y), over the eligible tokens.

    The count must come from public text. A prior counted from private text tells which words are in it.

    Attributes:
        counts: Of each eligible token, (C,), whole numbers >= 0.
    """

    counts: NDArray[np.int64] = field(repr=False)

    @property
    def hash(self) -> str:
        """`sha256:...` of the counts, for the setting."""
        return f"sha256:{hashlib.sha256(self.counts.astype('<i8').tobytes()).hexdigest()}"

    @cached_property
    def log_ratios(self) -> NDArray[np.float64]:
        """The log of q(y) over its largest value, (C,), between `LEAST_LOG_RATIO` and 0."""
        weights = np.log1p(self.counts.astype(np.float64))
        ratios: NDArray[np.float64] = np.maximum(weights - weights.max(), LEAST_LOG_RATIO)
        return ratios


def read_output_prior(path: Path, vocabulary: Vocabulary) -> OutputPrior:
    """The prior in a JSON object that names tokens, as the vocabulary writes them, with their counts in public text.

    Raises:
        MechanismError: The file cannot be read, is of another kind, or names no eligible token.
    """
    what = "a file of counts"
    try:
        counts = parse_object(path.read_bytes(), what=what)
    except OSError as error:
        raise MechanismError(f"{what} must be readable, got {error.strerror or type(error).__name__}") from None
    except WireError as error:
        raise MechanismError(str(error)) from None
    if not all(type(count) is int and 0 <= count < _LARGEST_COUNT for count in counts.values()):
        raise MechanismError(f'{what} must hold whole numbers >= 0 only, such as {{"the": 120, "##ing": 7}}')
    names = vocabulary.tokens(vocabulary.eligible.tolist())
    found = np.array([counts.get(name, 0) for name in names], dtype=np.int64)
    if not found.any():
        raise MechanismError(
            f"{what} must name tokens of model={vocabulary.model!r} with counts above 0, got none of "
            f"{len(counts)}; write it with count_tokens()"
        )
    return OutputPrior(counts=found)


def count_tokens(texts: Sequence[str], vocabulary: Vocabulary) -> OutputPrior:
    """The prior of public texts."""
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for ids in vocabulary.encode(texts):
        np.add.at(counts, ids, 1)
    return OutputPrior(counts=counts[vocabulary.eligible])


def write_output_prior(prior: OutputPrior, path: Path, *, vocabulary: Vocabulary) -> None:
    """Write a file that `read_output_prior` reads; tokens that were not counted are left out."""
    names = vocabulary.tokens(vocabulary.eligible.tolist())
    held = {name: int(count) for name, count in zip(names, prior.counts, strict=True) if count}
    write_whole(path, json.dumps(held, ensure_ascii=True) + "\n")
