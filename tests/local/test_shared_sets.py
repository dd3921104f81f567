"""CusText and PCT2T, whose guarantee holds for some pairs only; and the estimate of channels without a closed form."""

import pickle

import numpy as np
import pytest

from channel_checks import (
    PLANE,
    SPECIAL,
    TABLES,
    assert_drawn_as_stated,
    count_outputs,
    distances_to,
    euclidean,
    grid_channel,
    largest_excess,
)
from rapt.errors import MechanismError
from rapt.local.mechanisms import make_mechanism
from rapt.local.mechanisms.custext import CustextMechanism, _bisect, partition
from rapt.local.mechanisms.token_tags import TokenTags
from rapt.local.mechanisms.word_classes import Pct2tMechanism
from significance import assert_counts
from toy_vocabularies import toy_vocabulary

SEEDS = range(5)


@pytest.fixture(params=TABLES)
def vocabulary(request):
    return toy_vocabulary(TABLES[request.param], special=SPECIAL)


def naive_sets(vocabulary, set_size):
    """The greedy rule, written out."""
    table, left, sets = vocabulary.embeddings.astype(float), vocabulary.eligible.tolist(), []
    while len(left) >= 2 * set_size:
        by_distance = sorted(left, key=lambda y: (y != left[0], np.linalg.norm(table[y] - table[left[0]]), y))
        sets.append(by_distance[:set_size])
        left = [y for y in left if y not in sets[-1]]
    return [*sets, left]


def naive_custext(vocabulary, *, eta, set_size):
    """P(y|x), one number at a time."""
    table, eligible = vocabulary.embeddings.astype(float), vocabulary.eligible.tolist()
    sets, found = naive_sets(vocabulary, set_size), np.zeros((len(table), len(eligible)))
    for x in range(len(table)):
        nearest = x if x in eligible else min(eligible, key=lambda y: np.linalg.norm(table[y] - table[x]))
        (members,) = [group for group in sets if nearest in group]
        distances = np.array([np.linalg.norm(table[y] - table[x]) for y in members])
        utility = -(distances - distances.min()) / (distances.max() - distances.min())
        weights = np.exp(eta * utility / 2)
        found[x, np.searchsorted(eligible, members)] = weights / weights.sum()
    return found


@pytest.mark.parametrize("eta", [0.5, 4.0, 30.0])
def test_custext_is_the_formula(eta, vocabulary):
    mechanism = CustextMechanism(vocabulary=vocabulary, eta=eta, set_size=3)
    found = np.exp(mechanism.log_probabilities(np.arange(vocabulary.size)))
    assert np.allclose(found, naive_custext(vocabulary, eta=eta, set_size=3), rtol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 4.0])
def test_custext_draws_from_its_channel(eta, vocabulary, rng):
    mechanism = CustextMechanism(vocabulary=vocabulary, eta=eta, set_size=3)
    assert_drawn_as_stated(mechanism, vocabulary, rng, draws=10_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_test_of_the_draws_can_fail(seed):
    vocabulary = toy_vocabulary(PLANE, special=SPECIAL)
    right, wrong = (CustextMechanism(vocabulary=vocabulary, eta=eta, set_size=3) for eta in (2.0, 2.5))
    counts = count_outputs(wrong, vocabulary, 0, np.random.default_rng(seed))
    with pytest.raises(AssertionError, match="rejects"):
        assert_counts(counts, np.exp(right.log_probabilities(np.array([0]))[0]))


def metric_of_sets(sets):
    """1 within a set, infinite across."""
    return np.where(sets[:, None] == sets[None], 1.0, np.inf)


@pytest.mark.parametrize("eta", [0.5, 4.0, 500.0])
def test_within_a_set_no_triple_exceeds_eta_and_across_sets_nothing_is_hidden(eta, vocabulary):
    mechanism = CustextMechanism(vocabulary=vocabulary, eta=eta, set_size=3)
    channel = mechanism.log_probabilities(np.arange(vocabulary.size))
    assert largest_excess(channel, metric_of_sets(mechanism.sets), eta) <= 1e-9
    assert largest_excess(channel, np.ones((vocabulary.size, vocabulary.size)), 1e9) == np.inf


def test_the_guarantee_test_sees_an_eta_five_percent_too_large():
    # Of 200 tokens all but one lie in one place: the two utilities and the two normalizers differ by all they can.
    table = np.zeros((200, 1))
    table[-1] = 1.0
    vocabulary = toy_vocabulary(table)
    excess = []
    for eta in (4.0, 4.2):
        mechanism = CustextMechanism(vocabulary=vocabulary, eta=eta, set_size=200)
        excess.append(largest_excess(mechanism.log_probabilities(np.array([0, 199])), np.ones((2, 2)), 4.0))
    assert -0.1 < excess[0] <= 1e-9
    assert excess[1] > 0.1


def test_sets_are_a_partition_by_the_greedy_rule(rng):
    table = rng.standard_normal((103, 4))
    table[60] = table[2]
    vocabulary = toy_vocabulary(table, special=(5, 50))
    sets = partition(vocabulary, set_size=8)
    expected = naive_sets(vocabulary, 8)
    for members in expected:
        assert len(set(sets[members].tolist())) == 1
    assert len(np.unique(sets)) == len(expected)
    assert {len(members) for members in expected[:-1]} == {8}
    assert 8 <= len(expected[-1]) < 16


def test_no_text_changes_the_sets(rng):
    # Nothing but the public table is an argument; this states it for a reader.
    mechanism = CustextMechanism(vocabulary=toy_vocabulary(rng.standard_normal((500, 4))), eta=4.0)
    before = mechanism.sets.copy()
    mechanism.privatize(np.arange(100), rng=rng)
    assert (mechanism.sets == before).all()


@pytest.mark.parametrize("size", [0, 1, 201])
def test_a_set_size_outside_its_domain_is_refused(size, vocabulary):
    with pytest.raises(MechanismError, match="set_size must be between"):
        CustextMechanism(vocabulary=vocabulary, eta=1.0, set_size=size)


def test_what_custext_has_seen_changes_no_draw_and_is_not_copied(vocabulary, rng):
    used = CustextMechanism(vocabulary=vocabulary, eta=2.0, set_size=3)
    before = used.privatize(np.arange(vocabulary.size), rng=np.random.default_rng(1))
    used.privatize(rng.integers(vocabulary.size, size=100), rng=rng)
    assert (used.privatize(np.arange(vocabulary.size), rng=np.random.default_rng(1)) == before).all()
    copy = pickle.loads(pickle.dumps(used))
    assert vars(copy).keys() == {"vocabulary", "eta", "set_size"}
    assert (copy.privatize(np.arange(vocabulary.size), rng=np.random.default_rng(1)) == before).all()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 39, 64])
