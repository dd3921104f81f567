"""Attacks that name a text, a word that comes back, or a telling word: against closed forms, twins and chance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from audit_material import privatized_view, public_of, scattered_vocabulary, several_texts_view, view_of, zipf_prior
from rapt.audit.attacks.desk import Desk
from rapt.audit.attacks.questions import flag_words, link_texts, name_aligned, name_repeated
from rapt.audit.audit import audit_view
from rapt.audit.intervals import independent_share
from rapt.audit.judge.questions import count_repeats, line_up, score_keywords, score_linkage, score_repeated
from rapt.audit.telling_words import SURE, TELLING_WORDS, WordList, make_word_list
from rapt.audit.view import Lineup
from rapt.errors import AuditError
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from significance import ALPHA
from toy_vocabularies import toy_vocabulary, toy_word

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
        return [independent_share(guess[count] == true) for count in (1, 10, 30)]

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


def test_a_counted_channel_is_said_to_be_the_reason_why_it_did_not_run(vocabulary):
    view, truth = privatized_view(
        vocabulary, texts_without_repetition().ravel(), eta=5.0, mechanism="vickrey", public=public_of([[0, 1]])
    )
    report = audit_view(view, truth, attacks=["embedding_inversion", "repetition"])
    assert report.repetition is None
    assert "is counted" in {skipped.attack: skipped.reason for skipped in report.skipped}["repetition"]


SIZE, TEXTS, LENGTH = 60, 80, 10
MECHANISMS = ("laplace", "exponential", "santext")


@pytest.fixture(scope="module")
def line_up_vocabulary():
    return scattered_vocabulary(size=SIZE, dim=6)


def texts_of(count, *, seed):
    return np.random.default_rng(seed).integers(0, SIZE, (count, LENGTH))


def linked(view, truth, *, seed=0):
    lineup, answers = line_up(view, truth, seed=seed)
    guess = link_texts(Desk(view, seed=seed), lineup)
    return score_linkage(guess.places, guess.probabilities, lineup=lineup, answers=answers)


def attacked(line_up_vocabulary, *, eta, mechanism="laplace", seed=0):
    true, others = texts_of(TEXTS, seed=1), texts_of(300, seed=2)
    return privatized_view(
        line_up_vocabulary, true.ravel(), eta=eta, mechanism=mechanism, public=public_of(others), seed=seed
    )


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_with_hardly_any_noise_every_text_is_recognized(mechanism, line_up_vocabulary):
    found = linked(*attacked(line_up_vocabulary, eta=200.0, mechanism=mechanism))
    assert found.first.value == 1
    assert found.believed == pytest.approx(1, abs=0.01)
    assert (found.first.n, found.candidates) == (TEXTS, TEXTS + 300)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_with_nothing_but_noise_a_text_is_recognized_by_chance(mechanism, line_up_vocabulary):
    found = linked(*attacked(line_up_vocabulary, eta=0.001, mechanism=mechanism))
    assert found.first.low <= found.chance == pytest.approx(1 / 380)
    assert not found.beats_length


def test_with_a_closed_channel_the_attack_is_the_best_there_is(line_up_vocabulary):
    # Every candidate has the length of the text: the best attacker names the largest product of P(y|x), and is right
    # with the probability that he gives to it.
    view, truth = attacked(line_up_vocabulary, eta=5.0, mechanism="exponential")
    lineup, answers = line_up(view, truth, seed=0)
    mechanism = make_mechanism("exponential", line_up_vocabulary=line_up_vocabulary, eta=5.0)
    channel = mechanism.log_probabilities(np.arange(SIZE))
    score = np.array([[channel[x, seen].sum() for x in lineup.contents] for seen in map(list, view.texts)])
    best = np.exp(score - score.max(axis=1, keepdims=True))
    guess = link_texts(Desk(view, seed=0), lineup)
    assert guess.places.tolist() == score.argmax(axis=1).tolist()
    assert guess.probabilities == pytest.approx(1 / best.sum(axis=1), rel=1e-3)
    found = score_linkage(guess.places, guess.probabilities, lineup=lineup, answers=answers)
    assert found.first.low <= found.believed <= found.first.high
    assert found.beats_length


def test_the_rough_channel_is_about_as_sure_as_it_is_right(line_up_vocabulary):
    found = linked(*attacked(line_up_vocabulary, eta=2.5))
    assert 0.1 < found.first.value < 0.95
    assert abs(found.believed - found.first.value) < 0.2


def test_the_linked_text_does_not_change_with_the_truth(line_up_vocabulary):
    # The line-up is in random order and holds the true texts unmarked; nothing else of the truth is at hand.
    view, truth = attacked(line_up_vocabulary, eta=4.0)
    lineup, _ = line_up(view, truth, seed=0)
    turned = Lineup(contents=lineup.contents[::-1])
    first, second = (link_texts(Desk(view, seed=0), one) for one in (lineup, turned))
    assert (len(lineup.contents) - 1 - second.places).tolist() == first.places.tolist()


def test_length_alone_is_the_chance_of_texts_of_different_lengths(line_up_vocabulary):
    texts = [([1, 2],), ([3, 4],), ([5, 6, 7],)]
    view, truth = several_texts_view(line_up_vocabulary, texts, parts=("first",), eta=0.001)
    found = linked(view, truth)
    assert found.chance == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found.blind == pytest.approx(1 / 3)


def test_equal_texts_are_one_candidate_and_a_text_without_tokens_is_not_counted(line_up_vocabulary):
    texts = [([1, 2],), ([1, 2],), ([],), ([5, 6],)]
    view, truth = several_texts_view(line_up_vocabulary, texts, parts=("first",), eta=200.0)
    found = linked(view, truth)
    assert (found.candidates, found.first.n, found.first.value) == (2, 3, 1.0)


def test_an_audit_of_a_part_keeps_each_text_with_its_answer(line_up_vocabulary, monkeypatch):
    monkeypatch.setattr("rapt.audit.questions.MOST_LINKED_TOKENS", 100)
    view, truth = attacked(line_up_vocabulary, eta=200.0)
    found = audit_view(view, truth, attacks=["embedding_inversion", "linkage"]).linkage
    assert (found.first.n, found.first.value) == (10, 1.0)


def test_a_counted_channel_is_said_to_be_the_reason_why_no_text_was_linked(line_up_vocabulary):
    view, truth = attacked(line_up_vocabulary, eta=5.0, mechanism="vickrey")
    report = audit_view(view, truth, attacks=["embedding_inversion", "linkage"])
    assert report.linkage is None
    assert "is counted" in {skipped.attack: skipped.reason for skipped in report.skipped}["linkage"]


SIZE, TOKENS, ETA = 20, 4_000, 9.0  # the attacker weighs 24 words for each token: here all
WORDS = WordList(kinds=("one", "other"), words=((2,), (5,), (9,), (13,)), kind=(0, 0, 1, 1))


def drawn(*, seed=0):
    return np.random.default_rng(seed).choice(SIZE, TOKENS, p=zipf_prior(SIZE).probabilities)


def looked_for(view, truth, *, words=WORDS):
    places, numbers = flag_words(Desk(view, seed=0), words)
    return score_keywords(places, numbers, words=words, view=view, truth=truth)


def found_at(vocabulary, *, eta, mechanism="exponential", seed=0):
    return looked_for(
        *privatized_view(vocabulary, drawn(seed=seed), eta=eta, mechanism=mechanism, prior=zipf_prior(SIZE))
    )


def best_possible_flags(vocabulary, *, eta, words=WORDS):
    """Share of the uses that are flagged, and false alarms a token, in the closed form of Bayes' rule."""
    channel = np.exp(make_mechanism("exponential", vocabulary=vocabulary, eta=eta).log_probabilities(np.arange(SIZE)))
    joint = zipf_prior(SIZE).probabilities[:, None] * channel
    posterior = joint / joint.sum(axis=0)
    listed = [word for (word,) in words.words]
    flagged = posterior[listed] >= SURE
    found = (joint[listed] * flagged).sum() / joint[listed].sum()
    return found, (joint.sum(axis=0) * flagged * (1 - posterior[listed])).sum()


