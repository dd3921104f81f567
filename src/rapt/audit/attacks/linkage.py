"""Search for the one of many texts in clear that is behind a privatized text: Bayes over whole texts.

The number of tokens is sent in clear, so the candidates of a privatized text y are the texts x of its length, each as
likely. The attacker names the one with the largest sum of log P(y_i | x_i). With an exact channel no attacker who holds
these texts, and nothing else, does better.

Source: Bayes' rule; record linkage as a measure of disclosure goes back to Domingo-Ferrer and Torra, 2001.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.desk import Desk
from rapt.audit.channels import compute_log_channel
from rapt.audit.view import Lineup


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkageGuess:
    """The candidate that is named for each text.

    Attributes:
        places: Place of the candidate in the line-up, (texts,); -1 for a text of whose length there is none.
        probabilities: Probability that the attacker gives to it, (texts,).
        entropies: Bits that he still lacks, (texts,): the entropy of what he believes of all candidates.
    """

    places: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    entropies: NDArray[np.float64]


def link_texts(desk: Desk, lineup: Lineup) -> LinkageGuess:
    """The likeliest text of a line-up for each text of the view, among those of its length.

    Raises:
        AuditError: P(y|x) is not known for every pair of words.
    """
    view = desk.view
    by_length: dict[int, NDArray[np.int64]] = {}
    lengths = np.array([len(text) for text in lineup.contents], dtype=np.int64)
    for length in np.unique(view.lengths[view.lengths > 0]).tolist():
        by_length[length] = np.flatnonzero(lengths == length)
    used = [lineup.contents[place] for places in by_length.values() for place in places]
    places = np.full(len(view.texts), -1, dtype=np.int64)
    probabilities = np.zeros(len(view.texts))
    entropies = np.full(len(view.texts), np.log2(max(1, len(lineup.contents))))
    if not used:
        return LinkageGuess(places=places, probabilities=probabilities, entropies=entropies)
    sources, outputs = np.unique(np.concatenate(used)), np.unique(view.observed)
    channel = compute_log_channel(
        view.manifest.mechanism, view.bundle, sources=sources, outputs=outputs, rng=desk.rng("linkage")
    )
    rows = {
        length: np.searchsorted(sources, np.stack([lineup.contents[place] for place in found]))
        for length, found in by_length.items()
        if len(found)
    }
    for text, seen in enumerate(view.texts):
        if len(seen) not in rows:
            continue
        columns = np.searchsorted(outputs, np.array(seen))
        score = channel[rows[len(seen)], columns].sum(axis=1, dtype=np.float64)
        best = int(score.argmax())
        places[text] = by_length[len(seen)][best]
        if np.isfinite(score[best]):
            odds = np.exp(score - score[best])
            probabilities[text] = 1 / odds.sum()
            believed = odds[odds > 0] / odds.sum()
            entropies[text] = max(0.0, -float((believed * np.log2(believed)).sum()))
    return LinkageGuess(places=places, probabilities=probabilities, entropies=entropies)
