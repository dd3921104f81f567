"""Attacks on codes reach what the channel allows, stay within their bounds, and break those of a program that leaks."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from code_material import code_bundle
from rapt.audit.codes.authors import link_authors, measure_area
from rapt.audit.codes.models import CrowdInClear, decide, find_canary, pair_texts, play_membership
from rapt.audit.codes.naming import (
    ALPHA,
    bound_belief,
    breaks_bound,
    measure_bits,
    name_repeated,
    name_texts,
)
from rapt.audit.codes.readers import Lesson, count_words, fit_linear, fit_neural, read_words, see_codes
from rapt.audit.intervals import compute_independent_share
from rapt.local.codes.subset import SubsetMechanism
from rapt.local.codes.text_statement import bound_guess

BUNDLE = code_bundle(size=64, run=4)


def mechanism(epsilon, preferred=8):
    return SubsetMechanism(bundle=BUNDLE, epsilon=epsilon, preferred=preferred)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def codes(count, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, 4)))


def test_a_belief_is_bounded_as_a_guess_among_many_is():
    for n, epsilon in product((2, 10, 1000), (0.1, 2.0, 8.0)):
        assert bound_belief(1 / n, epsilon=epsilon) == pytest.approx(bound_guess(epsilon, among=n))
    assert [bound_belief(share, epsilon=1.0) for share in (0.0, 1.0)] == [0.0, 1.0]


@pytest.mark.parametrize(("n", "bound"), [(50, 0.5), (1000, 0.02), (200, 0.9)])
def test_trials_within_their_bound_are_accused_less_often_than_agreed(n, bound):
    accused = [
        hits for hits in range(n + 1) if breaks_bound(compute_independent_share(np.arange(n) < hits), bound=bound)
    ]
    assert stats.binom.sf(min(accused) - 1, n, bound) < ALPHA if accused else bound > 0.9
    assert accused == list(range(n + 1))[-len(accused) :]
    assert breaks_bound(compute_independent_share(np.ones(n, dtype=bool)), bound=bound) == (
        n * -np.log(bound) > -np.log(ALPHA)
    )


def test_bits_are_the_information_between_a_text_and_its_release():
    made, points = mechanism(3.0), codes(40)
    chances = np.exp(made.log_probabilities(points))[:, 0]
    mixed = chances.mean(axis=0)
    assert measure_bits(made, points) == pytest.approx((chances * np.log2(chances / mixed)).sum(axis=1).mean())


def test_releases_of_one_text_add_up_as_far_as_the_channel_says():
    made, points = mechanism(2.0), codes(200)
    found = name_repeated(
        made, points, made.privatize(points, rng=np.random.default_rng(1)), rng=np.random.default_rng(2)
    )
    shares = [item.first.value for item in found]
    assert shares == sorted(shares)
    assert shares[-1] > 0.5
    assert [item.bound for item in found] == pytest.approx([bound_guess(2.0 * r, among=200) for r in (1, 3, 10, 30)])
    assert not any(breaks_bound(item.first, bound=item.bound) for item in found)


def test_a_program_that_spends_more_names_repeated_texts_beyond_the_bound():
    stated, spent, points = mechanism(0.5, preferred=1), mechanism(9.0, preferred=1), codes(60)
    rng = np.random.default_rng(0)
    released = np.stack([spent.privatize(points, rng=rng) for _ in range(3)])
    (found,) = name_texts(stated, points, released, among=(60,), rng=rng)
    assert breaks_bound(found.first, bound=found.bound)


def draw_authors(made, *, seed=0, authors=12, each=60, spread=0.3):
    """Texts of people who each write about a subject of their own."""
    rng = np.random.default_rng(seed)
    means = unit(rng.standard_normal((authors, 4)))
    names = np.repeat(np.arange(authors), each).astype(str)
    points = unit(np.repeat(means, each, axis=0) + spread * rng.standard_normal((authors * each, 4)))
    states = see_codes(made, made.privatize(points, rng=rng))[:, :-1]
    return states[::2], states[1::2], list(names[::2])


def test_codes_of_one_author_are_linked_the_better_the_more_there_are():
    learned, judged, names = draw_authors(mechanism(3.0))
    found = link_authors((learned, names), (judged, names), epsilon=3.0, rng=np.random.default_rng(0))
    assert [item.codes for item in found] == [1, 3]  # with 10 there are too few trials
    assert found[0].area.value < found[1].area.value - 0.05
    assert found[1].first.low > 0.5
    for item in found:
        assert item.bound == pytest.approx(1 / (1 + np.exp(-3.0 * item.codes)))
        assert not breaks_bound(item.first, bound=item.bound)


def test_people_who_write_alike_are_not_linked_and_a_leaking_program_links_them_beyond_the_bound():
    learned, judged, names = draw_authors(mechanism(3.0), spread=1e3)
    for item in link_authors((learned, names), (judged, names), epsilon=3.0, rng=np.random.default_rng(0)):
        assert item.area.low < 0.5 < item.area.high
    learned, judged, names = draw_authors(mechanism(12.0), spread=0.05)
    found = link_authors((learned, names), (judged, names), epsilon=0.1, rng=np.random.default_rng(0))
    assert breaks_bound(found[0].first, bound=found[0].bound)


def test_the_area_under_the_curve_counts_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(6, size=60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[truth] for b in scores[~truth]]
    area = measure_area(scores, truth)
    assert area.value == pytest.approx(np.mean(pairs))
    assert area.low < area.value < area.high


def test_a_network_reads_what_no_line_through_the_codeword_does():
    rng = np.random.default_rng(0)
    seen = np.concatenate([unit(rng.standard_normal((1200, 4))), np.ones((1200, 1))], axis=1)
    product_of_two = (seen[:, :1] * seen[:, 1:2] > 0).astype(np.float64)
    for fit, right in ((fit_linear, (0.35, 0.65)), (fit_neural, (0.9, 1.01))):
        said = fit([seen[:900]], product_of_two[:900], loss="occurs", seed=0)(seen[900:])
        agree = ((said > np.median(said)) == (product_of_two[900:] > 0)).mean()
        assert right[0] < agree < right[1], fit
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    fit_neural([seen[:100]], product_of_two[:100], loss="occurs", seed=0)
    assert torch.equal(before, torch.rand(1))  # the generator of others is left alone


def test_words_are_judged_beside_what_is_usual():
    learned, asked = [[1, 2, 3, 4, 5, 6]] * 3 + [[9]], [[1, 2, 3, 4, 5], [9]]
    words = count_words(learned, asked)
    assert words.usual.tolist() == [1, 2, 3, 4, 5, 6, 9]
    lesson = Lesson(learned=(np.eye(5)[[0, 0, 0, 1]],), asked=np.eye(5)[[0, 1]])
    (found,) = read_words(lesson, words, reader="linear", epsilon=1.0, seed=0)
    assert (found.blind, found.first.value) == (0.5, 0.6)  # the first text whole, one of five of the second
    assert found.bound == pytest.approx(bound_belief(0.5, epsilon=1.0))
    assert found.label_alone is None
    assert found.beyond[0] == pytest.approx(0.1)


@pytest.mark.parametrize("codes_tell", [False, True])
@pytest.mark.parametrize(("reader", "seed"), [*(("linear", seed) for seed in range(5)), ("neural", 0)])
def test_a_code_is_judged_by_what_it_adds_to_the_label_beside_it(reader, codes_tell, seed):
    # Ten words go with each of four labels, half of them with what a code may tell: each stands in 9 or 1 of 10 texts.
    rng = np.random.default_rng(seed)
    labels, told = rng.integers(4, size=1200), rng.integers(2, size=1200)
    chances = np.full((1200, 40), 0.02)
    for half in range(2):
        columns = 10 * labels[:, None] + 5 * half + np.arange(5)
        np.put_along_axis(chances, columns, np.where(told == half, 0.9, 0.1)[:, None], axis=1)
    contents = [np.flatnonzero(row).tolist() for row in rng.random((1200, 40)) < chances]
    seen = unit(rng.standard_normal((1200, 4)))
    if codes_tell:
        seen[:, 0] += np.where(told == 1, 2.0, -2.0)
    seen = np.concatenate([seen, np.ones((1200, 1))], axis=1)
    words, beside = count_words(contents[:800], contents[800:]), np.eye(4)[labels]
    words = replace(words, learned_labels=beside[:800], asked_labels=beside[800:])
    alone, both = read_words(Lesson(learned=(seen[:800],), asked=seen[800:]), words, reader=reader, epsilon=1.0, seed=0)
    assert both.reader == f"label-aware {reader}"
    assert both.label_alone == alone.label_alone > alone.blind + 0.2
    # Five words of a label stand in half of its texts in the mean; who knows the other half of the secret names 0.9.
    assert both.label_alone == pytest.approx(0.5, abs=0.05)
    if codes_tell:
        assert both.beyond[1] > 0.15
    else:  # codes that are drawn at random add nothing to the better guess without them
        assert abs(both.beyond[0]) < 0.06
        assert alone.first.value < alone.blind + 0.06


def crowd(stated, drawn, *, count=60, seed=0):
    points, rng = codes(count, seed), np.random.default_rng(seed)
    return CrowdInClear(
        codes=points,
        labels=(points[:, 0] > 0).astype(np.int64),
        classes=2,
        release=lambda those: see_codes(drawn, drawn.privatize(those, rng=rng))[:, :-1],
        label_privacy=None,
        epsilon=stated,
    )


def test_pairs_of_texts_share_a_label_and_no_text():
    labels = np.array([0, 1, 1, 0, 1, 0, 0])
    pairs = pair_texts(labels, rng=np.random.default_rng(0))
    assert pairs.shape == (3, 2)
    assert len(np.unique(pairs)) == 6
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()


def test_a_text_in_a_tuned_head_is_found_within_the_bound_of_its_copies():
    found = find_canary(crowd(4.0, mechanism(4.0), count=30), copies=(1, 20), trials=100)
    assert found[0].first.value < found[1].first.value
    assert [item.bound for item in found] == pytest.approx([1 / (1 + np.exp(-4 * item.copies)) for item in found])
    assert not any(breaks_bound(item.first, bound=item.bound) for item in found)
    member = play_membership(crowd(1.0, mechanism(1.0)), models=4)
    assert member.area.low < member.bound
    assert (member.models, member.texts) == (4, 58)


def test_a_head_on_codes_of_a_program_that_spends_more_gives_its_texts_away():
    leaking = crowd(0.05, mechanism(12.0, preferred=1), count=20)
    (found,) = find_canary(leaking, copies=(10,), trials=100)
    assert breaks_bound(found.first, bound=bound_belief(0.5, epsilon=0.5))
    assert found.bound == pytest.approx(bound_belief(0.5, epsilon=0.5))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("telling", ["confidence", "head", "neither"])
def test_the_attacker_takes_the_statistic_that_tells_his_own_models_apart(telling, seed):
    rng, truth = np.random.default_rng(seed), np.arange(400) % 2 == 0
    statistics = {"confidence": rng.standard_normal((400, 1)), "head": rng.standard_normal((400, 30))}
    if telling != "neither":  # the shift lies in one number of the head
        statistics[telling][truth, 0] += 3
    name, answers = decide(statistics, truth[:200])
    right = (answers == truth[200:]).mean()
    assert (name, right > 0.85) == (telling, True) if telling != "neither" else 0.35 < right < 0.65
