"""Token recovery from the channel, context, and the label that is sent in clear beside each record.

A label tells something of the words of its record, so words and pairs of words get the frequencies that they have in
the attacker's texts of that label. There are fewer of these than texts in all, so what they say is mixed with what all
say: P(x | before, label) = (1 - w) P(x | before) + w P_label(x | before). P_label falls back to the frequencies of
words given the label, shrunk to the common ones as if a number of common words had been seen beside the label's own.
Both the weight of each label and that number are those under which texts of the label that were held out are likeliest,
so a label that says nothing gets no weight.

Source: linear interpolation with held-out weights is Jelinek and Mercer, 1980; a Dirichlet prior for the frequencies is
MacKay and Peto, 1995.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.beliefs import believe_in_context, compute_beliefs, rank_candidates
from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.language.ngram import MixedModel, NgramModel, fit_ngram
from rapt.audit.view import AdversaryView, Guess, TokenPrior

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Common words that may be seen beside those of a label.
_SHRINKAGE: Final = (30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 100_000.0)
# Share of a label's texts that is held out, and steps of the fit of its weight.
_HELD_OUT: Final = 0.2
_STEPS: Final = 30
_LEAST_TEXTS: Final = 10


def explain_missing_labels(view: AdversaryView) -> str | None:
    """Reason why labels tell this attacker nothing, or None where they may."""
    if all(record.label is None for record in view.records):
        return "no record has a label"
    if view.public is None or view.public.labels is None:
        return "the attacker's text has no labels"
    return None


def read_with_labels(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates of largest probability given everything seen in its text, and the label.

    Args:
        desk: What the attacker has: public text among it, with labels.
        on_progress: Called with the share done.
    """
    lattice, view = desk.lattice(), desk.view
    beliefs = compute_beliefs(desk).copy()
    labels = np.array([-1 if record.label is None else record.label for record in view.records], dtype=np.int64)
    of_text = np.repeat(labels, len(view.parts))
    of_token = np.repeat(of_text, view.lengths)
    held = np.array([-1] * len(desk.public.contents) if desk.public.labels is None else desk.public.labels)
    known = [label for label in np.unique(labels).tolist() if label >= 0 and (held == label).sum() >= _LEAST_TEXTS]
    # Held out once for all labels, so that the common model has not seen them either.
    judged = np.random.default_rng([desk.seed, 43]).random(len(held)) < _HELD_OUT
    contents = desk.public.contents
    everybody = fit_ngram([contents[place] for place in np.flatnonzero(~judged)], desk.prior(), order=3)
    weights = []
    for done, label in enumerate(known):
        learned, out = (
            [contents[place] for place in np.flatnonzero((held == label) & part)] for part in (~judged, judged)
        )
        pairs, triples = _fit(desk, learned, out, everybody)
        weights.append(triples.weight)
        there = np.flatnonzero(of_token == label)
        if len(there) and triples.weight > 0:
            part = replace(
                lattice,
                candidates=lattice.candidates[there],
                evidence=lattice.evidence[there],
                prior=lattice.prior[there],
            )
            beliefs[there] = believe_in_context(part, lengths=view.lengths[of_text == label], models=(pairs, triples))
        if on_progress is not None:
            on_progress((done + 1) / len(known))
    said = ", ".join(f"{weight:.2f}" for weight in weights) or "none: no label has enough texts"
    remark = f"trigram models of {desk.public.source}, given the label, with weights {said}"
    return Guess(token_ids=rank_candidates(lattice, beliefs), remarks=(remark,))


def _fit(
    desk: Desk, learned: Sequence[Ints], judged: Sequence[Ints], everybody: NgramModel
) -> tuple[MixedModel, MixedModel]:
    """The models of order 2 and 3 of a label with these texts; the weight is fitted to those that are judged."""
    common = desk.prior()

    def shrunk(some: Sequence[Ints], strength: float) -> TokenPrior:
        counts = np.bincount(np.concatenate(some), minlength=len(common.probabilities))
        values = counts + strength * common.probabilities
        return TokenPrior(probabilities=values / values.sum(), source=common.source)

    strength, weight = _SHRINKAGE[-1], 0.0
    if learned and judged:
        flat = np.concatenate(judged)
        with np.errstate(divide="ignore"):
            strength = max(
                _SHRINKAGE, key=lambda strength: float(np.log(shrunk(learned, strength).probabilities[flat]).sum())
            )
        own = fit_ngram(learned, shrunk(learned, strength), order=3)
        weight = _weigh(_probabilities(everybody, judged), _probabilities(own, judged))
    texts = [*learned, *judged]
    prior = shrunk(texts, strength)
    pairs, triples = (MixedModel(desk.ngrams(order=n), fit_ngram(texts, prior, order=n), weight) for n in (2, 3))
    return pairs, triples


def _probabilities(model: NgramModel, texts: Sequence[Ints]) -> Floats:
    """P of each token of these texts, and of each end, given the two before."""
    edge = [model.boundary]
    padded = [np.concatenate([edge, edge, text, edge]) for text in texts]
    older, old, new = (np.concatenate([text[first : len(text) - 2 + first] for text in padded]) for first in range(3))
    return model.probability(older, old, new)


def _weigh(common: Floats, own: Floats) -> float:
    """The weight of the second under which what was held out is likeliest, by expectation-maximization."""
    weight = 0.5
    for _ in range(_STEPS):
        mixed = (1 - weight) * common + weight * own
        weight = float(np.mean(weight * own / np.where(mixed > 0, mixed, 1.0)))
    return weight
