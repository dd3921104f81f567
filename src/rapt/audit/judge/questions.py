"""How often the right text, word or telling word is named: the scores of what is asked beside the words of a file.

**Linkage.** The attacker holds texts in clear, and the right one is among them: the true texts of the file are put
among the public text, or the user's own texts that were lent, in random order. Equal texts are one candidate.

**Repetition**, on fresh releases of words of the text, and on the file's own. A word comes back where a run of `RUN`
tokens around it stands in several records, or where it stands at one place from the beginning or the end of half of the
texts. It is one word however often it comes back, and counts as named when it is named rightly at more than half of its
places.

**Telling words**: how many of their uses are flagged, and how many flags are false alarms.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.intervals import LEVEL, Share, compute_clustered_share, compute_independent_share
from rapt.audit.language.layout import mark_pieces
from rapt.audit.telling_words import SURE, WordList
from rapt.audit.truth import Truth, keep_records
from rapt.audit.view import AdversaryView, Lineup
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
        view: View that is attacked.
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
                named=compute_independent_share(right > 0.5),
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
        ReleasedWords(releases=count, named=compute_independent_share(guess == true), blind=blind)
        for count, guess in sorted(named.items())
    )


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
        view: View that was looked through.
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
        found = compute_clustered_share(hits.astype(bool)[there], lengths)
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


# Candidates, at most; the texts that are attacked are always among them.
MOST_CANDIDATES: Final = 20_000
# Texts that are attacked, at most, in whole records.
MOST_LINKED_TOKENS: Final = 4_000


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
        first=compute_independent_share(places[there] == answers[there]),
        candidates=len(lineup.contents),
        chance=float((1 / alike).mean()),
        blind=1 / len(lineup.contents),
        believed=float(probabilities[there].mean()),
    )
