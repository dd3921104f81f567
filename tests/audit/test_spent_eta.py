"""The η really spent: below η for every mechanism of ours, above it for twins with the defects of published code.

ALPHA is the chance, at most, that a sound mechanism is accused in one call. Each twin must be caught with five seeds.
"""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from broken_twins import ETA, TWINS, noise_shared_between_tokens, solid_ball
from channel_checks import PLANE, SPECIAL
from rapt.audit.spent_eta import (
    InputPair,
    audit_spent_eta,
    clopper_pearson,
    draw_independently,
    pair_tokens,
)
from rapt.errors import AuditError
from rapt.local.mechanisms import MECHANISMS, make_mechanism
from rapt.local.mechanisms.laplace import LaplaceMechanism
from rapt.local.randomness import insecure_stream, secure_stream, worker_stream
from significance import ALPHA
from toy_vocabularies import toy_vocabulary

SEEDS = range(5)
RUNS = 20_000


def lower_bound(draw, pairs, seed, *, runs=RUNS):
    return audit_spent_eta(draw, pairs, runs=runs, rng=np.random.default_rng(seed), alpha=ALPHA).lower


# The mechanisms themselves.


@pytest.mark.parametrize("name", MECHANISMS)
def test_no_mechanism_spends_more_than_it_says(name, rng):
    vocabulary = toy_vocabulary(PLANE, special=SPECIAL)
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=ETA, allow_unproved=True)
    pairs = [
        pair
        for pair in pair_tokens(mechanism, [(0, 1), (0, 5), (4, 6), (2, 7), (3, 8)])
        if math.isfinite(pair.distance)
    ]
    report = audit_spent_eta(draw_independently(mechanism), pairs, runs=RUNS, rng=rng, alpha=ALPHA)
    assert len(report.found) == len(pairs) > 0
    assert 0 < report.lower <= ETA


@pytest.mark.parametrize("name", [name for name, kind in MECHANISMS.items() if kind.known.status == "proved"])
def test_no_two_tokens_of_one_call_spend_more_than_both_may(name, rng):
    vocabulary = toy_vocabulary(PLANE[:, :1], special=SPECIAL)
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=ETA)
    one = pair_tokens(mechanism, [(0, 1), (0, 4)])
    pairs = [
        InputPair(left=(0, 0), right=(0, 1), distance=one[0].distance),
        InputPair(left=(0, 0), right=(4, 1), distance=one[0].distance + one[1].distance),
    ]
    assert audit_spent_eta(draw_independently(mechanism), pairs, runs=6_000, rng=rng, alpha=ALPHA).lower <= ETA


def test_the_bound_comes_close_to_what_is_spent(rng):
    # At d = 1 an output beyond both tokens has the full ratio e^(η d).
    vocabulary = toy_vocabulary([[0.0], [1.0], [-0.5], [1.5]])
    mechanism = LaplaceMechanism(vocabulary=vocabulary, eta=ETA)
    report = audit_spent_eta(
        draw_independently(mechanism), pair_tokens(mechanism, [(0, 1)]), runs=200_000, rng=rng, alpha=ALPHA
    )
    assert 0.9 * ETA < report.lower <= ETA


@pytest.mark.parametrize("name", ["exponential", "santext", "tem", "laplace"])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_eta_a_half_too_large_is_seen(name, seed):
    # Twenty tokens in one place and one apart: normalizers differ, and an exponential mechanism comes near its bound.
    table = np.array([[0.0], [1.0], [-0.5], [1.5]]) if name == "laplace" else np.append([1.0], np.zeros(20))[:, None]
    mechanism = make_mechanism(name, vocabulary=toy_vocabulary(table), eta=1.5 * 3.0)
    pairs = pair_tokens(mechanism, [(0, 1)])
    assert lower_bound(draw_independently(mechanism), pairs, seed, runs=100_000) > 3.0


# Twins.


