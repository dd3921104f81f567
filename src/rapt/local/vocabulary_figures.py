"""Figures of a vocabulary that somebody asks for before choosing a model: what η means in it, and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from rapt.errors import UsageError
from rapt.local.calibration import guess_eta
from rapt.local.calibration_search import UnchangedCurve, find_crossing
from rapt.local.distances import measure_distances
from rapt.local.mechanisms import Mechanism, make_mechanism
from rapt.local.vocabulary import Vocabulary
from rapt.local.weighting import weigh_running_text
from rapt.wire.model_files import is_short

DRAWS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class VocabularyFigures:
    """What can be said of a vocabulary without anybody's text.

    Attributes:
        tokens: V, rows of the table.
        eligible: Tokens that may be an output.
        dimension: e, numbers of a row.
        table_bytes: Bytes of the table as a bundle holds it.
        half_eta: η of the Laplace mechanism at which half of running public text stays; None where no η reaches that.
        tokens_a_second: Tokens that this machine privatizes in a second there.
    """

    tokens: int
    eligible: int
    dimension: int
    table_bytes: int
    half_eta: float | None
    tokens_a_second: float | None


def measure_figures(
    vocabulary: Vocabulary, *, rng: np.random.Generator, on_progress: Callable[[int], None] | None = None
) -> VocabularyFigures:
    """Measure the figures, in seconds for a table of usual size.

    Args:
        vocabulary: Vocabulary to measure.
        rng: Source of the draws; nothing private depends on it.
        on_progress: Called with the number of η tried so far.
    """

    def make(eta: float) -> Mechanism:
        return make_mechanism("laplace", vocabulary=vocabulary, eta=eta)

    eta, speed = None, None
    weighting = weigh_running_text(vocabulary)
    curve = UnchangedCurve(make, weighting, draws=DRAWS, rng=rng, on_progress=on_progress)
    try:
        eta = find_crossing(curve, target=0.5, start=guess_eta(vocabulary, measure_distances(vocabulary)), factor=2.0)
    except UsageError:  # tokens that are one point of the table stay or go by chance at any η
        pass
    else:
        mechanism, tokens = make(eta), weighting.sample(DRAWS)
        begin = time.perf_counter()
        mechanism.privatize(tokens, rng=rng)
        speed = DRAWS / (time.perf_counter() - begin)
    return VocabularyFigures(
        tokens=vocabulary.size,
        eligible=len(vocabulary.eligible),
        dimension=vocabulary.dimension,
        table_bytes=(2 if is_short(vocabulary.embeddings) else 4) * vocabulary.embeddings.size,
        half_eta=eta,
        tokens_a_second=speed,
    )