def test_a_member_is_found_as_by_counting(width, rng):
    ends = np.sort(rng.integers(0, 2**64, size=(50, width), dtype=np.uint64), axis=1)
    ends[:, -1] = np.iinfo(np.uint64).max
    rows, points = rng.integers(50, size=2_000), rng.integers(0, 2**64, size=2_000, dtype=np.uint64)
    points[:50] = ends[rows[:50], rng.integers(width, size=50)]  # on an edge
    assert (_bisect(ends, rows, points) == (ends[rows] < points[:, None]).sum(axis=1)).all()


# PCT2T.

CLASSES = np.array([0, 1, 0, 1, 1, 0, 0, 2, 1])


def pct2t(vocabulary, eta=2.0):
    tags = TokenTags(names=("a", "b", "c"), classes=CLASSES[: vocabulary.size], source="toy")
    return Pct2tMechanism(vocabulary=vocabulary, eta=eta, tags=tags)


def pct2t_channel(mechanism):
    vocabulary, classes = mechanism.vocabulary, mechanism.tags.classes
    table, ids = vocabulary.embeddings.astype(float), vocabulary.eligible
    found = np.zeros((vocabulary.size, len(ids)))
    for tag in np.unique(classes):
        own = classes[ids] == tag
        allowed = own if own.any() else np.ones(len(ids), dtype=bool)

        def kernel(grid, allowed=allowed):
            nearest = np.where(allowed, distances_to(table, grid, ids), np.inf).argmin(axis=1)
            return (nearest[:, None] == np.arange(len(ids))).astype(float)

        found[classes == tag] = grid_channel(table, kernel, eta=mechanism.eta)[classes == tag]
    return found


def test_pct2t_draws_from_its_channel(vocabulary, rng):
    mechanism = pct2t(vocabulary)
    assert_drawn_as_stated(mechanism, vocabulary, rng, channel=pct2t_channel(mechanism), draws=10_000)


def test_pct2t_keeps_eta_within_a_class_and_nothing_across(vocabulary):
    mechanism = pct2t(vocabulary)
    with np.errstate(divide="ignore"):
        channel = np.log(pct2t_channel(mechanism))
    distances = euclidean(vocabulary.embeddings.astype(float))
    classes = mechanism.tags.classes
    within = np.where(classes[:, None] == classes[None], distances, np.inf)
    assert largest_excess(channel, within, 2.0) <= 1e-4
    assert largest_excess(channel, distances, 1e9) == np.inf


def test_pct2t_puts_out_words_of_the_same_class_only(bert_tiny, rng):
    mechanism = make_mechanism("pct2t", vocabulary=bert_tiny, eta=20.0, allow_unproved=True)
    ids = rng.choice(bert_tiny.eligible, 100)
    out = mechanism.privatize(ids, rng=rng)
    assert (mechanism.tags.classes[out] == mechanism.tags.classes[ids]).all()
    assert (out != ids).mean() > 0.9