def test_with_a_closed_channel_as_many_uses_are_found_as_bayes_rule_finds(vocabulary):
    found, false = best_possible_flags(vocabulary, eta=ETA)
    assert 0.1 < found < 0.9
    assert 0 < false
    result = found_at(vocabulary, eta=ETA)
    assert result.everything.found.low <= found <= result.everything.found.high
    assert result.everything.false_alarms <= 2 * TOKENS * false + 10
    assert result.beats_blind


@pytest.mark.parametrize("seed", range(5))
def test_an_attacker_with_another_channel_flags_wrongly_more_often_than_stated(vocabulary, seed):
    # The file was made of the rows of other words than the table that the attacker goes by.
    shifted = (drawn(seed=seed) + 1) % SIZE
    made = make_mechanism("exponential", vocabulary=vocabulary, eta=ETA)
    released = made.privatize(shifted, rng=np.random.default_rng(seed))
    twin = looked_for(
        *view_of(vocabulary, drawn(seed=seed), released, eta=ETA, mechanism="exponential", prior=zipf_prior(SIZE))
    )
    sound = found_at(vocabulary, eta=ETA, seed=seed)
    flags = sound.everything.blind * TOKENS
    assert sound.everything.false_alarms <= 0.2 * flags
    assert twin.everything.false_alarms > 0.5 * flags
    assert not twin.beats_blind


