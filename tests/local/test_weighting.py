"""Weightings: what they weigh, that samples follow them, and that private ones say so."""

import numpy as np
import pytest

from rapt.errors import CorpusError, UsageError
from rapt.local.weighting import (
    Weighting,
    read_running_words,
    weigh_all,
    weigh_common_words,
    weigh_corpus,
    weigh_running_text,
)
from toy_vocabularies import toy_vocabulary, toy_word

VOCABULARY = toy_vocabulary(np.arange(12.0)[:, None], special=(11,))


@pytest.mark.parametrize("count", [1, 5, 100, 1000])
def test_a_sample_holds_each_token_as_often_as_its_share_says_up_to_one(count, rng):
    shares = rng.dirichlet(np.full(20, 0.5))
    weighting = Weighting(token_ids=np.arange(100, 120), shares=shares, source="")
    counts = np.bincount(weighting.sample(count), minlength=120)[100:]
    assert counts.sum() == count
    assert np.abs(counts - count * shares).max() <= 1


def test_the_shares_over_the_table_are_those_of_the_tokens():
    weighting = Weighting(token_ids=np.array([1, 3]), shares=np.array([0.25, 0.75]), source="")
    assert weighting.over_table(5).tolist() == [0, 0.25, 0, 0.75, 0]


def test_common_words_are_the_first_whole_words_each_the_same(bert_tiny):
    weighting = weigh_common_words(bert_tiny, count=500)
    tokens = bert_tiny.tokens(weighting.token_ids.tolist())
    assert len(tokens) == 500
    assert {"the", "and", "film"} <= set(tokens)
    assert all(token.isalpha() and len(token) > 1 for token in tokens)
    assert np.allclose(weighting.shares, 1 / 500)
    assert "first 500 whole words" in weighting.source


def test_running_text_weighs_tokens_as_often_as_they_run(bert_tiny):
    weighting = weigh_running_text(bert_tiny)
    words = read_running_words()
    assert sum(words.values()) == 10_000
    assert weighting.shares.sum() == pytest.approx(1)
    assert not weighting.private
    (the,), (doctor,) = bert_tiny.encode(["the", "doctor"])
    shares = weighting.over_table(bert_tiny.size)
    assert shares[the] == pytest.approx(words["the"] / 10_000, rel=0.2)  # words of pieces make more tokens than words
    assert shares[the] > 50 * shares[doctor]


def test_a_vocabulary_that_does_not_know_running_text_takes_every_token_and_says_so():
    weighting = weigh_running_text(VOCABULARY)
    assert weighting.token_ids.tolist() == list(range(11))
    assert "all 11 tokens" in weighting.source


def test_every_token_is_every_eligible_one():
    assert weigh_all(VOCABULARY).token_ids.tolist() == list(range(11))


@pytest.mark.parametrize("private", [False, True])
def test_the_words_of_a_corpus_are_counted_and_a_private_one_says_so(tmp_path, private):
    path = tmp_path / "texts.csv"
    words = [toy_word(2)] * 600 + [toy_word(5)] * 200
    path.write_text("text\n" + "".join(f"{word} {word}\n" for word in words))
    weighting = weigh_corpus(path, VOCABULARY, private=private)
    assert weighting.token_ids.tolist() == [2, 5]
    assert weighting.shares.tolist() == [0.75, 0.25]
    assert weighting.private == private
    assert ("PRIVATE" in weighting.source) == private
    assert "1,600 tokens" in weighting.source
    assert toy_word(2) not in repr(weighting)


def test_a_corpus_without_a_word_is_refused(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n  ,a\n")
    with pytest.raises(CorpusError, match="at least one token"):
        weigh_corpus(path, VOCABULARY, private=False)


def test_no_word_is_refused():
    with pytest.raises(UsageError, match="at least 1 word"):
        weigh_common_words(VOCABULARY, count=0)
