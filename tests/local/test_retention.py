"""How much stays: closed forms on a line, channels that are known, and the order of kinds on a real table."""

import math

import numpy as np
import pytest
from scipy import stats

from rapt.errors import UsageError
from rapt.local.mechanisms import make_mechanism
from rapt.local.retention import (
    FIRST_NAMES,
    HEALTH_WORDS,
    STOP_WORDS,
    find_largest_eta,
    measure_kinds,
    measure_retention,
    measure_words,
)
from rapt.local.vocabulary import load_vocabulary
from toy_vocabularies import toy_vocabulary, toy_word

ALPHA = 1e-6
# Neighbours at distance 2, 2 and 6 on a line, and a row that is no output.
LINE = toy_vocabulary([[0.0], [2.0], [8.0], [1.0]], special=(3,))


def laplace(eta, vocabulary=LINE):
    return make_mechanism("laplace", vocabulary=vocabulary, eta=eta)


def stays_on_the_line(eta):
    """P(M(x) = x) of rows 0, 1 and 2 by the law of Laplace on a line."""
    below = stats.laplace(scale=1 / eta).cdf
    return [below(1), below(3) - below(-1), below(3)]


def test_a_token_stays_as_often_as_the_law_of_the_line_says(rng):
    draws = 40_000
    found = measure_retention(laplace(0.7), LINE, [2, 0, 1, 0], rng=rng, draws=draws)
    assert found.token_ids.tolist() == [0, 1, 2]
    for kept, expected in zip(found.kept, stays_on_the_line(0.7), strict=True):
        assert abs(kept - expected) < stats.norm.isf(ALPHA / 2) * math.sqrt(expected * (1 - expected) / draws)


@pytest.mark.parametrize("seed", range(5))
def test_the_law_of_the_line_rejects_a_tenth_more_noise(seed):
    found = measure_retention(laplace(0.63), LINE, [0], rng=np.random.default_rng(seed), draws=40_000)
    expected = stays_on_the_line(0.7)[0]
    assert abs(found.kept[0] - expected) > stats.norm.isf(ALPHA / 2) * math.sqrt(expected * (1 - expected) / 40_000)


@pytest.mark.parametrize("name", ["exponential", "santext", "tem"])
def test_a_closed_channel_is_read_and_not_drawn(name, rng):
    vocabulary = toy_vocabulary(rng.standard_normal((200, 3)), special=(5, 60))
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=4.0)
    found = measure_retention(mechanism, vocabulary, vocabulary.eligible, rng=rng, draws=1)
    assert found.draws == 0
    assert np.allclose(found.kept, np.exp(np.diag(mechanism.log_probabilities(vocabulary.eligible))))
    assert found.bound(0.4) == (0.4, 0.4)


def test_a_token_that_is_no_output_never_stays(rng):
    for name in ("laplace", "santext"):
        mechanism = make_mechanism(name, vocabulary=LINE, eta=2.0)
        assert measure_retention(mechanism, LINE, [3], rng=rng, draws=50).kept.tolist() == [0.0]


def test_the_interval_of_a_chance_covers_it(rng):
    expected = stays_on_the_line(0.7)[1]
    covered = 0
    for _ in range(200):
        found = measure_retention(laplace(0.7), LINE, [1], rng=rng, draws=100)
        low, high = found.bound(found.kept[0])
        covered += low <= expected <= high
    # Below 170 of 200 at a true coverage of 94 % happens less often than once in a million.
    assert covered >= stats.binom(200, 0.94).ppf(ALPHA)


def test_a_word_of_several_tokens_stays_if_all_of_them_do(rng):
    both = f"{toy_word(0)} {toy_word(2)}"
    one, two = measure_words(laplace(0.7), LINE, [both, toy_word(0)], rng=rng, draws=40_000)
    law = stays_on_the_line(0.7)
    assert (one.word, one.tokens, two.tokens) == (both, 2, 1)
    assert one.kept == pytest.approx(law[0] * law[2], abs=0.02)
    assert one.low < one.kept < one.high
    assert two.kept == pytest.approx(law[0], abs=0.02)


def test_a_word_that_is_named_twice_is_told_once(rng):
    assert len(measure_words(laplace(1.0), LINE, [toy_word(0), toy_word(0)], rng=rng, draws=10)) == 1
    assert measure_words(laplace(1.0), LINE, [], rng=rng) == ()


def test_a_word_without_a_token_is_named_by_its_place_alone(rng):
    with pytest.raises(UsageError, match="got none for word 1"):
        measure_words(laplace(1.0), LINE, [toy_word(0), "  "], rng=rng)


def test_the_largest_eta_is_where_the_law_of_the_line_crosses_the_target(rng):
    words = [toy_word(0), toy_word(2)]
    eta, chances = find_largest_eta(laplace, LINE, words, target=0.8, start=1.0, rng=rng)
    # Row 2 stays most often: its law crosses 0.8 at ln(2.5) / 3, and its interval keeps a little below.
    assert 0.9 * math.log(2.5) / 3 < eta < math.log(2.5) / 3
    assert max(chance.kept for chance in chances) < 0.83
    assert [chance.word for chance in chances] == words


@pytest.mark.parametrize(
    ("words", "target", "said"),
    [([], 0.5, "at least one word|a token in each"), ([""], 0.5, "a token in each"), (["wa"], 1.0, "between 0 and 1")],
)
def test_a_search_for_nothing_is_refused(words, target, said, rng):
    with pytest.raises(UsageError, match=said):
        find_largest_eta(laplace, LINE, words, target=target, start=1.0, rng=rng)


def test_topic_words_stay_more_often_than_stop_words_and_rare_words_are_not_the_ones_that_stay(rng):
    # The order that docs/guarantee.md states of the default table.
    vocabulary = load_vocabulary("minilm")
    found = {kind.kind: kind for kind in measure_kinds(laplace(75.0, vocabulary), vocabulary, rng=rng)}
    assert found["stop words"].high < found["rare words"].low
    assert found["rare words"].high < found["other words"].low
    assert found["numbers"].high < found["words of health"].low
    assert all(kind.low < kind.share < kind.high for kind in found.values())


def test_kinds_that_a_vocabulary_does_not_have_are_left_out(rng):
    assert measure_kinds(laplace(1.0), LINE, rng=rng) == ()


def test_the_lists_of_words_have_no_word_in_common():
    assert not set(HEALTH_WORDS) & set(FIRST_NAMES)
    assert not STOP_WORDS & {*HEALTH_WORDS, *FIRST_NAMES}
    assert len(set(HEALTH_WORDS)) == len(HEALTH_WORDS)
    assert len(set(FIRST_NAMES)) == len(FIRST_NAMES)
