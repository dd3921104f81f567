"""Attacks that need no network.

Embedding inversion, the attack of the RAPT paper: the tokens whose embeddings are nearest to what was received.

On released vectors this is a real attack (Song and Raghunathan, "Information Leakage in Embedding Models", CCS 2020).
On released tokens the nearest embedding to E(y) is y's own, so its first guess is "nothing was changed" and its success
is the share of unchanged tokens. It is the weakest attack here, and the one that published figures use most.

The context-free Bayes attack: argmax_x prior(x) * P(y|x), the best that a token on its own allows.

Source: Tong et al., NAACL 2025, the attack without context. The channel is the mechanism's own, which is public; the
prior is whatever the attacker knows about the frequency of words.

Token recovery from the channel and from context: P(x_t | all of y), by sums over an n-gram model of public text.

Exact where the texts come from that model and every source is a candidate (`language.lattice`). Elsewhere a token that
is not among the candidates is "something else", with the probability that the channel gives to all such tokens: without
that, wrong candidates are believed too much, and their neighbours after them.

Source: the text analogue of Kazemi et al., "BeamClean", 2025, whose noise has to be guessed; here it is published. Sums
and not a beam, because they name more tokens rightly.

The same with the label that is sent in clear beside each record. A label tells something of the words of its record, so
words and pairs of words get the frequencies that they have in the attacker's texts of that label. There are fewer of
these than texts in all, so what they say is mixed with what all say: P(x | before, label) = (1 - w) P(x | before) + w
P_label(x | before). P_label falls back to the frequencies of words given the label, shrunk to the common ones as if a
number of common words had been seen beside the label's own. Both the weight of each label and that number are those
under which texts of the label that were held out are likeliest, so a label that says nothing gets no weight.

Source: linear interpolation with held-out weights is Jelinek and Mercer, 1980; a Dirichlet prior for the frequencies is
MacKay and Peto, 1995.

Attribute inference: a classifier of whole texts, from the tokens that were seen.

Multinomial logistic regression on weighted token counts: tf-idf with log counts, rows of length one, an L2 penalty. Fit
by L-BFGS. On short texts it is as good as small networks, needs no tuning, and its training is convex: the figure does
not depend on luck. An attacker with a large language model may do better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from rapt.audit.attacks.beliefs import believe_in_context, compute_beliefs, rank_candidates, scale_progress
from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.language.ngram import MixedModel, NgramModel, fit_ngram
from rapt.audit.view import CANDIDATES, AdversaryView, Guess, TokenPrior

_BLOCK: Final = 256


def embedding_inversion(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """The nearest rows of the table to each observed token's own, itself first; ties go to the lowest id.

    Args:
        desk: Desk of the attacker; nothing is drawn.
        on_progress: Called with the share done.
    """
    view = desk.view
    table = view.bundle.embeddings
    outputs, place = np.unique(view.observed, return_inverse=True)
    half_square = np.einsum("ij,ij->i", table, table) / 2
    count = min(CANDIDATES, len(table))
    nearest = np.empty((len(outputs), count), dtype=np.int64)
    for start in range(0, len(outputs), _BLOCK):
        block = outputs[start : start + _BLOCK]
        score = table[block] @ table.T - half_square
        score[np.arange(len(block)), block] = np.inf
        some = np.sort(np.argpartition(-score, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(score, some, axis=1), axis=1, kind="stable")
        nearest[start : start + _BLOCK] = np.take_along_axis(some, order, axis=1)
        if on_progress is not None:
            on_progress((start + len(block)) / len(outputs))
    return Guess(token_ids=nearest[place])


def guess_by_bayes(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the sources of largest posterior probability.

    Without a public prior the attacker fits one to the file itself (`prior_fit`), which is much weaker.

    Args:
        desk: Desk of the attacker.
        on_progress: Called with the share done.
    """
    channel = desk.channel(on_progress)
    prior = desk.prior()
    place = np.searchsorted(channel.outputs, desk.view.observed)
    return Guess(token_ids=channel.rank_sources(prior.probabilities)[:, :CANDIDATES][place], remarks=(prior.source,))


