"""Exact draws from an exponential mechanism: the law that the bytes and whole numbers really have, and twins."""

import pickle

import numpy as np
import pytest

from channel_checks import LINE, SPECIAL, assert_drawn_as_stated
from rapt.local.mechanisms import exact_draws
from rapt.local.mechanisms.exact_draws import ExactDraws
from rapt.local.mechanisms.exponential import make_exponential
from rapt.local.mechanisms.metric import LARGEST_DROP, PublicMetric, Scores
from significance import assert_counts
from toy_vocabularies import toy_vocabulary

SEEDS = range(5)


def scores_of(table, *, beta, log_prior=None):
    rows = np.asarray(table, dtype=np.float32)
    return Scores(metric=PublicMetric(embeddings=rows), eligible=np.arange(len(rows)), beta=beta, log_prior=log_prior)


def law_of(draws, x):
    """log P(y|x) from what a draw really does: bound times threshold, in whole numbers of any size."""
    draws._keep(np.array([x]))
    codes = draws._codes[draws._slot[x]][: len(draws._scores.eligible)]
    raised = draws._scores.pairs(np.full(len(codes), x), np.arange(len(codes))) + draws._raise[draws._slot[x]]
    weights = np.exp(raised)
    shares = weights * (exact_draws._TOP / draws._bound[codes])
    assert (shares < 1).all(), "a bound is below its weight"
    thresholds = [
        max(int(share * 2.0**64), int(draws._certain[code])) for share, code in zip(shares, codes, strict=True)
    ]
    exact = [int(draws._bound[code]) * threshold for code, threshold in zip(codes, thresholds, strict=True)]
    total = sum(exact)
    assert min(exact) > 0
    return np.log(np.array([value / total for value in exact])), np.array(thresholds), codes


@pytest.mark.parametrize("beta", [1e-3, 0.5, 7.0, 60.0, 5e3, 1e8])
@pytest.mark.parametrize("with_prior", [False, True])
def test_the_law_of_the_draws_is_that_of_the_scores_to_two_to_the_minus_20(beta, with_prior, rng):
    table = rng.standard_normal((300, 8))
    log_prior = rng.uniform(-20 * np.log(2), 0, 300) if with_prior else None
    scores = scores_of(table, beta=beta, log_prior=log_prior)
    draws = ExactDraws(scores)
    for x in (0, 17, 299):
        law, _, _ = law_of(draws, x)
        stated = scores.log_probabilities(np.array([x]))[0]
        assert np.abs(law - stated).max() < 2.0**-20
        if log_prior is None:
            assert np.abs(law - stated).max() < 1e-11


def test_what_is_accepted_unseen_would_be_accepted(bert_tiny, rng):
    draws = ExactDraws(
        Scores(metric=PublicMetric(embeddings=bert_tiny.embeddings), eligible=bert_tiny.eligible, beta=7.0)
    )
    for x in rng.integers(bert_tiny.size, size=3):
        draws._keep(np.array([x]))
        codes = draws._codes[draws._slot[x]][: len(bert_tiny.eligible)]
        weights = np.exp(
            draws._scores.pairs(np.full(len(codes), x), np.arange(len(codes))) + draws._raise[draws._slot[x]]
        )
        shares = weights * (exact_draws._TOP / draws._bound[codes])
        assert (shares < 1).all()
        assert (draws._certain[codes] < shares * 2.0**64).all()


def test_no_output_is_less_likely_than_the_largest_drop_allows(rng):
    table = np.concatenate([rng.standard_normal((50, 3)), [[1e4, 0, 0]]])
    scores = scores_of(table, beta=3.0)
    law, thresholds, _ = law_of(ExactDraws(scores), 0)
    assert law.min() > -LARGEST_DROP - np.log(51)
    assert thresholds.min() > 2**40


def test_the_draws_follow_the_scores_on_a_vocabulary_of_many_blocks(rng):
    table = rng.standard_normal((1000, 6))
    scores = scores_of(table, beta=0.3)
    out = ExactDraws(scores).draw(np.full(300_000, 3), rng)
    assert_counts(np.bincount(out, minlength=1000), np.exp(scores.log_probabilities(np.array([3]))[0]))


def test_a_token_far_from_every_output_is_drawn_for_as_fast_as_any(rng):
    table = np.concatenate([rng.standard_normal((40, 3)), [[50.0, 0, 0]]]).astype(np.float32)
    scores = Scores(metric=PublicMetric(embeddings=table), eligible=np.arange(40), beta=0.5)
    far = ExactDraws(scores)
    out = far.draw(np.full(50_000, 40), rng)
    assert_counts(np.bincount(out, minlength=40), np.exp(scores.log_probabilities(np.array([40]))[0]))
    law, _, codes = law_of(far, 40)
    assert codes.min() == 0
    assert np.abs(law - scores.log_probabilities(np.array([40]))[0]).max() < 1e-11


