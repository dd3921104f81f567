"""Which telling words stand in a file: an attacker with a list of them asks for no others.

For each place there is a probability that a word of the list stands there, given all that was seen of the text: from
the channel and an n-gram model of the attacker's text, or from the channel and the frequencies of words without one. A
word is flagged where that is at least `SURE`. A word of several pieces is there when every piece is and no more pieces
follow; the probabilities of its pieces are multiplied.

Where channel and model are right, at most 1 - `SURE` of the flags are false alarms: the mean of their probabilities is
the share that is right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.beliefs import compute_beliefs, normalize_rows
from rapt.audit.attacks.desk import Desk, Progress
from rapt.audit.attacks.learned import without_context
from rapt.audit.language.layout import mark_pieces
from rapt.audit.telling_words import SURE, WordList

Ints = NDArray[np.int64]


def flag_words(desk: Desk, words: WordList, *, on_progress: Progress | None = None) -> tuple[Ints, Ints]:
    """Places that are flagged, and the word of the list that is said to begin there.

    Args:
        desk: What the attacker has.
        words: List of words.
        on_progress: Called with the share done.
    """
    lattice = desk.lattice()
    if desk.view.public is None:
        beliefs = normalize_rows(without_context(lattice))
    else:
        beliefs = compute_beliefs(desk, on_progress=on_progress)
    best = beliefs[:, :-1].argmax(axis=1)[:, None]
    likeliest = np.take_along_axis(lattice.candidates, best, axis=1)[:, 0]
    chance = np.exp(np.take_along_axis(beliefs, best, axis=1)[:, 0])
    pieces = mark_pieces(desk.view.bundle)
    # No product is at least `SURE` unless each factor is.
    places, numbers = words.find_uses(np.where(chance >= SURE, likeliest, -1), desk.view.lengths, pieces)
    ends = np.cumsum(desk.view.lengths)
    text = np.repeat(np.arange(len(desk.view.lengths)), desk.view.lengths)
    goes_on = (np.exp(beliefs[:, :-1]) * pieces[lattice.candidates[:, :-1]]).sum(axis=1)
    kept = []
    for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
        end = place + len(words.words[number])
        whole = chance[place:end].prod() * (1 - goes_on[end] if end < ends[text[place]] else 1.0)
        kept.append(bool(whole >= SURE))
    return places[kept], numbers[kept]
