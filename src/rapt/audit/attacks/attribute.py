"""Attribute inference: a classifier of whole texts, from the tokens that were seen.

Multinomial logistic regression on weighted token counts: tf-idf with log counts, rows of length one, an L2 penalty. Fit
by L-BFGS. On short texts it is as good as small networks, needs no tuning, and its training is convex: the figure does
not depend on luck. An attacker with a large language model may do better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

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
    counts, others = _counts(examples, size), _counts(targets, size)
    weight = np.log((1 + len(examples)) / (1 + np.asarray((counts > 0).sum(axis=0)).ravel())) + 1
    features, wanted = _unit(counts, weight), _unit(others, weight)
    used = np.flatnonzero(np.asarray(counts.sum(axis=0)).ravel())
    coefficients, bias = _fit(features[:, used], values)
    scores = wanted[:, used] @ coefficients + bias
    order: Ints = np.argsort(-scores, axis=1, kind="stable")
    return order


def _counts(texts: Sequence[Ints], size: int) -> sparse.csr_array:
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    columns = np.concatenate([np.empty(0, dtype=np.int64), *texts])
    found = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(texts), size))
    found.sum_duplicates()
    return found


def _unit(counts: sparse.csr_array, weight: NDArray[np.float64]) -> sparse.csr_array:
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
