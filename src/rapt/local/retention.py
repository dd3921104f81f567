"""How much stays: P(M(x) = x) of single tokens, of words, of kinds of words, and over running public text.

An average over a vocabulary hides what matters to a person. On MiniLM's table at η = 75 words of health stay in
seven of ten draws, stop words in one of three: a token stays the oftener, the longer its row. A mechanism with a
closed channel has these probabilities exactly; of the others draws are counted, and each number comes with how many
draws it is from, and a 95 % interval.

Everything here is computed on this machine, and no text is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import UsageError
from rapt.local.calibration_search import compute_share_interval, find_crossing, round_down
from rapt.local.mechanisms.interface import Mechanism, find_closed_channel
from rapt.local.mechanisms.token_tags import AUXILIARIES, CONJUNCTIONS, DETERMINERS, PREPOSITIONS, PRONOUNS
from rapt.local.vocabulary import Vocabulary
from rapt.local.weighting import Weighting, count_tokens, read_running_words

# Tokens of a closed channel that are computed at once: 15 MB at 30,000 outputs.
CHANNEL_ROWS: Final = 64
# Draws of each token of a word that somebody names: an interval of at most ± 3 points.
WORD_DRAWS: Final = 1024
# Draws for one η of a search: over all tokens of a list, and the bounds for one of them.
_SEARCH_DRAWS: Final = 2**14
_FEWEST_DRAWS: Final = 256
_MOST_DRAWS: Final = 4096
# Draws of a kind of words, over all of them.
_KIND_DRAWS: Final = 1024
_FEWEST_OF_A_KIND: Final = 5
_RARE_WORDS: Final = 512

STOP_WORDS: Final = DETERMINERS | PRONOUNS | PREPOSITIONS | CONJUNCTIONS | AUXILIARIES
HEALTH_WORDS: Final = tuple(
    """abortion addiction aids alcohol allergy anxiety asthma blood brain cancer clinic depression diabetes diagnosis
    disease doctor drug fever flu heart hepatitis hiv hospital infection injury insulin kidney liver medication
    medicine mental nurse pain patient pregnancy pregnant rehab schizophrenia stroke suicide surgery symptoms syndrome
    therapy tumor vaccine virus""".split()
)
FIRST_NAMES: Final = tuple(
    """adam alice amy andrew anna anthony barbara ben brian carol charles chris daniel david emily emma eric frank
    george hannah helen henry jack james jane jennifer john joseph julia karen kate kevin laura linda lisa maria
    mark martin mary matthew michael nancy nicole oliver paul peter rachel richard robert ruth sarah simon
    sophie steven susan thomas tom victoria william""".split()
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Retention:
    """P(M(x) = x) of tokens.

    Attributes:
        token_ids: Different tokens, sorted, (n,).
        kept: Probability, or share of the draws, that each stays, (n,).
        draws: Independent draws of each; 0 where the probabilities are exact.
    """

    token_ids: NDArray[np.int64] = field(repr=False)
    kept: NDArray[np.float64] = field(repr=False)
    draws: int

    def find(self, token_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Find the retention of these tokens, each of them among `token_ids`, in their order."""
        return self.kept[np.searchsorted(self.token_ids, np.asarray(token_ids, dtype=np.int64))]

    def bound(self, share: float) -> tuple[float, float]:
        """The 95 % interval of a share of this many draws."""
        return (share, share) if self.draws == 0 else compute_share_interval(share, self.draws)


def measure_retention(
    mechanism: Mechanism,
    vocabulary: Vocabulary,
    token_ids: Sequence[int] | NDArray[np.int64],
    *,
    rng: np.random.Generator,
    draws: int,
) -> Retention:
    """How often each of these tokens stays; exactly, for a mechanism that can write its channel down.

    Args:
        mechanism: Mechanism M.
        vocabulary: Vocabulary of the tokens.
        token_ids: Rows of the table, in any order; one that may not be an output never stays.
        rng: Source of the draws. Nothing is released, so they need not be secret.
        draws: Draws of each token.

    Raises:
        UsageError: There is no draw.
    """
    if draws < 1:
        raise UsageError(f"a chance must be of at least 1 draw, got draws={draws}")
    ids = np.unique(np.asarray(token_ids, dtype=np.int64))
    kept = np.zeros(len(ids))
    possible = np.isin(ids, vocabulary.eligible)
    tried, channel = ids[possible], find_closed_channel(mechanism)
    if channel is not None:
        kept[possible] = read_diagonal(channel, vocabulary, tried)
    elif len(tried):
        released = mechanism.privatize(np.repeat(tried, draws), rng=rng).reshape(len(tried), draws)
        kept[possible] = (released == tried[:, None]).mean(axis=1)
    return Retention(token_ids=ids, kept=kept, draws=0 if channel is not None else draws)