@pytest.mark.parametrize("mechanism", ["laplace", "exponential", "mahalanobis"])
def test_with_hardly_any_noise_every_use_is_found_and_nothing_else_is_flagged(mechanism, vocabulary):
    found = found_at(vocabulary, eta=200.0, mechanism=mechanism)
    assert found.everything.found.value == 1
    assert found.everything.false_alarms == 0
    assert 0 < found.most_false_alarms < 60_000 * 5 / TOKENS
    assert (
        sum(kind.found.n for kind in found.kinds) == found.everything.found.n == np.isin(drawn(), [2, 5, 9, 13]).sum()
    )


def test_with_nothing_but_noise_nothing_is_flagged(vocabulary):
    found = found_at(vocabulary, eta=0.001)
    assert found.everything.found.value == 0 == found.everything.blind
    assert not found.beats_blind


def test_context_finds_more(vocabulary):
    # After a 7 comes a 9, always: what is seen of the word before it tells.
    tokens = drawn()
    tokens[:-1][tokens[1:] == 9] = 7
    public = drawn(seed=1)
    public[:-1][public[1:] == 9] = 7
    nine = WordList(kinds=("nine",), words=((9,),), kind=(0,))
    alone = privatized_view(vocabulary, tokens, eta=ETA, mechanism="exponential", prior=zipf_prior(SIZE))
    read = privatized_view(
        vocabulary, tokens, eta=ETA, mechanism="exponential", public=public_of(np.split(public, 400))
    )
    less, more = (looked_for(*one, words=nine).everything.found for one in (alone, read))
    assert more.value > less.value + 0.1


def test_the_flags_do_not_change_with_the_truth(vocabulary):
    view, _ = privatized_view(vocabulary, drawn(), eta=ETA, prior=zipf_prior(SIZE))
    first, second = (flag_words(Desk(view, seed=0), WORDS) for _ in range(2))
    assert first[0].tolist() == second[0].tolist()


def test_words_of_several_pieces_are_found_whole_and_parts_of_other_words_are_not():
    vocabulary = load_vocabulary("minilm")
    words = make_word_list(vocabulary, {"health": ["mastectomy", "god"]})
    assert [len(word) for word in words.words] == [3, 1]
    content = vocabulary.encode(["a mastectomy of a god or godling"])[0]
    view, truth = privatized_view(vocabulary, content, eta=400.0, prior=None)
    assert len(vocabulary.encode(["godling"])[0]) > 1  # it begins with the token of "god"
    assert looked_for(view, truth, words=words).everything.found.n == 2


def test_a_list_keeps_what_the_vocabulary_knows_and_shows_none_of_it():
    vocabulary = load_vocabulary("minilm")
    words = make_word_list(vocabulary, {"mine": ["God", "god", "\U0001f600", ""], "other": ["my secret"]})
    assert [len(word) for word in words.words] == [1, 2]
    assert words.kind == (0, 1)
    assert "secret" not in repr(words)
    assert all(len(kind) >= 15 for kind in TELLING_WORDS.values())
    with pytest.raises(AuditError, match="a word that the vocabulary knows"):
        make_word_list(vocabulary, {"mine": ["\U0001f600"]})
    with pytest.raises(AuditError, match="at most 10,000 words"):
        make_word_list(vocabulary, {"mine": ["god"] * 10_001})


def test_an_audit_takes_a_list_and_its_report_holds_counts(vocabulary):
    view, truth = privatized_view(vocabulary, drawn(), eta=ETA, prior=zipf_prior(SIZE))
    report = audit_view(view, truth, attacks=["bayes", "keywords"], words={"mine": [toy_word(2), toy_word(5)]})
    assert report.keywords.listed == 2
    assert report.keywords.everything.found.n == np.isin(drawn(), [2, 5]).sum()
    assert toy_word(5) not in repr(report)