@pytest.mark.parametrize("make", [*TWINS.values(), partial(solid_ball, dim=1)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_twin_is_caught_and_the_same_without_its_defect_is_not(make, seed):
    twin = make()
    assert lower_bound(twin.draw, twin.pairs, seed, runs=twin.runs) > ETA
    if twin.sound is not None:
        assert lower_bound(twin.sound, twin.pairs, seed, runs=twin.runs) <= ETA


# Joint outputs: each token alone has the right law.

APART = [InputPair(left=(0, 0), right=(0, 1), distance=1.0)]


def line_of_two():
    return toy_vocabulary([[0.0], [1.0], [0.5], [-0.5], [1.5]])


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_shared_between_tokens_is_not_seen_in_one_of_them(seed):
    alone = [InputPair(left=(0,), right=(1,), distance=1.0)]
    assert lower_bound(noise_shared_between_tokens().draw, alone, seed) <= ETA


def two_workers(make_streams):
    """The two tokens of a run go to two workers, which make their streams with `make_streams(run)`."""
    mechanism = LaplaceMechanism(vocabulary=line_of_two(), eta=ETA)

    def draw(token_ids, rng):
        return np.array(
            [
                [
                    int(mechanism.privatize(token_ids[run, i : i + 1], rng=stream.generator)[0])
                    for i, stream in enumerate(make_streams(int(rng.integers(2**32))))
                ]
                for run in range(len(token_ids))
            ]
        )

    return draw


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_shared_between_workers_is_caught(seed):
    """SanText: forked workers inherit one generator."""
    draw = two_workers(lambda run: (insecure_stream(run), insecure_stream(run)))
    assert lower_bound(draw, APART, seed, runs=400) > ETA


def test_workers_with_streams_of_their_own_spend_what_two_tokens_may():
    seeded = two_workers(lambda run: [worker_stream(insecure_stream(run).provenance, position=i) for i in (0, 1)])
    secure = two_workers(lambda run: (secure_stream(), secure_stream()))
    for draw in (seeded, secure):
        assert lower_bound(draw, APART, 0, runs=400) <= ETA


# The audit itself.


def test_false_accusations_are_as_rare_as_stated():
    # A mechanism that meets its bound, audited 200 times at alpha = 5 %: at most as many as the binomial law allows.
    vocabulary = toy_vocabulary([[0.0], [1.0], [-0.5], [1.5]])
    mechanism = LaplaceMechanism(vocabulary=vocabulary, eta=ETA)
    pairs = pair_tokens(mechanism, [(0, 1), (2, 3)])
    draw, rng = draw_independently(mechanism), np.random.default_rng(0)
    accused = sum(audit_spent_eta(draw, pairs, runs=400, rng=rng, alpha=0.05).lower > ETA for _ in range(200))
    assert accused <= stats.binom.isf(ALPHA, 200, 0.05)


@pytest.mark.parametrize(("hits", "runs"), list(itertools.product([0, 1, 37, 99, 100], [100])))
def test_intervals_are_those_of_the_binomial_law(hits, runs):
    low, high = clopper_pearson(hits, runs, level=0.01)
    assert low <= hits / runs <= high
    if hits:
        assert stats.binom.sf(hits - 1, runs, low) == pytest.approx(0.01)
    if hits < runs:
        assert stats.binom.cdf(hits, runs, high) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "pair",
    [
        InputPair(left=(0,), right=(0,), distance=0.0),
        InputPair(left=(0,), right=(1, 1), distance=1.0),
        InputPair(left=(0,), right=(1,), distance=math.inf),
        InputPair(left=(), right=(), distance=1.0),
    ],
)
def test_a_pair_without_a_bound_is_refused(pair):
    mechanism = LaplaceMechanism(vocabulary=line_of_two(), eta=ETA)
    with pytest.raises(AuditError, match="pair 0 must be"):
        audit_spent_eta(draw_independently(mechanism), [pair], runs=100, rng=np.random.default_rng(0))


def test_an_audit_of_nothing_is_refused():
    with pytest.raises(AuditError, match="needs a pair"):
        audit_spent_eta(lambda ids, rng: ids, [], runs=100, rng=np.random.default_rng(0))
