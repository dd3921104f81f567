"""Pairs made of public texts, so that a student also learns to compare two noisy texts in one sequence.

Nobody labels them, and no loss knows which is which: the teacher reads the pair in clear and says what there is to see.
It sees something only if some pairs have something in common, so half of them are a text and what an editor might have
left of it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rapt.denoise.steps import Tokens

# Of what two texts that say the same have in common nothing was measured; these are guesses that were tried once.
_RELATED: Final = 0.6  # share of pairs that are a text and a form of it; the others are two texts
_DROPPED: Final = 0.25  # share of its words that the form has lost
_TURNED: Final = 0.3  # share of forms whose two halves have changed places


def second_texts(texts: Tokens, *, rng: np.random.Generator) -> list[list[int]]:
    """For each text another one: a form of itself, or its neighbour in the batch; never empty."""
    found = []
    for place, text in enumerate(texts):
        if rng.random() < _RELATED:
            other = [token for token in text if rng.random() >= _DROPPED]
            cut = int(rng.integers(len(other) + 1)) if rng.random() < _TURNED else 0
            other = other[cut:] + other[:cut]
        else:
            other = list(texts[(place + 1) % len(texts)])
        found.append(other or list(text))
    return found
