"""How surely words are named that come back: on fresh releases of words of the text, and on the file's own.

A word comes back where a run of `RUN` tokens around it stands in several records, or where it stands at one place from
the beginning or the end of half of the texts. It is one word however often it comes back, and counts as named when it
is named rightly at more than half of its places.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.intervals import Share, independent_share
from rapt.audit.truth import Truth, keep_records
from rapt.audit.view import AdversaryView
from rapt.local.repeated_runs import LEAST_RECORDS, RUN, digest_runs

Ints = NDArray[np.int64]

# Words that are released afresh, and how often.
FRESH_WORDS: Final = 100
RELEASES: Final = (1, 3, 10, 30)
# Records from which a word counts as coming back.
RECORDS: Final = (LEAST_RECORDS, 30)
# Tokens among which words that come back are looked for, in whole records: pairs of places are compared.
MOST_TOKENS: Final = 5_000
# Share of the texts that have a place, from which a word there counts as coming back by its position.
_AT_ONE_PLACE: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class ReleasedWords:
    """Words of which so many releases are at hand, and it is known which belong together.

    Attributes:
        releases: Number of releases at hand of each word.
        named: Share that is named rightly.
        blind: Share that is right without the file: always the most frequent word.
    """

    releases: int
    named: Share
    blind: float


@dataclass(frozen=True, kw_only=True)
class RepeatedWords:
    """Words of the file that come back, by an attacker who has to find out where.

    Attributes:
        records: Records that each of them stands in, at least.
        named: Share that is named rightly, each word counted once.
        places: Tokens that they stand at.
        alone: Share of these words that is named from each release by itself.
        blind: Share that is right without the file: always the most frequent of these words.
    """

    records: int
    named: Share
    places: int
    alone: float
    blind: float


@dataclass(frozen=True, kw_only=True)
class RepetitionResult:
    """The words that an attack reads because they come back.

    Attributes:
        fresh: Words of the text, released afresh: what a word that comes back so often is open to.
        own: The file's own words that come back, by how often; empty where none does.
        tokens: Tokens of the records in which they were looked for.
    """

    fresh: tuple[ReleasedWords, ...]
    own: tuple[RepeatedWords, ...]
    tokens: int

    @property
    def beats_blind(self) -> bool:
        """Whether words of this file that come back are named better than blindly, with the interval's confidence."""
        return any(row.named.low > row.blind for row in self.own)


def score_repeated(named: Ints, *, alone: Ints, view: AdversaryView, truth: Truth) -> tuple[RepeatedWords, ...]:
    """How many of the words that come back are named rightly.

    Args:
        named: Word that is named at each place, (n,).
        alone: Word that is named at each place from its own release, (n,).
        view: What is attacked.
        truth: The true tokens.
    """
    records, number = count_repeats(view, truth)
    found = []
    for least in RECORDS:
        there = np.flatnonzero(records >= least)
        if not len(there):
            continue
        words, first, place, times = np.unique(
            number[there], return_index=True, return_inverse=True, return_counts=True
        )
        true = truth.token_ids[there]
        right, by_itself = (np.bincount(place, guess[there] == true) / times for guess in (named, alone))
        found.append(
            RepeatedWords(
                records=least,
                named=independent_share(right > 0.5),
                places=len(there),
                alone=float(by_itself.mean()),
                blind=float(np.bincount(true[first]).max() / len(words)),
            )
        )
    return tuple(found)


def count_repeats(view: AdversaryView, truth: Truth) -> tuple[Ints, Ints]:
    """In how many records the word at each place comes back, (n,), and a number for each such word, (n,).

    The places of one word have one number. A word that does not come back is in one record.
    """
    text = np.repeat(np.arange(len(view.lengths)), view.lengths)
    record = text // len(view.parts)
    records = np.ones(len(text), dtype=np.int64)
    keys: list[Hashable] = list(range(len(text)))

    def note(places: Ints, groups: Ints, side: str) -> None:
        """The words at these places, one a group; what is in more records is the better reason."""
        pairs = np.unique(np.stack([groups, record[places]]), axis=1)[0]
        names, counts = np.unique(pairs, return_counts=True)
        for place, group, count in zip(
            places.tolist(), groups.tolist(), counts[np.searchsorted(names, groups)].tolist(), strict=True
        ):
            if count > records[place]:
                records[place], keys[place] = count, (side, group)

    windows = np.flatnonzero(text[: max(0, len(text) - RUN + 1)] == text[RUN - 1 :])
    runs = np.unique(digest_runs(truth.token_ids)[windows], return_inverse=True)[1]
    for offset in range(RUN - 1, -1, -1):
        # The run that begins first is taken where several are in as many records.
        note(windows + offset, runs, f"run {offset}")
    starts, ends = np.cumsum(view.lengths) - view.lengths, np.cumsum(view.lengths)
    for far in range(int(view.lengths.max(initial=0))):
        there = view.lengths > far
        for side, places in (("start", starts[there] + far), ("end", ends[there] - 1 - far)):
            tokens, group, times = np.unique(truth.token_ids[places], return_inverse=True, return_counts=True)
            often = (times >= max(_AT_ONE_PLACE * len(places), LEAST_RECORDS))[group]
            note(places[often], tokens[group[often]], f"{side} {far}")
    numbers: dict[Hashable, int] = {}
    return records, np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def choose_repeating_records(view: AdversaryView, truth: Truth, *, seed: int) -> tuple[AdversaryView | None, Truth]:
    """The records that hold words which come back, and others up to `MOST_TOKENS`; None where no word comes back."""
    records, _ = count_repeats(view, truth)
    record = np.repeat(np.arange(len(view.records)), view.record_lengths)
    holds = np.zeros(len(view.records), dtype=bool)
    holds[record[records >= LEAST_RECORDS]] = True
    if not holds.any():
        return None, truth
    order = np.random.default_rng([seed, 37]).permutation(len(view.records))
    order = order[np.argsort(~holds[order], kind="stable")]
    enough = int(np.searchsorted(np.cumsum(view.record_lengths[order]), MOST_TOKENS, side="right"))
    return keep_records(view, truth, np.sort(order[: max(1, enough)]))


def draw_words(truth: Truth, *, seed: int) -> Ints:
    """Words of the text, as often as they stand in it, that are to be released afresh, (`FRESH_WORDS`,)."""
    return np.random.default_rng([seed, 41]).choice(truth.token_ids, FRESH_WORDS)


def score_fresh(named: Mapping[int, Ints], *, true: Ints, truth: Truth) -> tuple[ReleasedWords, ...]:
    """How many words are named rightly, by the number of their releases.

    Args:
        named: Words that are named from so many releases, (words,) each.
        true: The words, (words,).
        truth: The text that they were drawn from.
    """
    blind = float(np.bincount(truth.token_ids).max() / len(truth.token_ids))
    return tuple(
        ReleasedWords(releases=count, named=independent_share(guess == true), blind=blind)
        for count, guess in sorted(named.items())
    )
