"""The subset mechanism: its exact law, the inequality on it, the audit that finds broken twins, and the best m."""

import hashlib
import math
from fractions import Fraction
from functools import cached_property
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel_checks import power_of_e
from code_material import code_bundle, code_parts, draw_codewords
from rapt.errors import MechanismError
from rapt.local.codes.subset import SubsetMechanism, choose_preferred, make_subset, remake_subset
from rapt.wire.code_bundle import make_code_bundle
from rapt.wire.mechanism_setting import MechanismSetting
from significance import assert_counts

BUNDLE = code_bundle()
EPSILONS = [1e-300, 1e-9, 0.1, 0.5, 1.0, 2.0, 4.0, 7.3, 16.0, 40.0, 64.0]


def unit_codes(count, *, dimension=3, seed=5):
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Texts as codes, some of them unkind: at the centre, with ties, beyond every number.
CODES = np.concatenate([unit_codes(6), np.zeros((1, 3)), np.eye(3), np.full((1, 3), np.nan), np.full((1, 3), np.inf)])


class Small(SubsetMechanism):
    """The mechanism with weights so small that every number of its draw can be tried."""

    @cached_property
    def weights(self):
        return math.floor(7 * math.exp(self.epsilon)), 7


class Numbers:
    """Whole numbers that a draw asks for, given beforehand; it stops where there are no more."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, limit, size=None):
        """The next number, as often as numbers are asked for."""
        if not self.numbers or not 0 <= self.numbers[0] < limit:
            raise StopIteration
        number = self.numbers.pop(0)
        return number if size is None else np.full(size, number)


def try_number(mechanism, code, *numbers):
    """The codeword that numbers lead to; None where the proposal among them is refused."""
    try:
        return int(mechanism.privatize(code[None], rng=Numbers(*numbers))[0, 0])
    except StopIteration:
        return None


def exact_laws(mechanism, codes):
    """P(y|x) of each code as fractions, by trying every number that decides and every proposal."""
    high, low = mechanism.weights
    size, edge = mechanism.bundle.size, high * mechanism.preferred
    total = edge + low * (size - mechanism.preferred)
    laws = []
    for code in codes:
        law = dict.fromkeys(range(size), Fraction(0))
        # The draw is the same for all numbers of a side, so their two ends are all there is to try.
        for ends, chance in (
            ((0, edge - 1), Fraction(edge, total)),
            ((edge, total - 1), Fraction(total - edge, total)),
        ):
            first, last = ([try_number(mechanism, code, end, place) for place in range(size)] for end in ends)
            assert first == last
            taken = [y for y in first if y is not None]
            for y in taken:
                law[y] += chance / len(taken)
        laws.append(law)
    return laws


def assert_private(laws, epsilon):
    """The likelihood-ratio audit: no output is more than e^ε times as likely for one text as for another."""
    limit = power_of_e(epsilon) * (1 + Fraction(1, 10**40))
    for left, right in permutations(laws, 2):
        for output, chance in left.items():
            assert chance <= limit * right.get(output, 0), f"an output is {chance} likely, and {right.get(output, 0)}"


@pytest.mark.parametrize("preferred", [1, 3, 6, 11])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_every_number_of_the_draw_together_is_the_law_that_is_stated(epsilon, preferred):
    mechanism = Small(bundle=BUNDLE, epsilon=epsilon, preferred=preferred)
    high, low = mechanism.weights
    total = high * preferred + low * (12 - preferred)
    laws = exact_laws(mechanism, CODES)
    for law in laws:
        assert sorted(law.values()) == [Fraction(low, total)] * (12 - preferred) + [Fraction(high, total)] * preferred
    assert_private(laws, epsilon)
    stated = np.exp(mechanism.log_probabilities(CODES))[:, 0]
    assert stated == pytest.approx(np.array([[float(law[y]) for y in range(12)] for law in laws]), rel=1e-12)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("preferred", "codes", "size"), [(1, 1, 12), (5, 1, 12), (3, 4, 12), (700, 1, 1000)])
def test_weights_never_allow_more_than_epsilon_and_all_but_nothing_is_lost(epsilon, preferred, codes, size):
    mechanism = SubsetMechanism(bundle=code_bundle(codes=codes, size=size), epsilon=epsilon, preferred=preferred)
    high, low = mechanism.weights
    assert 0 < low <= high
    assert high * preferred + low * (size - preferred) < 2**63
    limit = power_of_e(Fraction(epsilon) / codes) * (1 + Fraction(1, 10**40))
    assert Fraction(high, low) <= limit
    if epsilon <= 16:
        assert Fraction(high, low) >= limit * (1 - Fraction(1, 10**9))
    assert mechanism.hit_probability == pytest.approx(high * preferred / (high * preferred + low * (size - preferred)))


def test_of_equally_near_codewords_the_lowest_ids_are_preferred():
    mechanism = SubsetMechanism(bundle=BUNDLE, epsilon=1.0, preferred=4)
    likely = mechanism.log_probabilities(np.zeros((1, 3)))[0, 0]
    assert np.flatnonzero(likely == likely.max()).tolist() == [0, 1, 2, 3]


@given(st.lists(st.floats(width=64), min_size=3, max_size=3), st.integers(1, 11))
def test_a_code_of_any_numbers_has_exactly_m_preferred_codewords(code, preferred):
    mechanism = SubsetMechanism(bundle=BUNDLE, epsilon=1.0, preferred=preferred)
    likely = mechanism.log_probabilities(np.array([code]))[0, 0]
    assert np.count_nonzero(likely == likely.max()) == preferred


def laws_of_marks(mechanism, marks):
    """P(y|x) where each text has the preferred codewords that are marked, be they m or not."""
    high, low = mechanism.weights
    weights = np.where(marks, high, low).tolist()
    return [{y: Fraction(weight, sum(row)) for y, weight in enumerate(row)} for row in weights]


def m_from_the_text(mechanism, codes):
    """A twin that prefers every codeword within a fixed angle of the code, however many those are."""
    return laws_of_marks(mechanism, codes @ mechanism.bundle.codewords[0].T.astype(float) >= 0.3)


def ties_leave_more(mechanism, codes):
    """A twin that prefers every codeword that is as near as the m-th."""
    scores = codes @ mechanism.bundle.codewords[0].T.astype(float)
    return laws_of_marks(mechanism, scores >= np.sort(scores, axis=1)[:, [-mechanism.preferred]])


class RoundedUp(Small):
    """A twin whose ratio of weights is rounded up."""

    @cached_property
    def weights(self):
        return math.ceil(7 * math.exp(self.epsilon)), 7


class FirstOfTheNearest(Small):
    """A twin that releases the nearest codeword alone where it should release one of the m."""

    def choose(self, scores, *, hit, rng):
        chosen = super().choose(scores, hit=hit, rng=rng)
        return int(scores.argmax()) if hit else chosen


class TiesAreOut(Small):
    """A twin that leaves both of two equal codewords out where one has to be in, so that fewer than m are preferred."""

    def is_preferred(self, scores, codeword):
        return np.count_nonzero(scores >= scores[codeword]) <= self.preferred


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("twin", [m_from_the_text, ties_leave_more, RoundedUp, FirstOfTheNearest, TiesAreOut])
def test_the_audit_finds_twins_that_are_wrong(twin, seed):
    # Codewords in pairs that are each other's mirror image: from the last code, in the mirror, both are as near.
    half = draw_codewords(size=6, seed=seed)
    words = np.concatenate([half, half * np.float32([1, -1, 1])], axis=1)
    bundle = make_code_bundle(**code_parts() | {"codewords": words})
    setting = {"bundle": bundle, "epsilon": 1.0, "preferred": 5}
    codes = np.concatenate([unit_codes(6, seed=seed), unit_codes(1, seed=seed) * [1, 0, 1]])
    assert_private(exact_laws(Small(**setting), codes), 1.0)
    laws = exact_laws(twin(**setting), codes) if isinstance(twin, type) else twin(Small(**setting), codes)
    with pytest.raises(AssertionError, match="an output is"):
        assert_private(laws, 1.0)


def test_the_audit_finds_a_codebook_that_was_made_from_private_text():
    def law_of(text, *, private):
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big") if private else 0
        bundle = make_code_bundle(**code_parts(seed=seed))
        law = exact_laws(Small(bundle=bundle, epsilon=1.0, preferred=4), CODES[:1])[0]
        return {(bundle.hash, y): chance for y, chance in law.items()}  # the bundle is published, so it is an output

    assert_private([law_of(text, private=False) for text in (b"one", b"two")], 1.0)
    with pytest.raises(AssertionError, match="an output is"):
        assert_private([law_of(text, private=True) for text in (b"one", b"two")], 1.0)


@pytest.mark.parametrize("codes", [1, 2])
def test_draws_follow_the_law(codes, rng):
    mechanism = SubsetMechanism(bundle=code_bundle(codes=codes), epsilon=1.5, preferred=3)
    code = unit_codes(1, dimension=3 * codes)
    drawn = mechanism.privatize(np.repeat(code, 6_000, axis=0), rng=rng)
    laws = np.exp(mechanism.log_probabilities(code))[0]
    joint = laws[0] if codes == 1 else np.outer(laws[0], laws[1]).ravel()
    assert_counts(np.bincount(drawn @ [12 ** (codes - 1 - run) for run in range(codes)], minlength=12**codes), joint)


class OneNumberForBoth(SubsetMechanism):
    """A twin whose codes of one text are preferred ones together or not at all."""

    def privatize(self, codes, *, rng):
        high, low = self.weights
        hits = rng.integers(3 * high + 9 * low, size=len(codes)) < 3 * high
        runs = [zip(self._score(codes, run=run), hits, strict=True) for run in range(2)]
        return np.array([[self.choose(scores, hit=hit, rng=rng) for scores, hit in run] for run in runs]).T


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("codes", [1, 2])
def test_the_test_of_draws_rejects_one_number_for_both_codes_and_another_epsilon(codes, seed):
    rng = np.random.default_rng(seed)
    mechanism = SubsetMechanism(bundle=code_bundle(codes=codes), epsilon=1.5, preferred=3)
    code = unit_codes(1, dimension=3 * codes)
    if codes == 1:
        other = SubsetMechanism(bundle=mechanism.bundle, epsilon=1.7, preferred=3)
        drawn = other.privatize(np.repeat(code, 6_000, axis=0), rng=rng)
    else:
        mechanism = OneNumberForBoth(bundle=mechanism.bundle, epsilon=1.5, preferred=3)
        drawn = mechanism.privatize(np.repeat(code, 6_000, axis=0), rng=rng)
    laws = np.exp(mechanism.log_probabilities(code))[0]
    joint = laws[0] if codes == 1 else np.outer(laws[0], laws[1]).ravel()
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(
            np.bincount(drawn @ [12 ** (codes - 1 - run) for run in range(codes)], minlength=12**codes), joint
        )


def test_codes_are_not_changed_and_do_not_depend_on_the_batch(rng):
    mechanism, codes = SubsetMechanism(bundle=code_bundle(size=300), epsilon=2.0, preferred=40), unit_codes(200)
    before = codes.copy()
    mechanism.privatize(codes, rng=rng)
    together = mechanism.log_probabilities(codes)
    assert (codes == before).all()
    assert (together == np.concatenate([mechanism.log_probabilities(codes[i : i + 1]) for i in range(200)])).all()


@pytest.mark.parametrize(("size", "preferred"), [(5000, 90), (5000, 4), (5000, 2000), (5000, 4900)])
@pytest.mark.parametrize("tied", [False, True])
def test_rare_and_frequent_kinds_leave_exactly_as_often_as_is_stated(size, preferred, tied, rng):
    mechanism = SubsetMechanism(bundle=code_bundle(size=size, run=4), epsilon=3.0, preferred=preferred)
    scores = np.round(rng.standard_normal(size) * 20).astype(np.float32) if tied else None
    scores = rng.standard_normal(size).astype(np.float32) if scores is None else scores
    order = np.lexsort((np.arange(size), -scores))
    assert {y for y in range(size) if mechanism.is_preferred(scores, y)} == set(order[:preferred].tolist())
    for hit, kind in ((True, order[:preferred]), (False, order[preferred:])):
        drawn = [mechanism.choose(scores, hit=hit, rng=rng) for _ in range(400)]
        places = np.argsort(np.argsort(kind))[np.searchsorted(np.sort(kind), drawn)]  # ranks, by nearness
        assert set(drawn) <= set(kind.tolist())
        assert_counts(np.histogram(places, bins=4, range=(0, len(kind)))[0], np.full(4, 0.25))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 64.1, math.nan, math.inf, True, "4"])
def test_an_epsilon_outside_its_domain_is_refused_in_one_line(epsilon):
    with pytest.raises(
        MechanismError, match="the epsilon of a text must be a number above 0 and at most 64"
    ) as refused:
        make_subset(BUNDLE, epsilon=epsilon)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("preferred", [0, 12, -1, 2.0, True])
def test_a_number_of_preferred_codewords_that_leaves_none_is_refused(preferred):
    with pytest.raises(MechanismError, match="must be from 1 to 11"):
        SubsetMechanism(bundle=BUNDLE, epsilon=1.0, preferred=preferred)


def test_a_mechanism_is_made_again_from_its_setting_and_from_no_other():
    made = make_subset(BUNDLE, epsilon=4)
    assert remake_subset(made.setting, bundle=BUNDLE).setting == made.setting
    for bundle in (code_bundle(size=13), code_bundle(codes=2)):
        with pytest.raises(MechanismError, match="give the code of that file"):
            remake_subset(made.setting, bundle=bundle)
    with pytest.raises(MechanismError, match="give the code of that file"):
        remake_subset(MechanismSetting(name="laplace", parameters={"eta": 1.0}), bundle=BUNDLE)


@pytest.mark.parametrize("run", [2, 3, 8, 16])
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0, 8.0, 16.0])
def test_the_number_of_preferred_codewords_is_all_but_the_best(run, epsilon):
    bundle = code_bundle(size=2048, run=run)
    codes = unit_codes(60, dimension=run, seed=3)

    def attenuation(preferred):
        return SubsetMechanism(bundle=bundle, epsilon=epsilon, preferred=preferred).measure_attenuation(codes)

    chosen = attenuation(choose_preferred(epsilon, bundle=bundle))
    assert chosen >= 0.95 * max(attenuation(max(1, round(2048 * 2 ** (-step / 2)))) for step in range(1, 22))


@pytest.mark.parametrize(("size", "run"), [(2, 1), (2, 2), (3, 2), (65_536, 2)])
def test_the_smallest_and_largest_codebooks_have_a_number_of_preferred_codewords(size, run):
    words = np.array([[[1.0], [-1.0]]], np.float32) if run == 1 else None
    if words is None:
        angles = np.linspace(0, 2 * math.pi, size, endpoint=False)
        words = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)[None]
    parts = code_parts(run=run) | {"codewords": words}
    bundle = make_code_bundle(**parts)
    for epsilon in EPSILONS:
        assert 1 <= choose_preferred(epsilon, bundle=bundle) < size


def test_the_attenuation_is_the_mean_product_of_a_code_with_its_release(rng):
    mechanism, codes = make_subset(code_bundle(size=64), epsilon=3.0), unit_codes(50)
    drawn = mechanism.privatize(np.repeat(codes, 400, axis=0), rng=rng)[:, 0]
    products = (mechanism.bundle.codewords[0][drawn] * np.repeat(codes, 400, axis=0)).sum(axis=1)
    error = products.std() / math.sqrt(len(products))
    assert mechanism.measure_attenuation(codes) == pytest.approx(products.mean(), abs=5 * error)
