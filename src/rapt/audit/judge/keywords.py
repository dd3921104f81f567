"""How many uses of telling words are flagged, and how many flags are false alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.intervals import LEVEL, Share, clustered_share
from rapt.audit.language.layout import mark_pieces
from rapt.audit.telling_words import SURE, WordList
from rapt.audit.truth import Truth
from rapt.audit.view import AdversaryView

Ints = NDArray[np.int64]

# Tokens for which false alarms are stated.
OF_TOKENS: Final = 60_000


@dataclass(frozen=True, kw_only=True)
class FlaggedWords:
    """The words of one kind, or of all.

    Attributes:
        name: Name of the kind.
        found: Share of their uses that is flagged as the word that it is; None where the text uses none.
        false_alarms: Flags where another word stands.
        blind: Share of the uses that is found without the file, by as many flags at random.
    """

    name: str
    found: Share | None
    false_alarms: int
    blind: float


@dataclass(frozen=True, kw_only=True)
class KeywordResult:
    """What an attacker with a list of telling words finds.

    Attributes:
        everything: All words of the list together.
        kinds: The same by kind.
        listed: Words of the list.
        tokens: Tokens that were looked through.
        sure: Probability from which a place was flagged.
        false_alarms: False alarms per 60,000 tokens.
        most_false_alarms: Upper end of its 95 % interval (Garwood 1936).
    """

    everything: FlaggedWords
    kinds: tuple[FlaggedWords, ...]
    listed: int
    tokens: int
    sure: float
    false_alarms: float
    most_false_alarms: float

    @property
    def beats_blind(self) -> bool:
        """Whether more uses are found than by flags at random, with the confidence of the interval."""
        found = self.everything.found
        return found is not None and found.low > self.everything.blind


def score_keywords(places: Ints, numbers: Ints, *, words: WordList, view: AdversaryView, truth: Truth) -> KeywordResult:
    """How many uses are flagged.

    Args:
        places: Places that are flagged.
        numbers: Number of the word that is said to begin at each.
        words: List of words.
        view: What was looked through.
        truth: The true tokens.
    """
    used_at, used = words.find_uses(truth.token_ids, view.lengths, mark_pieces(view.bundle))
    flagged = dict(zip(places.tolist(), numbers.tolist(), strict=True))
    hits = np.array(
        [flagged.get(place) == number for place, number in zip(used_at.tolist(), used.tolist(), strict=True)]
    )
    uses = dict(zip(used_at.tolist(), used.tolist(), strict=True))
    wrong = np.array([number for place, number in flagged.items() if uses.get(place) != number], dtype=np.int64)
    record = np.repeat(np.arange(len(view.records)), view.record_lengths)
    kind = np.array(words.kind, dtype=np.int64)
    tokens = len(truth.token_ids)

    def row(name: str, there: NDArray[np.bool_], false: int, flags: int) -> FlaggedWords:
        lengths = np.bincount(record[used_at[there]], minlength=1)
        found = clustered_share(hits.astype(bool)[there], lengths)
        return FlaggedWords(name=name, found=found, false_alarms=false, blind=flags / tokens)

    everything = row("all", np.ones(len(used), dtype=bool), len(wrong), len(places))
    kinds = tuple(
        row(name, kind[used] == place, int((kind[wrong] == place).sum()), int((kind[numbers] == place).sum()))
        for place, name in enumerate(words.kinds)
    )
    most = float(stats.chi2.ppf((1 + LEVEL) / 2, 2 * (len(wrong) + 1))) / 2
    return KeywordResult(
        everything=everything,
        kinds=kinds,
        listed=len(words.words),
        tokens=tokens,
        sure=SURE,
        false_alarms=OF_TOKENS * len(wrong) / tokens,
        most_false_alarms=OF_TOKENS * most / tokens,
    )
