"""Language models as an attack uses them: the probability of a token after those before it.

An n-gram model of public text, smoothed as Kneser and Ney do, interpolated with the frequencies of tokens.

Discounts: every n-gram that was seen gives up D of its count, and the sum goes to the next shorter context. Shorter
orders count in how many contexts a token was seen and not how often: a word that only ever follows one other is no
good guess after a third. The shortest order gives its own discount to the attacker's `TokenPrior`, so nothing that the
prior holds possible is ruled out.

Source: Kneser and Ney, "Improved backing-off for m-gram language modeling", ICASSP 1995, in the interpolated form of
Chen and Goodman, Computer Speech and Language 13, 1999; D = n1 / (n1 + 2 n2) for each order (Ney, Essen and Kneser
1994). Where a level has no n-gram seen exactly twice, D falls back to 0.5.

Forward and backward over candidates: the probability of each candidate, given everything seen in its text.

With candidates x at each position t, evidence log P(y_t | x) and an n-gram model, sums over all paths give

    P(x_t | y) ∝ Σ over paths through x of Π_s P(y_s | x_s) P(x_s | x_{s-1}, ...)

exactly, in time linear in the length (Baum et al. 1970; Rabiner 1989, Sec. III). Where the texts come from that n-gram
model and all sources are candidates, the largest of these names more tokens rightly than any other guess: it is the
Bayes rule for each token. The most likely path (Viterbi) is not: it maximizes the chance of the whole text.

Order 3 has pairs of candidates as states, K² of them and K³ steps; order 2 has K and K².
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.language.layout import pad_places
from rapt.audit.view import TokenPrior
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
        codes: Contexts that were seen, as one number each, sorted.
        share: (count - D) / count of the context, of each.
        contexts: Codes of the contexts, sorted.
        left_over: Probability that each context passes on to the next shorter order.
    """

    codes: Ints
    share: Floats
    contexts: Ints
    left_over: Floats


@dataclass(frozen=True, eq=False)
class NgramModel:
    """A distribution over the next token, given the last few tokens of its text.

    Attributes:
        boundary: Id that stands before the first token of a text and after its last: the number of rows of the table.
        base: Distribution that the shortest order falls back to, (V + 2,): tokens, `boundary`, `anything`.
        levels: Levels of order 1, 2, ...
    """

    boundary: int
    base: Floats = field(repr=False)
    levels: tuple[_Level, ...] = field(repr=False)

    @property
    def order(self) -> int:
        """Tokens in its longest n-gram, 1 to `LONGEST`: 1 ignores context, 2 looks one token back."""
        return len(self.levels)

    @property
    def anything(self) -> int:
        """Id of a token of which nothing is known: it has probability 1, and the tokens after it forget it."""
        return self.boundary + 1

    def log_probability(self, *tokens: Ints) -> Floats:
        """Log P(last | those before), in nats, in the shape that the tokens broadcast to."""
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


@dataclass(frozen=True, eq=False)
class MixedModel:
    """Two models of one order, of which the second has so much weight.

    Attributes:
        common, own: The models.
        weight: Weight of the second, between 0 and 1.
    """

    common: NgramModel
    own: NgramModel
    weight: float

    @property
    def order(self) -> int:
        """Tokens in the longest n-gram."""
        return self.common.order

    @property
    def boundary(self) -> int:
        """Id of the end of a text."""
        return self.common.boundary

    def log_probability(self, *tokens: Ints) -> Floats:
        """Log P(last | those before), as that of an `NgramModel`."""
        mixed = (1 - self.weight) * self.common.probability(*tokens) + self.weight * self.own.probability(*tokens)
        with np.errstate(divide="ignore"):
            found: Floats = np.log(mixed)
        return found


AnyModel = NgramModel | MixedModel


