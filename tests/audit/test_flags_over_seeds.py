"""The bar of the audit: with p < 1e-6 each broken twin is flagged, and no sound mechanism is, over 100 seeds.

CI takes two seeds of each; `pytest --slow tests/audit/test_flags_over_seeds.py` takes the hundred. The outcome of such
a run stands in docs/results/attacks.md. A bound above η is the flag: it is wrong with probability ALPHA at most.
"""

import math

import numpy as np
import pytest

from broken_twins import ETA, TWINS
from channel_checks import PLANE, SPECIAL
from rapt.audit.spent_eta import audit_spent_eta, draw_independently, pair_tokens
from rapt.local.mechanisms import MECHANISMS, make_mechanism
from significance import ALPHA
from toy_vocabularies import toy_vocabulary

SHORT, LONG = range(2), range(100)
SOUND_RUNS = 8_000


def flagged_twin(name, seed):
    twin = TWINS[name]()
    found = audit_spent_eta(twin.draw, twin.pairs, runs=twin.runs, rng=np.random.default_rng(seed), alpha=ALPHA)
    return found.lower > ETA


def flagged_mechanism(name, seed):
    mechanism = make_mechanism(name, vocabulary=toy_vocabulary(PLANE, special=SPECIAL), eta=ETA, allow_unproved=True)
    pairs = [pair for pair in pair_tokens(mechanism, [(0, 1), (4, 6), (2, 7)]) if math.isfinite(pair.distance)]
    draw = draw_independently(mechanism)
    found = audit_spent_eta(draw, pairs, runs=SOUND_RUNS, rng=np.random.default_rng(seed), alpha=ALPHA)
    return found.lower > ETA


@pytest.mark.parametrize("name", TWINS)
def test_a_broken_twin_is_flagged(name):
    assert all(flagged_twin(name, seed) for seed in SHORT)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_sound_mechanism_is_not_flagged(name):
    assert not any(flagged_mechanism(name, seed) for seed in SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_a_broken_twin_is_flagged_with_a_hundred_seeds(name):
    assert [seed for seed in LONG if not flagged_twin(name, seed)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_sound_mechanism_is_not_flagged_with_a_hundred_seeds(name):
    assert [seed for seed in LONG if flagged_mechanism(name, seed)] == []
