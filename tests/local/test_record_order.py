"""The order of records: every order as likely, the same under the same key, and put back by it."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2

from rapt.local.record_order import draw_order, make_order_key
from rapt.wire.manifest import Randomness
from significance import ALPHA

FROZEN = [2, 6, 1, 5, 7, 4, 0, 3]


def orders(draw, *, count=12_000):
    """χ² of how often each order of three records is drawn, over keys of their own."""
    keys = (hashlib.sha256(f"{number}".encode()).digest() for number in range(count))
    seen = Counter(tuple(draw(3, key=key)) for key in keys)
    return sum((found - count / 6) ** 2 / (count / 6) for found in seen.values()) + (6 - len(seen)) * count / 6


def test_every_order_is_as_likely():
    # A false alarm once in a million builds; keys are fixed, so a build that passes goes on to pass.
    assert chi2.sf(orders(draw_order), 5) > ALPHA


def test_a_twin_that_only_turns_the_records_is_caught():
    def turned(count, *, key):
        return np.roll(np.arange(count), key[0] % count)

    assert chi2.sf(orders(turned), 5) < ALPHA


def test_an_order_is_a_permutation_and_follows_from_the_key_alone():
    key = make_order_key(Randomness(source="a cipher"))
    assert sorted(draw_order(1000, key=key).tolist()) == list(range(1000))
    assert (draw_order(1000, key=key) == draw_order(1000, key=key)).all()
    assert (draw_order(1000, key=key) != draw_order(1000, key=bytes(32))).any()
    assert draw_order(0, key=key).size == 0
    # Frozen, because a receipt of today must be read tomorrow: the first orders of ChaCha20 under a key of zeros.
    assert draw_order(8, key=bytes(32)).tolist() == FROZEN


@pytest.mark.parametrize("seed", [None, 7])
def test_a_key_is_fresh_unless_a_seed_says_that_nothing_is_protected(seed):
    randomness = Randomness(source="x", insecure_seed=seed)
    assert (make_order_key(randomness) == make_order_key(randomness)) == (seed is not None)