def fit_ngram(contents: Iterable[Ints], prior: TokenPrior, *, order: int) -> NgramModel:
    """The model of these texts.

    Args:
        contents: Token ids of each text, rows of the table.
        prior: Prior of single tokens, (V,).
        order: Longest n-gram, from 1 to `LONGEST`.

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
        np.concatenate([np.empty((0, length), dtype=np.int64), *(_list_windows(text, length, order) for text in texts)])
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
        levels.append(_make_level(codes, counts, largest=boundary + 1))
    return NgramModel(boundary=boundary, base=base, levels=tuple(levels))


def _make_level(codes: Ints, counts: Ints, *, largest: int) -> _Level:
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


def _list_windows(text: Ints, length: int, order: int) -> Ints:
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


# Numbers held at once for the steps of one batch of texts: 64 MB of float64.
_HELD: Final = 8_000_000


def compute_posteriors(
    candidates: Ints,
    evidence: Floats,
    *,
    lengths: Ints,
    model: AnyModel,
    on_progress: Callable[[float], None] | None = None,
) -> Floats:
    """Log P(candidate | all that was seen in its text), normalized over the candidates of each position, (n, K).

    Args:
        candidates: Rows of the table, (n, K), texts one after another.
        evidence: log P(y | candidate), in nats, (n, K); -inf rules a candidate out, and no row may be all -inf.
        lengths: Tokens of each text, sum n.
        model: Model of order 1, 2 or 3.
        on_progress: Called with the share done.

    Raises:
        AuditError: The model is of a higher order.
    """
    if model.order > 3:
        raise AuditError(f"forward and backward sums take a model of order 1 to 3, got order={model.order}")
    found = np.empty(evidence.shape)
    width = candidates.shape[1]
    done = 0
    for group in _iterate_batches(lengths, steps=width ** max(model.order, 2)):
        places, inside = pad_places(lengths, group)
        # Positions behind the end of a text have one certain candidate, its boundary.
        ids = np.where(inside[..., None], candidates[places], model.boundary)
        seen = np.where(inside[..., None], evidence[places], np.where(np.arange(width) == 0, 0.0, -np.inf))
        sums = (
            _sum_pairs(ids, seen, model, lengths[group])
            if model.order == 3
            else _sum_chain(ids, seen, model, lengths[group])
        )
        found[places[inside]] = sums[inside]
        done += int(lengths[group].sum())
        if on_progress is not None:
            on_progress(done / len(candidates))
    return found - _log_sum(found, axis=1)[:, None]


def _sum_chain(ids: Ints, seen: Floats, model: AnyModel, lengths: Ints) -> Floats:
    """Order 1 or 2: log forward times backward, (B, T, K)."""
    batch, longest, width = ids.shape
    boundary = np.full((batch, 1), model.boundary)
    forward = np.empty(ids.shape)
    forward[:, 0] = _compute_step(model, boundary, ids[:, 0])[:, 0] + seen[:, 0]
    steps = np.zeros((longest, batch, width, width))
    for t in range(1, longest):
        after = lengths <= t
        steps[t] = np.where(after[:, None, None], 0.0, _compute_step(model, ids[:, t - 1], ids[:, t]))
        forward[:, t] = _log_sum(forward[:, t - 1, :, None] + steps[t], axis=1) + seen[:, t]
    backward = np.zeros((batch, width))
    total = np.empty(ids.shape)
    for t in range(longest - 1, -1, -1):
        last = lengths == t + 1
        backward = np.where(last[:, None], _compute_step(model, ids[:, t], boundary)[:, :, 0], backward)
        total[:, t] = forward[:, t] + backward
        if t:
            backward = _log_sum(steps[t] + (seen[:, t] + backward)[:, None, :], axis=2)
    return total


def _compute_step(model: AnyModel, before: Ints, here: Ints) -> Floats:
    """Log P(here | before) for every pair of candidates, (B, K, K'); order 1 does not look at the first."""
    pair = (before[:, :, None], here[:, None, :])
    found = model.log_probability(*pair[2 - model.order :])
    return np.broadcast_to(found, (len(here), before.shape[1], here.shape[1]))


def _sum_pairs(ids: Ints, seen: Floats, model: AnyModel, lengths: Ints) -> Floats:
    """Order 3, states are (candidate before, candidate here): log forward times backward, (B, T, K)."""
    batch, longest, width = ids.shape
    none = np.full((batch, width), model.boundary)
    # Before the text stands one certain boundary.
    only = np.where(np.arange(width) == 0, 0.0, -np.inf)
    forward = np.empty((longest, batch, width, width))
    first = model.log_probability(none, none, ids[:, 0])
    forward[0] = only[None, :, None] + (first + seen[:, 0])[:, None, :]
    steps = np.zeros((longest, batch, width, width, width), dtype=np.float32)
    for t in range(1, longest):
        older = ids[:, t - 2] if t > 1 else none
        step = model.log_probability(
            older[:, :, None, None], ids[:, t - 1][:, None, :, None], ids[:, t][:, None, None, :]
        )
        after = lengths <= t
        steps[t] = np.where(after[:, None, None, None], 0.0, step)
        forward[t] = _log_sum(forward[t - 1][..., None] + steps[t], axis=1) + seen[:, t][:, None, :]
    backward = np.zeros((batch, width, width))
    total = np.empty(ids.shape)
    for t in range(longest - 1, -1, -1):
        older = ids[:, t - 1] if t else none
        end = model.log_probability(older[:, :, None], ids[:, t][:, None, :], np.full((1, 1, 1), model.boundary))
        last = lengths == t + 1
        backward = np.where(last[:, None, None], end, backward)
        total[:, t] = _log_sum(forward[t] + backward, axis=1)
        if t:
            backward = _log_sum(steps[t] + (seen[:, t][:, None, :] + backward)[:, None], axis=3)
    return total


def _log_sum(values: Floats, *, axis: int) -> Floats:
    """Log Σ exp without overflow; -inf where every term is."""
    top = values.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total: Floats = np.log(np.exp(values - top).sum(axis=axis)) + np.squeeze(top, axis=axis)
    return total


def _iterate_batches(lengths: Ints, *, steps: int) -> Iterator[Ints]:
    """Places of texts of nearly one length; those without tokens are left out."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * int(lengths[order[end]]) * steps <= _HELD:
            end += 1
        yield order[start:end]
        start = end
