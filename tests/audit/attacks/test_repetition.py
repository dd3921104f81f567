"""Words that come back: named as surely as Bayes' rule allows, found where they stand, and nowhere where none does."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from audit_material import privatized_view, public_of, scattered_vocabulary, several_texts_view, view_of, zipf_prior
from rapt.audit.attacks.desk import Desk
from rapt.audit.attacks.questions import name_aligned, name_repeated
from rapt.audit.audit import audit_view
from rapt.audit.intervals import compute_independent_share
from rapt.audit.judge.questions import count_repeats, score_repeated
from rapt.local.mechanisms import make_mechanism
from significance import ALPHA
from toy_vocabularies import toy_vocabulary

SIZE, LENGTH, TEXTS = 40, 10, 60
SEEDS = range(5)
RUN_OF_WORDS = (31, 7, 22, 38, 15)


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=SIZE, dim=3)


def texts_without_repetition(*, seed=0, texts=TEXTS):
    return np.random.default_rng(seed).choice(SIZE, (texts, LENGTH), p=zipf_prior(SIZE).probabilities)


def with_a_run(*, records, at, seed=0):
    """Texts, some of which hold one run, at the same place or at any."""
    rng = np.random.default_rng([seed, 1])
    texts = texts_without_repetition(seed=seed)
    for record in rng.permutation(TEXTS)[:records]:
        start = at if at is not None else rng.integers(0, LENGTH - len(RUN_OF_WORDS) + 1)
        texts[record, start : start + len(RUN_OF_WORDS)] = RUN_OF_WORDS
    return texts


def view_of_texts(vocabulary, texts, *, eta, seed=0, mechanism="exponential"):
    return privatized_view(vocabulary, texts.ravel(), eta=eta, seed=seed, mechanism=mechanism, prior=zipf_prior(SIZE))


def desk_of(vocabulary, *, eta, mechanism="exponential", tokens=(0, 1, 2)):
    return Desk(privatized_view(vocabulary, tokens, eta=eta, mechanism=mechanism, prior=zipf_prior(SIZE))[0], seed=0)


# Releases that are known to belong together.


def best_possible(channel, prior, releases):
    """Success of the best guess from so many releases: the sum over all outcomes of the largest joint probability."""
    outcomes = product(range(channel.shape[1]), repeat=releases)
    return sum((prior * channel[:, list(outcome)].prod(axis=1)).max() for outcome in outcomes)


def test_with_a_closed_channel_no_guess_from_several_releases_is_better():
    small = toy_vocabulary([[0.0], [1.0], [2.5], [4.0]])
    made = make_mechanism("exponential", vocabulary=small, eta=1.5)
    prior = zipf_prior(4)
    desk = Desk(privatized_view(small, [0, 1, 2], eta=1.5, mechanism="exponential", prior=prior)[0], seed=0)
    channel = np.exp(made.log_probabilities(np.arange(4)))
    rng = np.random.default_rng(5)
    true = rng.choice(4, 4_000, p=prior.probabilities)
    copies = made.privatize(np.repeat(true, 5), rng=rng).reshape(-1, 5)
    named = name_aligned(desk, copies, counts=(1, 2, 5))
    for releases in (1, 2, 5):
        best = best_possible(channel, prior.probabilities, releases)
        hits = int((named[releases] == true).sum())
        assert stats.binomtest(hits, len(true), best).pvalue > ALPHA
    assert best_possible(channel, prior.probabilities, 5) > best_possible(channel, prior.probabilities, 1) + 0.1


@pytest.mark.parametrize("mechanism", ["laplace", "exponential", "santext"])
def test_the_more_releases_the_more_is_named_and_noise_alone_names_nothing(mechanism, vocabulary):
    def named(eta):
        made = make_mechanism(mechanism, vocabulary=vocabulary, eta=eta, allow_unproved=True)
        rng = np.random.default_rng(2)
        true = rng.choice(SIZE, 300, p=zipf_prior(SIZE).probabilities)
        copies = made.privatize(np.repeat(true, 30), rng=rng).reshape(-1, 30)
        guess = name_aligned(desk_of(vocabulary, eta=eta, mechanism=mechanism), copies, counts=(1, 10, 30))
        return [compute_independent_share(guess[count] == true) for count in (1, 10, 30)]

    one, ten, thirty = named(4.0)
    assert one.high < ten.low
    assert ten.value <= thirty.value
    assert thirty.value > one.value + 0.2
    chance = zipf_prior(SIZE).probabilities[0]
    assert all(share.low <= chance + 0.05 for share in named(0.001))


# Releases that have to be found.


def test_a_word_at_one_place_of_the_texts_is_named_from_all_of_them(vocabulary):
    texts = texts_without_repetition()
    texts[:, 3] = 31
    view, _ = view_of_texts(vocabulary, texts, eta=6.0)
    guess = name_repeated(Desk(view, seed=0))
    column = np.arange(TEXTS) * LENGTH + 3
    assert (guess.token_ids[column] == 31).mean() > 0.95
    assert guess.aligned[column].mean() > 0.95
    assert (view.observed[column] == 31).mean() < 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_at_any_place_is_found_by_its_neighbours(vocabulary, seed):
    texts = with_a_run(records=40, at=None, seed=seed)
    view, truth = view_of_texts(vocabulary, texts, eta=7.0, seed=seed)
    there = count_repeats(view, truth)[0] >= 10
    assert there.sum() >= 40 * len(RUN_OF_WORDS)
    found = name_repeated(Desk(view, seed=seed))
    alone = Desk(view, seed=seed).channel().rank_sources(view.prior.probabilities)[:, 0]
    by_itself = alone[np.searchsorted(np.unique(view.observed), view.observed)]
    right, before = (float((guess[there] == truth.token_ids[there]).mean()) for guess in (found.token_ids, by_itself))
    assert right > before + 0.15
    # The twin: the same releases in random order, which has the words as often and no neighbours.
    order = np.random.default_rng(seed).permutation(len(truth.token_ids))
    true, released, there = truth.token_ids[order], view.observed[order], there[order]
    apart, its_truth = view_of(vocabulary, true, released, eta=7.0, mechanism="exponential", prior=zipf_prior(SIZE))
    assert count_repeats(apart, its_truth)[0].max() < 10
    again = name_repeated(Desk(apart, seed=seed)).token_ids
    assert float((again[there] == true[there]).mean()) < before + 0.1


def test_where_nothing_comes_back_hardly_ever_a_column_is_believed(vocabulary):
    # Odds that are right exceed 100 times the number of columns once in a hundred files.
    wrong = 0
    for seed in range(20):
        view, _ = view_of_texts(vocabulary, texts_without_repetition(seed=seed), eta=3.0, seed=seed)
        wrong += bool(name_repeated(Desk(view, seed=seed)).aligned.any())
    assert wrong <= stats.binom.isf(ALPHA, 20, 0.02)


def test_the_guess_does_not_change_with_the_truth(vocabulary):
    view, _ = view_of_texts(vocabulary, with_a_run(records=30, at=2), eta=5.0)
    first, second = (name_repeated(Desk(view, seed=0)) for _ in range(2))
    assert first.token_ids.tolist() == second.token_ids.tolist()


# The judge.


def test_a_word_that_comes_back_is_counted_once_with_the_records_that_it_is_in(vocabulary):
    texts = with_a_run(records=12, at=2, seed=3)
    view, truth = view_of_texts(vocabulary, texts, eta=300.0)
    records, number = count_repeats(view, truth)
    there = records >= 10
    assert set(records[there]) == {12}
    assert len(set(number[there])) == len(RUN_OF_WORDS)
    assert there.sum() == 12 * len(RUN_OF_WORDS)


def test_a_run_in_two_texts_of_one_record_is_in_one_record(vocabulary):
    run = list(RUN_OF_WORDS)
    view, truth = several_texts_view(vocabulary, [(run, run)] * 6, parts=("first", "second"), eta=9.0)
    assert set(count_repeats(view, truth)[0]) == {6}


def test_words_are_named_when_most_of_their_places_are(vocabulary):
    texts = with_a_run(records=12, at=2, seed=3)
    view, truth = view_of_texts(vocabulary, texts, eta=300.0)
    wrong = truth.token_ids.copy()
    here = np.flatnonzero(truth.token_ids == 31)
    here = here[count_repeats(view, truth)[0][here] >= 10]
    wrong[here[:7]] = 0
    (row,) = score_repeated(wrong, alone=truth.token_ids, view=view, truth=truth)
    assert (row.records, row.named.value, row.named.n, row.alone) == (10, 0.8, 5, 1.0)
    assert row.blind == 0.2
    assert row.places == 60


def test_an_audit_says_what_repetition_costs_in_this_file(vocabulary):
    texts = with_a_run(records=40, at=2)
    view, truth = view_of_texts(vocabulary, texts, eta=5.0)
    found = audit_view(view, truth, attacks=["bayes", "repetition"]).repetition
    assert [row.records for row in found.own] == [10, 30]
    assert found.own[0].named.value > found.own[0].alone
    assert found.beats_blind
    assert [row.releases for row in found.fresh] == [1, 3, 10, 30]
    assert found.fresh[-1].named.value > found.fresh[0].named.value


def test_a_file_without_repetition_has_fresh_releases_alone(vocabulary):
    texts = np.random.default_rng(0).permutation(SIZE).reshape(-1, LENGTH)
    view, truth = view_of_texts(vocabulary, texts, eta=5.0)
    found = audit_view(view, truth, attacks=["bayes", "repetition"]).repetition
    assert found.own == ()
    assert not found.beats_blind
    assert found.fresh[-1].named.value > found.fresh[0].named.value


def test_a_channel_that_leaves_out_most_pairs_is_said_to_be_the_reason_why_it_did_not_run(vocabulary):
    view, truth = privatized_view(
        vocabulary, texts_without_repetition().ravel(), eta=5.0, mechanism="vickrey", public=public_of([[0, 1]])
    )
    report = audit_view(view, truth, attacks=["embedding_inversion", "repetition"])
    assert report.repetition is None
    assert "leaves out most pairs" in {skipped.attack: skipped.reason for skipped in report.skipped}["repetition"]
