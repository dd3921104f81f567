"""Forward and backward over candidates: the probability of each candidate, given everything seen in its text.

With candidates x at each position t, evidence log P(y_t | x) and an n-gram model, sums over all paths give

    P(x_t | y) ∝ Σ over paths through x of Π_s P(y_s | x_s) P(x_s | x_{s-1}, ...)

exactly, in time linear in the length (Baum et al. 1970; Rabiner 1989, Sec. III). Where the texts come from that n-gram
model and all sources are candidates, the largest of these names more tokens rightly than any other guess: it is the
Bayes rule for each token. The most likely path (Viterbi) is not: it maximizes the chance of the whole text.

Order 3 has pairs of candidates as states, K² of them and K³ steps; order 2 has K and K².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.language.interface import LanguageModel
from rapt.audit.language.layout import padded_places
from rapt.errors import AuditError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Numbers held at once for the steps of one batch of texts: 64 MB of float64.
_HELD: Final = 8_000_000


def posteriors(
    candidates: Ints,
    evidence: Floats,
    *,
    lengths: Ints,
    model: LanguageModel,
    on_progress: Callable[[float], None] | None = None,
) -> Floats:
    """Log P(candidate | all that was seen in its text), normalized over the candidates of each position, (n, K).

    Args:
        candidates: Rows of the table, (n, K), texts one after another.
        evidence: log P(y | candidate), in nats, (n, K); -inf rules a candidate out, and no row may be all -inf.
        lengths: Tokens of each text, sum n.
        model: Of order 1, 2 or 3.
        on_progress: Called with the share done.

    Raises:
        AuditError: The model is of a higher order.
    """
    if model.order > 3:
        raise AuditError(f"forward and backward sums take a model of order 1 to 3, got order={model.order}")
    found = np.empty(evidence.shape)
    width = candidates.shape[1]
    done = 0
    for group in _batches(lengths, steps=width ** max(model.order, 2)):
        places, inside = padded_places(lengths, group)
        # Positions behind the end of a text have one certain candidate, its boundary.
        ids = np.where(inside[..., None], candidates[places], model.boundary)
        seen = np.where(inside[..., None], evidence[places], np.where(np.arange(width) == 0, 0.0, -np.inf))
        sums = (
            _pairs(ids, seen, model, lengths[group]) if model.order == 3 else _chain(ids, seen, model, lengths[group])
        )
        found[places[inside]] = sums[inside]
        done += int(lengths[group].sum())
        if on_progress is not None:
            on_progress(done / len(candidates))
    return found - _log_sum(found, axis=1)[:, None]


def _chain(ids: Ints, seen: Floats, model: LanguageModel, lengths: Ints) -> Floats:
    """Order 1 or 2: log forward times backward, (B, T, K)."""
    batch, longest, width = ids.shape
    boundary = np.full((batch, 1), model.boundary)
    forward = np.empty(ids.shape)
    forward[:, 0] = _step(model, boundary, ids[:, 0])[:, 0] + seen[:, 0]
    steps = np.zeros((longest, batch, width, width))
    for t in range(1, longest):
        after = lengths <= t
        steps[t] = np.where(after[:, None, None], 0.0, _step(model, ids[:, t - 1], ids[:, t]))
        forward[:, t] = _log_sum(forward[:, t - 1, :, None] + steps[t], axis=1) + seen[:, t]
    backward = np.zeros((batch, width))
    total = np.empty(ids.shape)
    for t in range(longest - 1, -1, -1):
        last = lengths == t + 1
        backward = np.where(last[:, None], _step(model, ids[:, t], boundary)[:, :, 0], backward)
        total[:, t] = forward[:, t] + backward
        if t:
            backward = _log_sum(steps[t] + (seen[:, t] + backward)[:, None, :], axis=2)
    return total


def _step(model: LanguageModel, before: Ints, here: Ints) -> Floats:
    """Log P(here | before) for every pair of candidates, (B, K, K'); order 1 does not look at the first."""
    pair = (before[:, :, None], here[:, None, :])
    found = model.log_probability(*pair[2 - model.order :])
    return np.broadcast_to(found, (len(here), before.shape[1], here.shape[1]))


def _pairs(ids: Ints, seen: Floats, model: LanguageModel, lengths: Ints) -> Floats:
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


def _batches(lengths: Ints, *, steps: int) -> Iterator[Ints]:
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
