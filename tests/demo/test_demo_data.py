"""The demo's text: the same everywhere, balanced, and no query seen in training."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from rapt.demo.data import CLASSES, Tweets, pick_tweets, write_csv
from rapt.errors import CorpusError


@pytest.fixture(scope="module")
def picked() -> tuple[Tweets, Tweets]:
    return pick_tweets(training=2000, queries=1000)


def test_both_sets_are_balanced_and_of_the_size_asked_for(picked):
    training, queries = picked
    assert Counter(training.labels) == dict.fromkeys(CLASSES, 1000)
    assert Counter(queries.labels) == dict.fromkeys(CLASSES, 500)
    assert len(training) == len(training.texts) == 2000


def test_no_query_shares_its_words_with_a_training_text(picked):
    training, queries = ({" ".join(re.findall(r"[a-z0-9]+", text.lower())) for text in part.texts} for part in picked)
    assert not training & queries
    assert len(queries) == 1000


def test_the_choice_is_the_same_every_time_and_a_smaller_one_is_its_beginning(picked):
    assert pick_tweets(training=2000, queries=1000) == picked
    small, _ = pick_tweets(training=10, queries=2)
    assert small.texts == picked[0].texts[:10]


def test_more_texts_than_there_are_is_one_clear_line():
    with pytest.raises(CorpusError, match=r"enough texts of each class, got \d+ of 500000"):
        pick_tweets(training=999_000, queries=1000)


def test_the_texts_are_not_in_a_repr(picked):
    assert repr(picked[0]) == "Tweets()"


def test_written_texts_read_back_as_they_were(picked, tmp_path: Path):
    write_csv(picked[1], tmp_path / "queries.csv")
    with (tmp_path / "queries.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(row["text"] for row in rows) == picked[1].texts
    assert tuple(row["label"] for row in rows) == picked[1].labels
