"""What an attacker believes of each candidate after a look at the words around it, by n-grams of his own text."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.desk import Desk, Lattice, Progress
from rapt.audit.guess import CANDIDATES
from rapt.audit.language.interface import LanguageModel
from rapt.audit.language.lattice import posteriors

# Two words are looked back to among the candidates that are left after a look at one: K³ steps a token, of which so
# many are taken in all, and never with fewer candidates than these.
_STEPS: Final = 20_000_000
_LEAST_WIDTH: Final = 6


def desk_beliefs(desk: Desk, *, on_progress: Progress | None = None) -> NDArray[np.float64]:
    """Log P(candidate | all that was seen) of the text that is attacked, worked out once for all attacks."""
    return desk.once(
        "beliefs",
        lambda: contextual_beliefs(
            desk.lattice(),
            lengths=desk.view.lengths,
            models=(desk.ngrams(order=2), desk.ngrams(order=3)),
            on_progress=on_progress,
        ),
    )


def contextual_beliefs(
    lattice: Lattice,
    *,
    lengths: NDArray[np.int64],
    models: tuple[LanguageModel, LanguageModel],
    on_progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Log P(candidate | all that was seen), (n, K + 1): first with one word before, then with two where it matters.

    Args:
        lattice: Of the tokens.
        lengths: Tokens of each record.
        models: Of order 2 and of order 3.
        on_progress: Called with the share done.
    """
    pairs, triples = models
    first = posteriors(
        lattice.candidates, lattice.evidence, lengths=lengths, model=pairs, on_progress=scaled(on_progress, 0.0, 0.3)
    )
    width = max(_LEAST_WIDTH, int((_STEPS / len(lattice.candidates)) ** (1 / 3)))
    width = min(width, lattice.candidates.shape[1] - 1)
    order = np.argsort(-first[:, :-1], axis=1, kind="stable")
    kept, left = order[:, :width], order[:, width:]
    with np.errstate(divide="ignore"):
        rest = np.exp(np.take_along_axis(lattice.evidence + lattice.prior, left, axis=1)).sum(axis=1)
        rest = np.log(rest + np.exp(lattice.evidence[:, -1]))
    second = posteriors(
        np.column_stack([np.take_along_axis(lattice.candidates, kept, axis=1), lattice.candidates[:, -1]]),
        np.column_stack([np.take_along_axis(lattice.evidence, kept, axis=1), rest]),
        lengths=lengths,
        model=triples,
        on_progress=scaled(on_progress, 0.3, 1.0),
    )
    # The candidates that were left keep the order of the first pass, and share what "something else" got.
    beliefs = np.empty_like(first)
    share = normalized(np.column_stack([np.take_along_axis(first, left, axis=1), first[:, -1]]))
    np.put_along_axis(beliefs, np.column_stack([left, np.full(len(left), -1)]), second[:, -1:] + share, axis=1)
    np.put_along_axis(beliefs, kept, second[:, :-1], axis=1)
    return beliefs


def ranked(lattice: Lattice, beliefs: NDArray[np.float64]) -> NDArray[np.int64]:
    """The candidates by falling belief, without "something else", (n, up to `CANDIDATES`)."""
    order = np.argsort(-beliefs[:, :-1], axis=1, kind="stable")[:, :CANDIDATES]
    return np.take_along_axis(lattice.candidates, order, axis=1)


def normalized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log shares of one for each row; a row of -inf stays as it is."""
    top = values.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(values - top).sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = values - top - np.log(np.where(total > 0, total, 1.0))
    return found


def scaled(on_progress: Progress | None, low: float, high: float) -> Progress | None:
    """Progress of a part of the work, from `low` to `high` of the whole."""
    return None if on_progress is None else (lambda share: on_progress(low + (high - low) * share))
