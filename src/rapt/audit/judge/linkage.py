"""The line-up of the attack `linkage`, and how often it names the right text.

The attacker holds texts in clear, and the right one is among them: the true texts of the file are put among the public
text, or the user's own texts that were lent, in random order. Equal texts are one candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.intervals import Share, independent_share
from rapt.audit.truth import Truth
from rapt.audit.view import AdversaryView, Lineup

# Candidates, at most; the texts that are attacked are always among them.
MOST_CANDIDATES: Final = 20_000
# Texts that are attacked, at most, in whole records.
MOST_TOKENS: Final = 4_000


@dataclass(frozen=True, kw_only=True)
class LinkageResult:
    """Success at recognizing a privatized text among texts in clear.

    Attributes:
        first: Share of the texts for which the attacker names the right one, each text counted by itself.
        candidates: Different texts in clear.
        chance: Share that is right by length alone: a random candidate of the same length.
        blind: Share that is right without the file: a random candidate.
        believed: Mean probability that the attacker gives to the text he names; if far above `first`, he errs.
    """

    first: Share
    candidates: int
    chance: float
    blind: float
    believed: float

    @property
    def beats_length(self) -> bool:
        """Whether texts are recognized by more than their length, with the confidence of the interval."""
        return self.first.low > self.chance


def line_up(view: AdversaryView, truth: Truth, *, seed: int) -> tuple[Lineup, NDArray[np.int64]]:
    """The candidates in random order, and each text's place among them, (texts,); -1 for a text without tokens."""
    rng = np.random.default_rng([seed, 31])
    true = [tuple(text.tolist()) for text in np.split(truth.token_ids, np.cumsum(view.lengths)[:-1])]
    held = dict.fromkeys(text for text in true if text)
    others = () if view.public is None else view.public.contents
    more = dict.fromkeys(tuple(text.tolist()) for text in others)
    extra = [text for text in more if text and text not in held]
    room = max(0, MOST_CANDIDATES - len(held))
    drawn = [extra[place] for place in rng.permutation(len(extra))[:room]]
    pool = [*held, *drawn]
    pool = [pool[place] for place in rng.permutation(len(pool))]
    place = {text: number for number, text in enumerate(pool)}
    answers = np.array([place.get(text, -1) for text in true], dtype=np.int64)
    return Lineup(contents=tuple(np.array(text, dtype=np.int64) for text in pool)), answers


def score_linkage(
    places: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    *,
    lineup: Lineup,
    answers: NDArray[np.int64],
) -> LinkageResult:
    """Score the named places: how often they are right, over the texts that have tokens."""
    there = answers >= 0
    lengths = np.array([len(text) for text in lineup.contents], dtype=np.int64)
    alike = np.bincount(lengths)[lengths[answers[there]]]
    return LinkageResult(
        first=independent_share(places[there] == answers[there]),
        candidates=len(lineup.contents),
        chance=float((1 / alike).mean()),
        blind=1 / len(lineup.contents),
        believed=float(probabilities[there].mean()),
    )
