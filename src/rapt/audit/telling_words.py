"""Words that tell something of their writer: a list of our own, and any list as tokens of a vocabulary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import AuditError
from rapt.local.vocabulary import Vocabulary

Ints = NDArray[np.int64]

# Probability from which a place is flagged.
SURE: Final = 0.9
_MOST_WORDS: Final = 10_000

# Words that tell something of their writer, by kind: the list of an attacker who looks for nobody in particular.
TELLING_WORDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "health": tuple(
            "cancer tumor diabetes hiv aids asthma stroke surgery chemotherapy hospital doctor nurse disease "
            "illness infection pregnant pregnancy abortion medication insulin vaccine diagnosis symptoms "
            "disabled".split()
        ),
        "mind": tuple(
            "suicide suicidal depression depressed anxiety therapy therapist addiction addicted alcoholic "
            "alcohol drunk drugs cocaine heroin overdose trauma insomnia autism schizophrenia".split()
        ),
        "money": tuple(
            "debt debts loan loans mortgage bankrupt bankruptcy salary wages unemployed unemployment poverty "
            "rent tax taxes inheritance gambling lottery savings welfare".split()
        ),
        "faith": tuple(
            "god jesus christ church christian catholic muslim islam mosque jewish synagogue buddhist hindu "
            "prayer pray bible quran priest atheist religion".split()
        ),
        "love": tuple(
            "sex sexual gay lesbian bisexual transgender marriage married divorce divorced wife husband "
            "girlfriend boyfriend affair lover rape abuse virgin naked".split()
        ),
        "politics": tuple(
            "election vote voted republican democrat liberal conservative socialist communist union strike "
            "protest immigrant immigration refugee border visa racist feminist".split()
        ),
        "law": tuple(
            "police arrest arrested prison jail court lawyer crime criminal murder murdered killed gun guns "
            "weapon theft stolen fraud victim witness".split()
        ),
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class WordList:
    """A list of words, as tokens of a vocabulary. Its `repr` shows none of them.

    Attributes:
        kinds: Names of the kinds.
        words: Tokens of each word.
        kind: Number of the kind of each word.
    """

    kinds: tuple[str, ...]
    words: tuple[tuple[int, ...], ...] = field(repr=False)
    kind: tuple[int, ...] = field(repr=False)

    def find_uses(self, tokens: Ints, lengths: Ints, pieces: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Places where a word of the list begins, and its number; of two that begin there the longer one.

        Args:
            tokens: Tokens of all texts, -1 for none, (n,).
            lengths: Lengths of each text.
            pieces: Mask of the rows of the table that go on a word, (V,).
        """
        text = np.repeat(np.arange(len(lengths)), lengths)
        firsts: defaultdict[int, list[int]] = defaultdict(list)
        for number in sorted(range(len(self.words)), key=lambda number: -len(self.words[number])):
            firsts[self.words[number][0]].append(number)
        places, numbers = [], []
        for place in np.flatnonzero(np.isin(tokens, list(firsts))).tolist():
            for number in firsts[int(tokens[place])]:
                word = self.words[number]
                end = place + len(word)
                if end > len(tokens) or text[end - 1] != text[place] or tuple(tokens[place:end].tolist()) != word:
                    continue
                goes_on = end < len(tokens) and text[end] == text[place] and tokens[end] >= 0 and pieces[tokens[end]]
                if not goes_on:
                    places.append(place)
                    numbers.append(number)
                    break
        return np.array(places, dtype=np.int64), np.array(numbers, dtype=np.int64)


def make_word_list(vocabulary: Vocabulary, words: Mapping[str, Sequence[str]]) -> WordList:
    """The list of these words, by kind; words that the vocabulary does not know are left out.

    Raises:
        AuditError: No word is left, or there are more than 10,000.
    """
    names = [(kind, word) for kind, some in words.items() for word in some]
    if len(names) > _MOST_WORDS:
        raise AuditError(f"a list must have at most {_MOST_WORDS:,} words, got {len(names):,}; give a shorter one")
    found: dict[tuple[int, ...], int] = {}
    kinds = tuple(words)
    for (kind, _), content in zip(names, vocabulary.encode([f" {word}" for _, word in names]), strict=True):
        if content and vocabulary.unknown_id not in content:
            found.setdefault(tuple(content), kinds.index(kind))
    if not found:
        raise AuditError("a list must have a word that the vocabulary knows, got none; give a word a line")
    return WordList(kinds=kinds, words=tuple(found), kind=tuple(found.values()))
