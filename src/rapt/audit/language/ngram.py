"""An n-gram model of public text, smoothed as Kneser and Ney do, interpolated with the frequencies of tokens.

Discounts: every n-gram that was seen gives up D of its count, and the sum goes to the next shorter context. Shorter
orders count in how many contexts a token was seen and not how often: a word that only ever follows one other is no
good guess after a third. The shortest order gives its own discount to the attacker's `TokenPrior`, so nothing that the
prior holds possible is ruled out.

Source: Kneser and Ney, "Improved backing-off for m-gram language modeling", ICASSP 1995, in the interpolated form of
Chen and Goodman, Computer Speech and Language 13, 1999; D = n1 / (n1 + 2 n2) for each order (Ney, Essen and Kneser
1994). Where a level has no n-gram seen exactly twice, D falls back to 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.priors import TokenPrior
from rapt.errors import AuditError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Three ids of a table of 2 million rows fit into 63 bits.
LONGEST: Final = 3
_LARGEST_TABLE: Final = 2_000_000
_PLAIN_DISCOUNT: Final = 0.5


@dataclass(frozen=True, eq=False)
class _Level:
    """The n-grams of one order.

    Attributes:
        codes: Those that were seen, as one number each, sorted.
        share: (count - D) / count of the context, of each.
        contexts: Codes of the contexts, sorted.
        left_over: What each context passes on to the next shorter order.
    """

    codes: Ints
    share: Floats
    contexts: Ints
    left_over: Floats


@dataclass(frozen=True, eq=False)
class NgramModel:
    """See the module. `order` tokens at most, from 1 to `LONGEST`.

    Attributes:
        boundary: As in `LanguageModel`.
        base: What the shortest order falls back to, (V + 2,): tokens, `boundary`, `anything`.
        levels: Of order 1, 2, ...
    """

    boundary: int
    base: Floats = field(repr=False)
    levels: tuple[_Level, ...] = field(repr=False)

    @property
    def order(self) -> int:
        """Tokens in its longest n-gram."""
        return len(self.levels)

    @property
    def anything(self) -> int:
        """As in `LanguageModel`."""
        return self.boundary + 1

    def log_probability(self, *tokens: Ints) -> Floats:
        """See `LanguageModel`."""
        with np.errstate(divide="ignore"):
            found: Floats = np.log(self.probability(*tokens))
        return found

    def probability(self, *tokens: Ints) -> Floats:
        """P(last | those before), in the shape that the tokens broadcast to.

        A shorter context is looked up in its own shape, which is smaller: of K³ triples only one look-up each.

        Raises:
            AuditError: The n-grams are longer than the model's.
        """
        n = len(tokens)
        if not 1 <= n <= self.order:
            raise AuditError(f"an n-gram must have 1 to {self.order} tokens, got n={n}; ask with a shorter context")
        value: Floats = self.base[tokens[-1]]
        for length in range(1, n + 1):
            level, grams = self.levels[length - 1], tokens[n - length :]
            left_over = _look_up(level.contexts, level.left_over, _encode(grams[:-1], self.anything), 1.0)
            value = _look_up(level.codes, level.share, _encode(grams, self.anything), 0.0) + value * left_over
        return np.where(tokens[-1] == self.anything, 1.0, value)


def fit_ngram(contents: Iterable[Ints], prior: TokenPrior, *, order: int) -> NgramModel:
    """The model of these texts.

    Args:
        contents: Token ids of each text, rows of the table.
        prior: Of single tokens, (V,).
        order: From 1 to `LONGEST`.

    Raises:
        AuditError: The order or the table is too large.
    """
    size = len(prior.probabilities)
    if not 1 <= order <= LONGEST or size >= _LARGEST_TABLE:
        raise AuditError(f"an n-gram model must be of order 1 to {LONGEST}, got order={order} for {size} rows")
    boundary = size
    texts = [np.concatenate([np.full(order - 1, boundary), text, [boundary]]).astype(np.int64) for text in contents]
    # The end of a text is as likely as one text among its tokens.
    ends, tokens = len(texts) + 1, sum(len(text) for text in texts) + 1
    share_of_ends = ends / (tokens + ends)
    base = np.concatenate([prior.probabilities * (1 - share_of_ends), [share_of_ends, 1.0]])
    grams = [
        np.concatenate([np.empty((0, length), dtype=np.int64), *(_windows(text, length, order) for text in texts)])
        for length in range(1, order + 1)
    ]
    levels = []
    for length in range(1, order + 1):
        if length == order:
            codes, counts = np.unique(_encode([*grams[length - 1].T], boundary + 1), return_counts=True)
        else:
            # Distinct longer n-grams that end in this one: in how many contexts it was seen.
            longer = np.unique(grams[length], axis=0)
            codes, counts = np.unique(_encode([*longer[:, 1:].T], boundary + 1), return_counts=True)
        levels.append(_level(codes, counts, largest=boundary + 1))
    return NgramModel(boundary=boundary, base=base, levels=tuple(levels))


def _level(codes: Ints, counts: Ints, *, largest: int) -> _Level:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once and twice else _PLAIN_DISCOUNT
    contexts, place = np.unique(codes // (largest + 1), return_inverse=True)
    total = np.bincount(place, counts, minlength=len(contexts))
    kinds = np.bincount(place, minlength=len(contexts))
    return _Level(
        codes=codes,
        share=(counts - discount) / total[place] if len(codes) else np.empty(0),
        contexts=contexts,
        left_over=discount * kinds / np.where(total > 0, total, 1),
    )


def _windows(text: Ints, length: int, order: int) -> Ints:
    """The n-grams of one padded text, each ending in a token of it or in its end, (n, length)."""
    count = len(text) - (order - 1)
    start = order - length
    return np.stack([text[start + i : start + i + count] for i in range(length)], axis=1)


def _encode(grams: Sequence[Ints], largest: int) -> Ints:
    """One number for each n-gram; the empty one is 0."""
    code = np.zeros((), dtype=np.int64)
    for column in grams:
        code = code * (largest + 1) + column
    return code


def _look_up(keys: Ints, values: Floats, wanted: Ints, otherwise: float) -> Floats:
    if len(keys) == 0:
        return np.full(wanted.shape, otherwise)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], otherwise)