def contextual(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates of largest probability given everything seen in its text.

    Args:
        desk: Desk of the attacker, with public text on it.
        on_progress: Called with the share done.
    """
    desk.channel(scale_progress(on_progress, 0.0, 0.5))
    beliefs = compute_beliefs(desk, on_progress=scale_progress(on_progress, 0.5, 1.0))
    return Guess(
        token_ids=rank_candidates(desk.lattice(), beliefs), remarks=(f"a trigram model of {desk.public.source}",)
    )


Ints = NDArray[np.int64]

# Weight of ||W||² against the mean loss times the number of texts; rows have length one.
_PENALTY: Final = 0.5
_STEPS: Final = 60


def classify_texts(examples: Sequence[Ints], values: Ints, targets: Sequence[Ints], *, size: int) -> Ints:
    """The likeliest values of each target, the best first, (targets, values).

    Args:
        examples: Tokens of texts whose value the attacker knows.
        values: Their values, from 0; every value up to the largest is a class.
        targets: Tokens of the texts that are attacked.
        size: Rows of the table.
    """
    counts, others = _count_tokens(examples, size), _count_tokens(targets, size)
    weight = np.log((1 + len(examples)) / (1 + np.asarray((counts > 0).sum(axis=0)).ravel())) + 1
    features, wanted = _scale_to_unit(counts, weight), _scale_to_unit(others, weight)
    used = np.flatnonzero(np.asarray(counts.sum(axis=0)).ravel())
    coefficients, bias = _fit(features[:, used], values)
    scores = wanted[:, used] @ coefficients + bias
    order: Ints = np.argsort(-scores, axis=1, kind="stable")
    return order


def _count_tokens(texts: Sequence[Ints], size: int) -> sparse.csr_array:
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    columns = np.concatenate([np.empty(0, dtype=np.int64), *texts])
    found = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(texts), size))
    found.sum_duplicates()
    return found


def _scale_to_unit(counts: sparse.csr_array, weight: NDArray[np.float64]) -> sparse.csr_array:
    found = counts.copy()
    found.data = 1 + np.log(found.data)
    found = sparse.csr_array(found.multiply(weight))
    length = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
    return sparse.csr_array(found.multiply((1 / np.where(length > 0, length, 1))[:, None]))


def _fit(features: sparse.csr_array, values: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n, width = features.shape
    classes = int(values.max()) + 1
    truth = np.eye(classes)[values]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        table = flat.reshape(width + 1, classes)
        scores = features @ table[:-1] + table[-1]
        slope = softmax(scores, axis=1) - truth
        gradient = np.vstack([features.T @ slope + _PENALTY * table[:-1], slope.sum(axis=0)])
        value = -float((truth * log_softmax(scores, axis=1)).sum()) + _PENALTY / 2 * float((table[:-1] ** 2).sum())
        return value / n, (gradient / n).ravel()

    found = minimize(
        loss, np.zeros((width + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}
    ).x.reshape(width + 1, classes)
    return found[:-1], found[-1]


Floats = NDArray[np.float64]

# Common words that may be seen beside those of a label.
_SHRINKAGE: Final = (30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 100_000.0)
# Share of a label's texts that is held out, and steps of the fit of its weight.
_HELD_OUT: Final = 0.2
_LABEL_STEPS: Final = 30
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
        desk: Desk of the attacker, which has public text with labels.
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
        pairs, triples = _fit_to_label(desk, learned, out, everybody)
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


def _fit_to_label(
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
        weight = _weigh(_compute_probabilities(everybody, judged), _compute_probabilities(own, judged))
    texts = [*learned, *judged]
    prior = shrunk(texts, strength)
    pairs, triples = (MixedModel(desk.ngrams(order=n), fit_ngram(texts, prior, order=n), weight) for n in (2, 3))
    return pairs, triples


def _compute_probabilities(model: NgramModel, texts: Sequence[Ints]) -> Floats:
    """P of each token of these texts, and of each end, given the two before."""
    edge = [model.boundary]
    padded = [np.concatenate([edge, edge, text, edge]) for text in texts]
    older, old, new = (np.concatenate([text[first : len(text) - 2 + first] for text in padded]) for first in range(3))
    return model.probability(older, old, new)


def _weigh(common: Floats, own: Floats) -> float:
    """The weight of the second under which what was held out is likeliest, by expectation-maximization."""
    weight = 0.5
    for _ in range(_LABEL_STEPS):
        mixed = (1 - weight) * common + weight * own
        weight = float(np.mean(weight * own / np.where(mixed > 0, mixed, 1.0)))
    return weight