class EveryProposal(ExactDraws):
    """A twin that accepts whatever is proposed."""

    def _propose(self, token_ids, rng):
        place, _ = super()._propose(token_ids, rng)
        inside = place < len(self._scores.eligible)
        return np.where(inside, place, 0), np.ones(len(place), dtype=bool)


class OneChanceForAll(ExactDraws):
    """A twin whose tokens share one number: each has the right law, together they do not."""

    def _propose(self, token_ids, rng):
        state = rng.bit_generator.state
        parts = []
        for i in range(len(token_ids)):
            rng.bit_generator.state = state
            parts.append(super()._propose(token_ids[i : i + 1], rng))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_test_of_the_draws_sees_proposals_that_are_all_accepted(seed):
    table = np.random.default_rng(seed).standard_normal((30, 6))
    scores = scores_of(table, beta=0.3)
    out = EveryProposal(scores).draw(np.full(300_000, 3), np.random.default_rng(seed))
    with pytest.raises(AssertionError, match="rejects"):
        assert_counts(np.bincount(out, minlength=30), np.exp(scores.log_probabilities(np.array([3]))[0]))


def joint_counts(draws, rng, *, size=4000):
    out = draws.draw(np.zeros(2 * size, dtype=np.int64), rng)
    return np.bincount(out[0::2] * 3 + out[1::2], minlength=9)


def test_tokens_are_drawn_independently_of_each_other(rng):
    scores = scores_of([[0.0], [0.5], [1.0]], beta=1.0)
    one = np.exp(scores.log_probabilities(np.array([0]))[0])
    assert_counts(joint_counts(ExactDraws(scores), rng), np.outer(one, one).ravel())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_test_of_independence_can_fail(seed):
    scores = scores_of([[0.0], [0.5], [1.0]], beta=1.0)
    one = np.exp(scores.log_probabilities(np.array([0]))[0])
    with pytest.raises(AssertionError, match="rejects"):
        assert_counts(
            joint_counts(OneChanceForAll(scores), np.random.default_rng(seed), size=400), np.outer(one, one).ravel()
        )


def test_what_is_kept_changes_no_draw(rng):
    scores = scores_of(rng.standard_normal((500, 5)), beta=2.0)
    ids = rng.integers(500, size=5_000)
    for budget in (2**20, 1):
        used, fresh = (ExactDraws(scores, cache_bytes=budget) for _ in range(2))
        used.draw(rng.integers(500, size=3_000), rng)
        first = used.draw(ids, np.random.default_rng(1))
        assert (first == used.draw(ids, np.random.default_rng(1))).all()
        assert (first == fresh.draw(ids, np.random.default_rng(1))).all()
    assert used._capacity == 64
    assert (np.flatnonzero(used._slot >= 0) == np.sort(used._owner)).all()
    assert (used._slot[used._owner] == np.arange(64)).all()


def test_memory_stays_within_the_budget(bert_tiny):
    scores = Scores(metric=PublicMetric(embeddings=bert_tiny.embeddings), eligible=bert_tiny.eligible, beta=5.0)
    draws = ExactDraws(scores, cache_bytes=4_000_000)
    draws.draw(bert_tiny.eligible[:300], np.random.default_rng(0))
    assert draws._codes.nbytes + draws._ends.nbytes <= 4_000_000
    assert (draws._slot >= 0).sum() == draws._capacity == 127


def test_a_pickled_copy_knows_no_tokens_and_draws_the_same(rng):
    scores = scores_of(rng.standard_normal((100, 4)), beta=2.0)
    draws = ExactDraws(scores, cache_bytes=10_000)
    before = draws.draw(np.arange(100), np.random.default_rng(3))
    copy = pickle.loads(pickle.dumps(draws))
    assert copy._codes is None
    assert (copy._slot == -1).all()
    assert (copy.draw(np.arange(100), np.random.default_rng(3)) == before).all()


@pytest.mark.parametrize("outputs", [1, 2, 63, 64, 65, 128, 129, 300])
def test_blocks_that_are_full_or_not_give_the_same_law(outputs, rng):
    scores = scores_of(np.linspace(0, 1, outputs)[:, None], beta=2.0)
    out = ExactDraws(scores).draw(np.zeros(20_000, dtype=np.int64), rng)
    assert_counts(np.bincount(out, minlength=outputs), np.exp(scores.log_probabilities(np.array([0]))[0]))


def test_weights_that_are_all_alike_do_not_overflow(rng):
    scores = scores_of(np.zeros((70_000, 1)), beta=1e-9)
    out = ExactDraws(scores).draw(np.zeros(100_000, dtype=np.int64), rng)
    assert_counts(np.bincount(out // 7_000, minlength=10), np.full(10, 0.1))


def test_the_mechanism_draws_what_it_states(rng):
    vocabulary = toy_vocabulary(LINE, special=SPECIAL)
    assert_drawn_as_stated(make_exponential(vocabulary=vocabulary, eta=3.0), vocabulary, rng)
