"""Embedding inversion, the attack of the RAPT paper: the tokens whose embeddings are nearest to what was received.

On released vectors this is a real attack (Song and Raghunathan, "Information Leakage in Embedding Models", CCS 2020).
On released tokens the nearest embedding to E(y) is y's own, so its first guess is "nothing was changed" and its success
is the share of unchanged tokens. It is the weakest attack here, and the one that published figures use most.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.guess import CANDIDATES, Guess

_BLOCK: Final = 256


def embedding_inversion(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """The nearest rows of the table to each observed token's own, itself first; ties go to the lowest id.

    Args:
        desk: What the attacker has; nothing is drawn.
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
