import numpy as np
import pytest

from rapt.errors import UsageError
from rapt.local.plain_tokens import draw_plain_tokens, plan_plain_tokens
from rapt.local.randomness import insecure_stream
from rapt.wire.manifest import NO_PLAIN_TOKENS
from significance import assert_counts


def plan(vocabulary, rng, *, count=6, pool_size=40, drawn="record"):
    return plan_plain_tokens(vocabulary, count=count, pool_size=pool_size, drawn=drawn, rng=rng)


def test_the_pool_is_the_first_whole_words(bert_tiny, rng):
    pool = plan(bert_tiny, rng, pool_size=200).pool
    words = bert_tiny.tokens(pool)
    assert words[:5] == ["the", "of", "and", "in", "to"]
    assert all(len(word) > 1 and word.isalpha() for word in words)
    assert list(pool) == sorted(set(pool))
    assert np.isin(pool, bert_tiny.eligible).all()


def test_one_sequence_serves_the_file_when_it_is_drawn_for_the_file(bert_tiny, rng):
    plain = plan(bert_tiny, rng, drawn="file")
    assert len(plain.fixed) == 6
    assert set(plain.fixed) <= plain.pool_set
    assert draw_plain_tokens(plain, rng) == draw_plain_tokens(plain, rng) == plain.fixed


def test_every_record_has_its_own_when_they_are_drawn_for_records(bert_tiny, rng):
    plain = plan(bert_tiny, rng)
    assert plain.fixed is None
    draws = {draw_plain_tokens(plain, rng) for _ in range(50)}
    assert len(draws) == 50
    assert all(len(draw) == 6 and set(draw) <= plain.pool_set for draw in draws)


@pytest.mark.parametrize("drawn", ["file", "record"])
def test_draws_are_uniform_over_the_pool(bert_tiny, drawn, rng):
    tokens = []
    for _ in range(20 if drawn == "file" else 1):
        plain = plan(bert_tiny, rng, count=1_000, pool_size=30, drawn=drawn)
        for _ in range(1 if drawn == "file" else 20):
            tokens += draw_plain_tokens(plain, rng)
    counts = np.bincount(np.searchsorted(plain.pool, tokens), minlength=30)
    assert_counts(counts, np.full(30, 1 / 30))


@pytest.mark.parametrize("seed", range(5))
def test_the_uniformity_test_can_fail(seed):
    skewed = np.random.default_rng(seed).integers(30, size=20_000) // 2 * 2  # every second word is missing
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(np.bincount(skewed, minlength=30), np.full(30, 1 / 30))


def test_a_count_of_zero_plans_none(bert_tiny, rng):
    assert plan(bert_tiny, rng, count=0) == NO_PLAIN_TOKENS
    assert draw_plain_tokens(NO_PLAIN_TOKENS, rng) == ()


def test_a_seed_repeats_the_plan(bert_tiny):
    first, second = (plan(bert_tiny, insecure_stream(9).generator, drawn="file") for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": -1}, "at least 0, got count=-1"),
        ({"pool_size": 0}, "at least 1 word, got pool_size=0"),
        ({"pool_size": 30_000}, r"at most the \d+ words of model='bert-tiny', got pool_size=30000"),
        ({"drawn": "once"}, "got drawn='once'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(bert_tiny, rng, wrong, message):
    with pytest.raises(UsageError, match=message):
        plan(bert_tiny, rng, **wrong)