def read_diagonal(
    channel: Callable[[NDArray[np.int64]], NDArray[np.float64]], vocabulary: Vocabulary, tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """P(M(x) = x) of a closed channel for tokens that may be an output, (n,)."""
    places = np.searchsorted(vocabulary.eligible, tokens)
    kept = np.empty(len(tokens))
    for start in range(0, len(tokens), CHANNEL_ROWS):
        part = slice(start, start + CHANNEL_ROWS)
        logs = channel(tokens[part])
        kept[part] = np.exp(logs[np.arange(len(logs)), places[part]])
    return kept


@dataclass(frozen=True, kw_only=True)
class WordChance:
    """How often a word stays as it is.

    Attributes:
        word: Word that the chance is of.
        tokens: Number of its tokens; it stays if all of them do.
        kept: Chance that it stays.
        low, high: 95 % interval for one token; at least as sure for more.
        draws: Draws of each token; 0 where it is exact.
    """

    word: str
    tokens: int
    kept: float
    low: float
    high: float
    draws: int


def measure_words(
    mechanism: Mechanism,
    vocabulary: Vocabulary,
    words: Sequence[str],
    *,
    rng: np.random.Generator,
    draws: int = WORD_DRAWS,
) -> tuple[WordChance, ...]:
    """How often each of these words stays, in their order, a word that is named twice once.

    Raises:
        UsageError: A word has no token; it is named by its position.
    """
    named = tuple(dict.fromkeys(words))
    encoded = vocabulary.encode([f" {word}" for word in named])
    for position, tokens in enumerate(encoded):
        if not tokens:
            raise UsageError(f"a word must have at least one token, got none for word {position}; leave it out")
    flat = [token for tokens in encoded for token in tokens]
    if not flat:
        return ()
    known = measure_retention(mechanism, vocabulary, flat, rng=rng, draws=draws)
    found = []
    for word, tokens in zip(named, encoded, strict=True):
        kept = known.find(tokens)
        low, high = (math.prod(end) for end in zip(*(known.bound(float(share)) for share in kept), strict=True))
        found.append(
            WordChance(
                word=word, tokens=len(tokens), kept=math.prod(kept.tolist()), low=low, high=high, draws=known.draws
            )
        )
    return tuple(found)


def find_largest_eta(
    make: Callable[[float], Mechanism],
    vocabulary: Vocabulary,
    words: Sequence[str],
    *,
    target: float,
    start: float,
    rng: np.random.Generator,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[float, tuple[WordChance, ...]]:
    """The largest η of four digits at which every one of these words stays less often than `target`, and the chances.

    The upper end of each word's interval is held below the target. Every η is tried with the same draws, as in
    `calibration_search`; the chances at the answer are from draws of their own.

    Args:
        make: The mechanism at an η.
        vocabulary: Vocabulary of the words.
        words: Words, one at least.
        target: Chance, between 0 and 1.
        start: η to begin with.
        rng: Gives the key of the draws.
        on_progress: Called with the number of η tried so far.

    Raises:
        UsageError: There is no word, one has no token, the target is no share, or no η reaches it.
    """
    if not words or not all(vocabulary.encode(words)):
        raise UsageError("a list of words to keep below a target must have a token in each, got none; leave it out")
    if not 0 < target < 1:
        raise UsageError(f"a target must lie between 0 and 1, got target={target!r}; write half as 0.5")
    key, tried = int(rng.integers(2**63)), 0
    draws = min(_MOST_DRAWS, max(_FEWEST_DRAWS, _SEARCH_DRAWS // sum(map(len, vocabulary.encode(words)))))

    def worst(eta: float) -> float:
        nonlocal tried
        common = np.random.Generator(np.random.PCG64DXSM(key))
        found = measure_words(make(eta), vocabulary, words, rng=common, draws=draws)
        tried += 1
        if on_progress is not None:
            on_progress(tried)
        return max(chance.high for chance in found)

    eta = round_down(find_crossing(worst, target=target, start=start))
    return eta, measure_words(make(eta), vocabulary, words, rng=rng)


@dataclass(frozen=True, kw_only=True)
class KindShare:
    """How often tokens of one kind stay.

    Attributes:
        kind: Name of the kind.
        tokens: Number of different tokens.
        share: Share that stays, each token as often as it runs, or each the same in a list.
        low, high: 95 % interval.
    """

    kind: str
    tokens: int
    share: float
    low: float
    high: float


def measure_kinds(mechanism: Mechanism, vocabulary: Vocabulary, *, rng: np.random.Generator) -> tuple[KindShare, ...]:
    """How often words of each kind stay; a kind of which the vocabulary has fewer than five tokens is left out.

    Stop words, other words, numbers and marks are those of running public text, as often as they run; words of health
    and first names are lists, of which those count that are one token; rare words are whole words of the vocabulary
    that are not in that text, chosen at random.
    """
    found = []
    for kind, weighting in _weigh_kinds(vocabulary, rng=rng).items():
        if len(weighting.token_ids) < _FEWEST_OF_A_KIND:
            continue
        tokens = weighting.sample(_KIND_DRAWS)
        released = mechanism.privatize(tokens, rng=rng)
        share = float((released == tokens).mean())
        low, high = compute_share_interval(share, len(tokens))
        found.append(KindShare(kind=kind, tokens=len(np.unique(tokens)), share=share, low=low, high=high))
    return tuple(found)


def _weigh_kinds(vocabulary: Vocabulary, *, rng: np.random.Generator) -> dict[str, Weighting]:
    running = read_running_words()
    kinds: dict[str, Mapping[str, int]] = {
        "stop words": {word: count for word, count in running.items() if word in STOP_WORDS},
        "other words": {word: n for word, n in running.items() if word.isalpha() and word not in STOP_WORDS},
        "words of health": dict.fromkeys(HEALTH_WORDS, 1),
        "first names": dict.fromkeys(FIRST_NAMES, 1),
        "numbers": {word: count for word, count in running.items() if word[0].isdigit()},
        "marks": {word: n for word, n in running.items() if len(word) == 1 and not word.isalnum()},
    }
    found = {kind: _weigh_words(vocabulary, words, kind=kind) for kind, words in kinds.items()}
    rare = _list_rare_words(vocabulary, apart_from=running.keys() | set(HEALTH_WORDS) | set(FIRST_NAMES))
    if len(rare) > _RARE_WORDS:
        rare = np.sort(rng.choice(rare, size=_RARE_WORDS, replace=False))
    found["rare words"] = _weigh_evenly(rare, source="rare words")
    return found


def _weigh_words(vocabulary: Vocabulary, words: Mapping[str, int], *, kind: str) -> Weighting:
    """The tokens of words, without the unknown one; of a list, whose counts are all one, words of one token alone."""
    if max(words.values()) == 1:
        known = vocabulary if vocabulary.unknown == "unk" else Vocabulary(vocabulary.bundle)
        single = [tokens[0] for tokens in known.encode([f" {word}" for word in words]) if len(tokens) == 1]
        return _weigh_evenly(np.intersect1d(np.array(single, dtype=np.int64), vocabulary.eligible), source=kind)
    counts = count_tokens(vocabulary, words)[vocabulary.eligible]
    ids = vocabulary.eligible[counts > 0]
    return Weighting(token_ids=ids, shares=counts[counts > 0] / max(counts.sum(), 1), source=kind)


def _list_rare_words(vocabulary: Vocabulary, *, apart_from: set[str]) -> NDArray[np.int64]:
    """Eligible tokens that are a word of three letters or more, none of a public list, sorted."""
    tokens = vocabulary.tokens(vocabulary.eligible.tolist())
    starts = tuple(mark for mark in ("\u2581", "\u0120") if any(token.startswith(mark) for token in tokens))
    rare = []
    for token_id, token in zip(vocabulary.eligible.tolist(), tokens, strict=True):
        word = token[1:] if starts and token.startswith(starts) else "" if starts else token
        if len(word) > 2 and word.isascii() and word.isalpha() and word.lower() not in apart_from:
            rare.append(token_id)
    return np.array(rare, dtype=np.int64)


def _weigh_evenly(token_ids: NDArray[np.int64], *, source: str) -> Weighting:
    return Weighting(token_ids=token_ids, shares=np.full(len(token_ids), 1 / max(len(token_ids), 1)), source=source)
