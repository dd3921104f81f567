"""The exponential mechanism: its channel against the formula, its guarantee, its prior, and its calibration."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from channel_checks import LINE, SPECIAL, TABLES, assert_drawn_as_stated, count_outputs, euclidean, largest_excess
from rapt.errors import MechanismError, VocabularyError
from rapt.local.mechanisms import make_mechanism, remake_mechanism
from rapt.local.mechanisms.certificate import find_largest_slopes
from rapt.local.mechanisms.exponential import (
    OutputPrior,
    count_tokens,
    make_exponential,
    read_output_prior,
)
from rapt.local.mechanisms.metric import LARGEST_DROP
from rapt.this_machine import find_cache_folder
from significance import assert_counts
from toy_vocabularies import toy_vocabulary, toy_word

SEEDS = range(5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))


def naive_log_channel(table, *, beta, eligible, weights=None):
    """Written out, one number at a time."""
    rows = np.asarray(table, dtype=np.float32).astype(float)
    found = np.empty((len(rows), len(eligible)))
    for x in range(len(rows)):
        terms = []
        for place, y in enumerate(eligible):
            drop = min(beta * math.dist(rows[x], rows[y]), LARGEST_DROP)
            terms.append(math.log(1 if weights is None else weights[place]) - drop)
        total = math.log(math.fsum(math.exp(term) for term in terms))
        found[x] = [term - total for term in terms]
    return found


@pytest.fixture(params=TABLES)
def vocabulary(request):
    return toy_vocabulary(TABLES[request.param], special=SPECIAL)


def prior_of(vocabulary, rng):
    return OutputPrior(counts=rng.integers(0, 50, size=len(vocabulary.eligible)))


@pytest.mark.parametrize("eta", [0.1, 2.0, 9.0, 400.0])
def test_the_channel_is_the_formula(vocabulary, eta, rng):
    for prior in (None, prior_of(vocabulary, rng)):
        mechanism = make_exponential(vocabulary=vocabulary, eta=eta, prior=prior)
        weights = None if prior is None else 1 + prior.counts
        naive = naive_log_channel(vocabulary.embeddings, beta=eta / 2, eligible=vocabulary.eligible, weights=weights)
        assert np.allclose(mechanism.log_probabilities(np.arange(vocabulary.size)), naive, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.1, 5.0])
def test_outputs_are_drawn_from_the_channel(vocabulary, eta, rng):
    assert_drawn_as_stated(make_exponential(vocabulary=vocabulary, eta=eta), vocabulary, rng)
    assert_drawn_as_stated(
        make_exponential(vocabulary=vocabulary, eta=eta, prior=prior_of(vocabulary, rng)), vocabulary, rng
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_test_of_the_draws_can_fail(vocabulary, seed):
    right = make_exponential(vocabulary=vocabulary, eta=2.0)
    wrong = make_exponential(vocabulary=vocabulary, eta=2.2)
    counts = count_outputs(wrong, vocabulary, 0, np.random.default_rng(seed))
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(counts, np.exp(right.log_probabilities(np.array([0]))[0]))


@pytest.mark.parametrize("eta", [0.1, 2.0, 20.0, 400.0])
def test_the_guarantee_holds_for_every_triple(vocabulary, eta, rng):
    distances = euclidean(vocabulary.embeddings.astype(float))
    for prior in (None, prior_of(vocabulary, rng)):
        mechanism = make_exponential(vocabulary=vocabulary, eta=eta, prior=prior)
        channel = mechanism.log_probabilities(np.arange(vocabulary.size))
        assert np.allclose(np.exp(channel).sum(axis=1), 1.0)
        assert largest_excess(channel, distances, eta) <= 1e-9


@pytest.mark.parametrize("eta", [1.0, 5.0, 10.0])
def test_the_guarantee_test_sees_a_beta_five_percent_too_large(eta):
    # Nearly all of the prior lies on one of two tokens: the normalizers differ by almost beta * d: the bound is met.
    vocabulary = toy_vocabulary([[0.0], [1.0]])
    prior = OutputPrior(counts=np.array([2**19, 0]))
    distances = euclidean(vocabulary.embeddings.astype(float))
    right = make_exponential(vocabulary=vocabulary, eta=eta, prior=prior).log_probabilities(np.arange(2))
    wrong = make_exponential(vocabulary=vocabulary, eta=1.05 * eta, prior=prior).log_probabilities(np.arange(2))
    assert -0.01 < largest_excess(right, distances, eta) <= 1e-9
    assert largest_excess(wrong, distances, eta) > 0.03 * eta


def test_half_the_slope_goes_to_the_scores(vocabulary):
    assert make_exponential(vocabulary=vocabulary, eta=3.0).scores.beta == 1.5


# Calibration.


def brute_force_slope(vocabulary, beta, *, prior=None):
    """The largest slope over all triples, from the naive channel."""
    weights = None if prior is None else 1 + prior.counts
    channel = naive_log_channel(vocabulary.embeddings, beta=beta, eligible=vocabulary.eligible, weights=weights)
    distances = euclidean(vocabulary.embeddings.astype(float))
    slopes = [
        (channel[x] - channel[other]).max() / distances[x, other]
        for x in range(vocabulary.size)
        for other in range(vocabulary.size)
        if distances[x, other] > 0
    ]
    return max(slopes)


def random_vocabulary(seed, *, special):
    table = np.random.default_rng(seed).standard_normal((60, 3)).astype(np.float32)
    table[1] = table[2]  # two tokens that nothing tells apart
    return toy_vocabulary(table, special=special)


@pytest.mark.parametrize("special", [(), (0,), tuple(range(0, 60, 3))])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_largest_slope_is_that_of_brute_force(seed, special, rng):
    vocabulary = random_vocabulary(seed, special=special)
    for prior in (None, prior_of(vocabulary, rng)):
        mechanism = make_exponential(vocabulary=vocabulary, eta=1.0, prior=prior)
        betas = [0.2, 1.0, 4.0, 30.0]
        found = find_largest_slopes([replace(mechanism.scores, beta=beta) for beta in betas])
        for beta, slope in zip(betas, found, strict=True):
            expected = brute_force_slope(vocabulary, beta, prior=prior)
            # Where every pair is farther apart than the reach, the slope may be below beta, and beta is stated.
            assert slope.value == pytest.approx(max(expected, beta), rel=1e-6)
            assert slope.value >= expected


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_finds_the_largest_beta_that_keeps_the_guarantee(seed):
    vocabulary = random_vocabulary(seed, special=(0, 5, 6))
    mechanism = make_mechanism("exponential", vocabulary=vocabulary, eta=4.0, options={"calibrated": True})
    assert 2.2 < mechanism.scores.beta < 4.0
    assert brute_force_slope(vocabulary, mechanism.scores.beta) <= 4.0 * (1 + 1e-12)
    assert brute_force_slope(vocabulary, mechanism.scores.beta + 0.004) > 4.0
    assert mechanism.certificate.slope == pytest.approx(brute_force_slope(vocabulary, mechanism.scores.beta), rel=1e-6)
    channel = mechanism.log_probabilities(np.arange(60))
    assert largest_excess(channel, euclidean(vocabulary.embeddings.astype(float)), 4.0) <= 1e-9


def test_the_guarantee_test_sees_a_calibrated_beta_five_percent_too_large():
    vocabulary = random_vocabulary(0, special=(0, 5, 6))
    mechanism = make_mechanism("exponential", vocabulary=vocabulary, eta=4.0, options={"calibrated": True})
    wrong = replace(mechanism.scores, beta=1.05 * mechanism.scores.beta).log_probabilities(np.arange(60))
    assert largest_excess(wrong, euclidean(vocabulary.embeddings.astype(float)), 4.0) > 0


def test_on_a_table_where_the_bound_is_met_calibration_gives_half():
    vocabulary = toy_vocabulary([[0.0], [1e-3]])
    prior = OutputPrior(counts=np.array([2**19, 0]))
    certificate = make_exponential(vocabulary=vocabulary, eta=1.0, prior=prior, calibrated=True).certificate
    assert certificate.beta == 0.5
    assert certificate.slope <= 1.0


def test_a_certificate_is_computed_once_and_read_again(monkeypatch):
    vocabulary = random_vocabulary(1, special=())
    first = make_mechanism("exponential", vocabulary=vocabulary, eta=4.0, options={"calibrated": True})
    (path,) = find_cache_folder().iterdir()
    held = json.loads(path.read_text())
    assert held["schema"] == "rapt.slope/1"
    assert held["vocabulary_hash"] == vocabulary.hash
    assert (held["eta"], held["beta"]) == (4.0, first.scores.beta)
    assert held["slope"] <= 4.0
    monkeypatch.setattr("rapt.local.mechanisms.certificate.find_largest_beta", None)  # it would have to be called
    again = make_mechanism("exponential", vocabulary=vocabulary, eta=4.0, options={"calibrated": True})
    assert again.certificate == first.certificate


@pytest.mark.parametrize("damage", ["{", '{"schema": "rapt.slope/1"}', "other eta", "other schema", "slope above eta"])
def test_a_certificate_that_is_not_whole_and_sound_is_computed_again(damage):
    vocabulary = random_vocabulary(1, special=())
    first = make_mechanism("exponential", vocabulary=vocabulary, eta=4.0, options={"calibrated": True})
    (path,) = find_cache_folder().iterdir()
    held = json.loads(path.read_text())
    changes = {"other eta": {"eta": 8.0}, "other schema": {"schema": "rapt.slope/9"}, "slope above eta": {"slope": 5.0}}
    path.write_text(json.dumps(held | changes[damage]) if damage in changes else damage)
    again = make_mechanism("exponential", vocabulary=vocabulary, eta=4.0, options={"calibrated": True})
    assert again.certificate == first.certificate
    assert json.loads(path.read_text()) == held


def test_a_cache_that_cannot_be_written_to_costs_no_result(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert make_exponential(vocabulary=random_vocabulary(1, special=()), eta=4.0, calibrated=True).scores.beta > 2.0


# The prior.


def test_the_prior_is_read_from_counts_of_public_text(tmp_path):
    vocabulary = toy_vocabulary(LINE, special=SPECIAL)
    prior = count_tokens([f"{toy_word(1)} {toy_word(3)} {toy_word(1)} unknown"], vocabulary)
    assert prior.counts.tolist() == [0, 2, 0, 1, 0, 0, 0]
    assert np.exp(prior.log_ratios) == pytest.approx([1 / 3, 1, 1 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3])
    (tmp_path / "counts.json").write_text(json.dumps({toy_word(1): 2, toy_word(3): 1}))
    assert read_output_prior(tmp_path / "counts.json", vocabulary).hash == prior.hash


def test_a_prior_of_extreme_counts_leaves_every_output_possible():
    ratios = OutputPrior(counts=np.array([2**50, 0, 7])).log_ratios
    assert ratios.tolist() == pytest.approx([0, -20 * math.log(2), -20 * math.log(2)])


@pytest.mark.parametrize("content", ["[1]", '{"waa": -1}', '{"waa": 1.5}', '{"other": 3}', "{", '{"waa": true}'])
def test_a_file_that_is_no_prior_is_refused(content, tmp_path):
    path = tmp_path / "counts.json"
    path.write_text(content)
    with pytest.raises(MechanismError, match="a file of counts must"):
        make_mechanism(
            "exponential", vocabulary=toy_vocabulary(LINE, special=SPECIAL), eta=1.0, options={"prior": str(path)}
        )


def test_a_setting_names_its_prior_by_hash_and_is_made_again_with_the_file_only(tmp_path):
    vocabulary = toy_vocabulary(LINE, special=SPECIAL)
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({toy_word(3): 9}))
    made = make_mechanism("exponential", vocabulary=vocabulary, eta=2.0, options={"prior": str(path)})
    assert str(made.setting.parameters["prior"]).startswith("sha256:")
    assert str(tmp_path) not in repr(made.setting)
    with pytest.raises(MechanismError, match="give the file"):
        remake_mechanism(made.setting, vocabulary=vocabulary)
    assert remake_mechanism(made.setting, vocabulary=vocabulary, files={"prior": str(path)}).setting == made.setting
    path.write_text(json.dumps({toy_word(3): 10}))
    with pytest.raises(MechanismError, match="must have the parameters that its file states"):
        remake_mechanism(made.setting, vocabulary=vocabulary, files={"prior": str(path)})


# On a real table.


def test_special_and_unused_tokens_are_never_an_output(bert_tiny, rng):
    everything = np.setdiff1d(np.arange(bert_tiny.size), bert_tiny.eligible)
    ids = np.concatenate([everything, rng.choice(bert_tiny.eligible, 500)])
    out = make_exponential(vocabulary=bert_tiny, eta=1.0).privatize(ids, rng=rng)
    assert out.dtype == np.int64
    assert np.isin(out, bert_tiny.eligible).all()


def test_a_smaller_eta_keeps_fewer_tokens(bert_tiny, rng):
    ids = rng.choice(bert_tiny.eligible, 200)
    kept = [
        (make_exponential(vocabulary=bert_tiny, eta=eta).privatize(ids, rng=rng) == ids).mean()
        for eta in (1.0, 14.0, 20.0, 30.0, 400.0)
    ]
    assert kept == sorted(kept)
    assert kept[0] < 0.03
    assert kept[-1] > 0.99


def test_inputs_are_not_changed(bert_tiny, rng):
    ids = rng.choice(bert_tiny.eligible, 50)
    before = ids.copy()
    make_exponential(vocabulary=bert_tiny, eta=5.0).privatize(ids, rng=rng)
    assert (ids == before).all()


def test_an_id_without_a_row_is_refused_by_its_position_only(bert_tiny, rng):
    mechanism = make_exponential(vocabulary=bert_tiny, eta=5.0)
    with pytest.raises(VocabularyError, match="got none for token 1 of 2"):
        mechanism.privatize(np.array([5000, -1]), rng=rng)
    with pytest.raises(VocabularyError, match="got none for token 1 of 2"):
        mechanism.log_probabilities(np.array([5000, 30522]))
