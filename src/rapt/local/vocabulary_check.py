"""Whether a vocabulary may be privatized with: the known one of its name, or one whose rows follow one law.

A hash shows that both sides use the same table, not that it is a good one. Whoever makes the table can move the rows
of the words that he wants to read so far out that noise does not reach their neighbours. So

- a vocabulary that is called like a public model must have that model's hash;
- of any other one, no more rows may be long, or lie alone, than a tail allows that falls as fast as an exponential
  does: with m the median of a quantity and q the distance from it to the lower quartile, the share of rows beyond m
  + t·q is at most `_AT_THREE`·exp(-`_RATE`·(t - 3)). The tables of MiniLM, bert-tiny and SmolLM2 keep to three
  quarters of that.

In MiniLM's table this finds 5,738 common words that were lengthened by three tenths, which at η = 75 stay 94 % of
the time then, and one row that was lengthened threefold. A hundred rows that were lengthened by a half are inside of
any law that honest tables keep to: whoever has no other copy of the table sees them only in the shares by kind of
word of a privacy statement, if they are of one kind.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import RaptError, VocabularyError
from rapt.local.distances import measure_isolation
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.public_models import PUBLIC_MODELS
from rapt.wire.vocabulary_bundle import VocabularyBundle, shorten_hash

# Greatest share of rows beyond the median by three times its distance to the lower quartile, and how fast it falls.
_AT_THREE: Final = 0.1
_RATE: Final = 0.9
# Where the tail begins. Fewer rows than this have no law to speak of.
_TAIL: Final = 2.0
# Rows that the law must still allow where the outermost one lies.
_ALONE: Final = 0.05
_LEAST_ROWS: Final = 256
_WAY_OUT: Final = "take it from a source of your own, or add `trusted=True`"


def check_vocabulary(vocabulary: Vocabulary, *, trusted: bool = False, asked: str | None = None) -> None:
    """Refuse a vocabulary that may have been tampered with.

    Args:
        vocabulary: The vocabulary. A known one is accepted by its hash, without a look at its rows.
        trusted: Whether the user vouches for it: then nothing is looked at.
        asked: Name that it was asked for by, where a service has given it.

    Raises:
        VocabularyError: It is called like a public model and is another one, or rows lie outside the law of the rest.
    """
    if trusted or vocabulary.hash in {known.vocabulary for known in PUBLIC_MODELS.values()}:
        return
    for name in (asked, vocabulary.model):
        if name in PUBLIC_MODELS:
            raise VocabularyError(
                f"a vocabulary called {name} must be the known one, "
                f"{shorten_hash(PUBLIC_MODELS[name].vocabulary)}, got {shorten_hash(vocabulary.hash)}; {_WAY_OUT}"
            )
    lengths = np.linalg.norm(vocabulary.embeddings[vocabulary.eligible].astype(np.float64), axis=1)
    for what, values in (("long", lengths), ("far from all others", measure_isolation(vocabulary))):
        if outside := count_outside(values):
            raise VocabularyError(
                f"the rows of a vocabulary must follow one law, got {outside:,} of {len(values):,} that are too {what} "
                f"for the rest, as if made so that noise does not hide these words; {_WAY_OUT}"
            )


def count_outside(values: NDArray[np.float64]) -> int:
    """How many of the largest values are too many, or too large, for the law of the rest; 0 for fewer than 256.

    Args:
        values: Lengths or distances of rows, (n,).
    """
    count = len(values)
    if count < _LEAST_ROWS:
        return 0
    quarter, median = (float(value) for value in np.quantile(values, [0.25, 0.5]))
    # Where the lower half is all but equal, a millionth of it is as good as nothing.
    unit = max(median - quarter, 1e-6 * abs(median), np.finfo(np.float64).tiny)
    beyond = (np.sort(values)[::-1] - median) / unit
    beyond = np.minimum(beyond[beyond >= _TAIL], 1e3)
    allowed = count * _AT_THREE * np.exp(-_RATE * (beyond - 3))
    # The i-th largest value has i - 1 above it; the largest may lie where one in twenty honest tables has a row.
    wrong = np.flatnonzero(np.arange(len(beyond)) + _ALONE > allowed)
    return int(wrong.max()) + 1 if len(wrong) else 0


def find_local_copy(model: str) -> Vocabulary | None:
    """The vocabulary of that name on this machine; None where there is none."""
    try:
        return load_vocabulary(model)
    except RaptError:
        return None


def count_different_rows(bundle: VocabularyBundle, copy: VocabularyBundle) -> int:
    """How many rows of the longer of two tables are not the same, number by number, in the other."""
    ours, theirs = bundle.embeddings, copy.embeddings
    longer, shared = max(len(ours), len(theirs)), min(len(ours), len(theirs))
    if ours.shape[1] != theirs.shape[1]:
        return longer
    same = (ours[:shared] == theirs[:shared]).all(axis=1)
    return longer - int(same.sum())
