"""Inference of what texts tell about their authors: a column that the service never got, text by text.

Two attackers. The *static* one learns from clear texts whose value he knows; the *adaptive* one privatizes those texts
himself first, which he can, so that he learns from what he will see. Each text is attacked by a classifier that saw the
others: in K folds, the texts of the other folds are the attacker's own. The same two link a text to one of N authors
when the column names authors.

*Not covered.* Attackers who know more texts than the file has, or who use a large language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.direct import classify_texts
from rapt.audit.intervals import Share, compute_independent_share
from rapt.audit.truth import Truth
from rapt.audit.view import AdversaryView
from rapt.errors import AuditError, MechanismError
from rapt.local.mechanisms import remake_mechanism
from rapt.local.vocabulary import Vocabulary

FOLDS: Final = 5
# Guesses that are scored beside the first, where there are more values than that.
SEVERAL: Final = 5


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One attacker's success on one column.

    Attributes:
        name: `static`, `adaptive`, or `unprotected` for the judge's reference on clear texts.
        first: Share of texts whose value was named rightly at the first guess.
        of_several: Share whose value was among the first `SEVERAL`; None with no more values than that.
        balanced: Mean over the values of the share named rightly among their texts.
    """

    name: str
    first: Share
    of_several: Share | None
    balanced: float


@dataclass(frozen=True, kw_only=True)
class AttributeResult:
    """Success of the inference of one column.

    Attributes:
        column: Name of the column.
        values: Number of different values.
        texts: Number of texts.
        chance: Share of the most frequent value: the best guess without the text.
        attackers: Attackers who see privatized texts, the strongest first.
        unprotected: The same classifier on clear texts: what there was to be learned.
    """

    column: str
    values: int
    texts: int
    chance: float
    attackers: tuple[Inference, ...]
    unprotected: Inference

    @property
    def advantage(self) -> float:
        """How far the strongest attacker is above the best guess without the text."""
        return self.attackers[0].first.value - self.chance


def infer_attribute(
    view: AdversaryView,
    truth: Truth,
    values: Sequence[str],
    *,
    column: str,
    seed: int,
    folds: int = FOLDS,
    on_progress: Callable[[float], None] | None = None,
) -> AttributeResult:
    """Measure how well a column can be inferred from privatized texts.

    Args:
        view: View of the service.
        truth: The clear texts: those of other folds are the attacker's own, and their values.
        values: Values of the column, one for each record.
        column: Name of the column, for the report.
        seed: Seed of the folds and of the attacker's own noise.
        folds: Number K of folds.
        on_progress: Called with the share done.

    Raises:
        AuditError: Too few texts, one value only, or another number of values than records.
    """
    if len(values) != len(view.records):
        raise AuditError(
            f"column {column!r} must have one value for each record, got {len(values)} for {len(view.records)}"
        )
    names, codes = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise AuditError(f"column {column!r} must have at least two different values, got {len(names)}; choose another")
    if len(codes) < 2 * folds:
        raise AuditError(
            f"inferring column {column!r} needs at least {2 * folds} texts for {folds} folds, got {len(codes)}"
        )
    cuts = np.cumsum(view.record_lengths)[:-1]  # all texts of a record tell about its author
    clear, seen = np.split(truth.token_ids, cuts), np.split(view.observed, cuts)
    rng = np.random.default_rng([seed, 7])
    trained_on: dict[str, list[NDArray[np.int64]]] = {"static": clear}
    try:
        mechanism = remake_mechanism(view.manifest.mechanism, vocabulary=Vocabulary(view.bundle), allow_unproved=True)
        trained_on["adaptive"] = np.split(mechanism.privatize(truth.token_ids, rng=rng), cuts)
    except MechanismError:
        # A mechanism that cannot be run here: its outputs on the other folds, which a service holds anyway.
        trained_on["adaptive"] = seen
    fold = rng.permutation(np.arange(len(codes)) % folds)
    plans = [(name, texts, seen) for name, texts in trained_on.items()] + [("unprotected", clear, clear)]
    found = []
    for place, (name, learned, attacked) in enumerate(plans):
        guesses = np.empty((len(codes), len(names)), dtype=np.int64)
        for k in range(folds):
            inside, outside = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            # A value that no text of the other folds has cannot be learned, and counts as missed.
            known, local = np.unique(codes[outside], return_inverse=True)
            order = classify_texts(
                [learned[i] for i in outside], local, [attacked[i] for i in inside], size=len(view.bundle.embeddings)
            )
            guesses[inside] = -1
            guesses[inside, : len(known)] = known[order]
            if on_progress is not None:
                on_progress((place * folds + k + 1) / (len(plans) * folds))
        found.append(_make_inference(name, guesses, codes))
    attackers = tuple(sorted(found[:-1], key=lambda inference: -inference.first.value))
    return AttributeResult(
        column=column,
        values=len(names),
        texts=len(codes),
        chance=float(np.bincount(codes).max() / len(codes)),
        attackers=attackers,
        unprotected=found[-1],
    )


def _make_inference(name: str, guesses: NDArray[np.int64], codes: NDArray[np.int64]) -> Inference:
    hits = guesses == codes[:, None]
    each = np.bincount(codes, hits[:, 0]) / np.bincount(codes)
    several = compute_independent_share(hits[:, :SEVERAL].any(axis=1)) if guesses.shape[1] > SEVERAL else None
    return Inference(
        name=name, first=compute_independent_share(hits[:, 0]), of_several=several, balanced=float(each.mean())
    )
